"""A made-up shop.csv for docs/data.md: python tests/made_up/shop.py --out=shop.csv.

Customers like some tags and dislike others; items have tags, prices and a quality. A
rating is a noisy sum of these, so that item, history and device all help to foresee it.
"""

import argparse
import csv
import datetime
import pathlib

import numpy as np

TAGS = ("new", "red", "blue", "small", "large", "sale", "gift", "wood")
START = datetime.datetime(2024, 5, 1)


def write(path, *, num_rows=20_000, num_users=400, num_items=300, seed=0) -> None:
    """Writes the CSV; some cells are empty."""
    rng = np.random.default_rng(seed)
    likes = rng.normal(size=(num_users, len(TAGS)))
    has_tag = rng.random((num_items, len(TAGS))) < 0.25
    price = rng.gamma(2.0, 10.0, num_items).round(2)
    quality = rng.normal(scale=0.7, size=num_items)
    popularity = rng.dirichlet(np.full(num_items, 0.5))
    history: list[list[int]] = [[] for _ in range(num_users)]
    header = ["user", "item", "tags", "price", "device", "hist_items", "rating", "when"]
    with pathlib.Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in range(num_rows):
            user = int(num_users * rng.random() ** 2)
            item = int(rng.choice(num_items, p=popularity))
            is_phone = rng.random() < 0.6
            taste = likes[user] @ has_tag[item] / 2 + quality[item] - 0.4 * is_phone
            rating = int(np.clip(np.round(3.3 + taste + rng.normal()), 1, 5))
            when = START + datetime.timedelta(minutes=3 * row)
            cells = [
                f"u{user}",
                item,
                "|".join(np.array(TAGS)[has_tag[item]]),
                "" if rng.random() < 0.02 else price[item],
                "phone" if is_phone else "web",
                "|".join(map(str, history[user][-20:])),
                rating,
                when.isoformat(sep=" "),
            ]
            writer.writerow(cells)
            if rating >= 4:
                history[user].append(item)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE")
    write(parser.parse_args().out)
