r"""Amazon Grocery and Gourmet Food: the next item among sampled ones.

    python -m data_pipelines.amazon --raw=DIR --out=datasets/amazon_grocery

DIR holds train, dev, test and item_meta: Parquet files, or the tab-separated .csv files
that ReChorus ships (github.com/THUwangcy/ReChorus, data/Grocery_and_Gourmet_Food). All
interactions are positives; a user's last one is test, the one before it valid. Every
positive gets negatives, which stand beside it with the same time and history:

    train   --num_negatives items that the user does not have in train; what is in dev
            and test has no part in their choice
    valid,  the 99 items of the column `neg_items` where the file has one, else 99
    test    items that the user never has; the published figures (HR@5, NDCG@5) rank
            the positive among them

Drawn items are uniform over `item_meta` and differ within a row. The data know only
days, so a history ends with the day before the target; see --same_day. All is in
memory, about 2 GB. Licence of the data: none is stated at the origin; nothing of it is
in this repository.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from data_pipelines.engine import command, conversion, raw_files
from data_pipelines.engine.columns import ranges
from data_pipelines.engine.histories import Past, past_events
from data_pipelines.engine.plan import LabelRule, Plan
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    Field,
    SequenceColumn,
    SequenceField,
)

FILES = {"train": "train", "valid": "dev", "test": "test"}
NUM_CANDIDATES = 99  # negatives of the published protocol
MAX_HISTORY = 20
NUM_EARLIER = {0: "0", 1: "1-4", 5: "5-9", 10: "10+"}  # start of a range -> name
DAY_SECONDS = 24 * 3600
FIELDS: tuple[Field, ...] = (
    CategoricalField(name="user", table="user"),
    CategoricalField(name="item", table="item"),
    CategoricalField(name="category", table="category"),
    SequenceField(
        name="history",
        columns=(
            SequenceColumn(name="item", table="item", column="history_item"),
            SequenceColumn(
                name="category", table="category", column="history_category"
            ),
        ),
        max_length=MAX_HISTORY,
    ),
)


def convert(
    raw: pathlib.Path,
    out: pathlib.Path,
    *,
    overwrite: bool = False,
    num_negatives: int = 4,
    same_day: bool = False,
    seed: int = 0,
    cluster: str = "",
) -> Card:
    """Writes the dataset folder.

    Args:
        raw: folder of the files, in either form.
        out: dataset folder to make.
        overwrite: replace a dataset folder that is there.
        num_negatives: items drawn for each positive of train.
        same_day: histories also take what stands before the target on its own day.
        seed: of the draws.
        cluster: see `conversion.convert`.

    Raises:
        DataError: a file is missing or is not what it should be.
    """
    if num_negatives < 1:
        raise DataError(f"--num_negatives={num_negatives}: expected 1 or more")
    suffix = ".parquet" if (raw / "train.parquet").is_file() else ".csv"
    files = {split: raw / f"{name}{suffix}" for split, name in FILES.items()}
    items = _read(raw / f"item_meta{suffix}", ["item_id", "category"])
    items = items.sort_by("item_id").combine_chunks()
    ids = items["item_id"].to_numpy()
    if len(np.unique(ids)) < len(ids):
        raise DataError(f"{raw}: item_meta has several rows of one item_id")
    parts = {
        split: _read(path, ["user_id", "item_id", "time"])
        for split, path in files.items()
    }
    user = {split: part["user_id"].to_numpy() for split, part in parts.items()}
    place = {split: _places(ids, part["item_id"]) for split, part in parts.items()}
    clock = _clock(parts, same_day=same_day)
    met = {split: user[split] * len(ids) + place[split] for split in parts}

    tables, candidates = {}, {}
    for number, (split, part) in enumerate(parts.items()):
        if split != "train" and len(np.unique(user[split])) < part.num_rows:
            raise DataError(f"{files[split]}: a user has several rows, expected one")
        if split != "train" and "neg_items" in part.column_names:
            negatives = _given(part["neg_items"], ids, files[split])
            _check_given(negatives, user[split], met, len(ids), files[split])
            candidates[split] = f"{negatives.shape[1]} of neg_items"
        else:
            count = num_negatives if split == "train" else NUM_CANDIDATES
            seen_in = ["train"] if split == "train" else list(FILES)
            negatives = draw_unseen(
                user[split],
                np.unique(np.concatenate([met[name] for name in seen_in])),
                count,
                num_items=len(ids),
                rng=np.random.default_rng([seed, number]),
            )
            candidates[split] = f"{count} drawn outside {'+'.join(seen_in)}"
        # Only what stands in the files before can be history.
        before = ["train", "valid"] if split == "test" else ["train"]
        past = past_events(
            user=user[split],
            time=clock[split],
            event_user=np.concatenate([user[name] for name in before]),
            event_time=np.concatenate([clock[name] for name in before]),
            max_length=MAX_HISTORY,
        )
        events = np.concatenate([place[name] for name in before])
        tables[split] = _rows(part, place[split], negatives, past, events, items)

    plan = Plan(
        name="amazon_grocery",
        fields=FIELDS,
        labels=(LabelRule(name="next_item", column="label"),),
        special={"group": "user", "time": "time"},
        slices=("history",),
        origin=(
            "Amazon reviews, Grocery and Gourmet Food 5-core (McAuley), as prepared by "
            "ReChorus (github.com/THUwangcy/ReChorus)"
        ),
        licence="none stated at the origin",
    )
    rule = (
        "test is each user's last interaction, valid the one before; negatives of a "
        "positive: "
        + ", ".join(f"{split} {text}" for split, text in candidates.items())
        + f", seed {seed}; histories: interactions of days before the target's"
    )
    if same_day:
        rule += (
            ", and of its own day those that stand before it in the files (dev after "
            "train, test after dev), as in the published tables"
        )
    rows = conversion.TableRows(tables, plan, rule=rule)
    return conversion.convert(plan, rows, out, overwrite=overwrite, cluster=cluster)


def _rows(
    positives: pa.Table,
    place: np.ndarray,
    negatives: np.ndarray,
    past: Past,
    events: np.ndarray,
    items: pa.Table,
) -> pa.Table:
    """Makes the rows of a split: each positive and, next to it, its negatives.

    Args:
        positives: [n] interactions.
        place: [n] rows of `items`.
        negatives: [n, count] rows of `items`.
        past: histories of the positives.
        events: rows of `items` of the events in `past`.
        items: all items.
    """
    candidates = np.column_stack([place, negatives])
    label = np.zeros(candidates.shape, np.int8)
    label[:, 0] = 1
    target = pa.array(np.repeat(np.arange(len(place)), candidates.shape[1]))
    of_row = items.take(pa.array(candidates.ravel()))
    of_event = items.take(pa.array(events)).combine_chunks()
    return pa.table(
        {
            "user": positives["user_id"].take(target),
            "item": of_row["item_id"],
            "category": of_row["category"],
            "history_item": past.take(of_event["item_id"].to_numpy()).take(target),
            "history_category": past.take(of_event["category"].to_numpy()).take(target),
            "history": ranges(past.num_earlier, NUM_EARLIER).take(target),
            "time": positives["time"].take(target),
            "label": label.ravel(),
        }
    )


def draw_unseen(
    user: np.ndarray,
    seen: np.ndarray,
    count: int,
    *,
    num_items: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws items that a user has not seen, uniformly and without repeats in a row.

    Args:
        user: [n] integers.
        seen: sorted `user * num_items + item` of what the users have seen.
        count: items per row.
        num_items: items are 0 .. num_items - 1.
        rng: source of the draws.

    Returns:
        [n, count] items.

    Raises:
        DataError: a user has not that many unseen items.
    """
    users, num_seen = np.unique(seen // num_items, return_counts=True)
    unseen = num_items - num_seen[np.isin(users, user)].max(initial=0)
    if unseen < count:
        raise DataError(
            f"{count} items that a user has not seen cannot be drawn: one has only "
            f"{unseen}"
        )
    drawn = np.empty((len(user), count), np.int64)
    row, column = (index.ravel() for index in np.indices(drawn.shape))
    while len(row):
        drawn[row, column] = rng.integers(0, num_items, len(row))
        # What is seen, or equals another item of its row, is drawn again. The rule does
        # not look at which item it is, so all sets of unseen items are equally likely.
        rows = np.unique(row)
        keys = user[rows, None] * num_items + drawn[rows]
        order = np.argsort(keys, axis=1, kind="stable")
        ordered = np.take_along_axis(keys, order, axis=1)
        bad = np.isin(ordered, seen)
        bad[:, 1:] |= ordered[:, 1:] == ordered[:, :-1]
        again, sorted_column = np.nonzero(bad)
        row, column = rows[again], order[again, sorted_column]
    return drawn


def _read(path: pathlib.Path, columns: list[str]) -> pa.Table:
    """Reads columns of integers, times as seconds, and `neg_items` where it is."""
    if not path.is_file():
        raise DataError(
            f"{path} is missing; --raw must be the folder of train, dev, test and "
            "item_meta, all .parquet or all .csv"
        )
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        else:
            options = pyarrow.csv.ParseOptions(delimiter="\t")
            table = pyarrow.csv.read_csv(path, parse_options=options)
            names = [
                "category" if name == "i_category" else name
                for name in table.column_names
            ]
            table = table.rename_columns(names)
        read = {}
        for name in columns:
            values = table[name]
            if pa.types.is_timestamp(values.type):
                values = values.cast(pa.timestamp("s"))
            read[name] = values.cast(pa.int64()).combine_chunks()
            if read[name].null_count:
                raise DataError(f"{path}: column {name!r} has missing values")
        if "neg_items" in table.column_names:
            read["neg_items"] = _int_lists(table["neg_items"].combine_chunks())
        return pa.table(read)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DataError(
            f"{path}: {error}; expected columns of integers {', '.join(columns)}, in "
            ".csv tab-separated"
        ) from error


def _int_lists(values: pa.Array) -> pa.Array:
    """Makes lists of integers of texts such as "[12, 5]"."""
    if pa.types.is_list(values.type):
        return values.cast(pa.list_(pa.int64()))
    parts = pc.split_pattern(pc.utf8_trim(values, characters="[] "), ",")
    elements, offsets = raw_files.ragged(parts)
    numbers = pc.utf8_trim_whitespace(elements).cast(pa.int64())
    return pa.ListArray.from_arrays(offsets, numbers)


def _places(items: np.ndarray, ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Returns where the ids stand in the sorted ids of item_meta."""
    ids = np.asarray(ids)
    places = np.minimum(np.searchsorted(items, ids), len(items) - 1)
    if len(strange := ids[items[places] != ids]):
        raise DataError(
            f"item {strange[0]} ({len(strange)} such rows) is not in item_meta"
        )
    return places


def _clock(parts: dict[str, pa.Table], *, same_day: bool) -> dict[str, np.ndarray]:
    """Returns the day of each interaction, or its place when sorted by day.

    Interactions of one day stand in the files' order, so places tell them apart.
    """
    days = [part["time"].to_numpy() // DAY_SECONDS for part in parts.values()]
    clock = np.concatenate(days)
    if same_day:
        order = np.argsort(clock, kind="stable")
        clock[order] = np.arange(len(clock))
    ends = np.cumsum([len(part) for part in days])[:-1]
    return dict(zip(parts, np.split(clock, ends), strict=True))


def _given(lists: pa.ChunkedArray, items: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Returns the places [n, count] of the negatives that a file names."""
    values, offsets = raw_files.ragged(lists.combine_chunks())
    lengths = np.unique(np.diff(offsets.to_numpy()))
    if len(lengths) != 1 or not lengths[0]:
        raise DataError(
            f"{path}: neg_items has {lengths[:3].tolist()} items a row, expected the "
            "same number in every row"
        )
    return _places(items, values).reshape(-1, lengths[0])


def _check_given(
    negatives: np.ndarray,
    user: np.ndarray,
    met: dict[str, np.ndarray],
    num_items: int,
    path: pathlib.Path,
) -> None:
    """Raises where a negative is an item that the user has, so no negative at all.

    The same negative may stand twice in a row, as it does in the published files.
    """
    keys = user[:, None] * num_items + negatives
    known = np.isin(keys, np.concatenate(list(met.values()))).any(axis=1)
    if known.any():
        raise DataError(
            f"{path}: neg_items of {known.sum()} users hold items that they have, "
            f"first of user {user[np.argmax(known)]}; negatives must be unseen items"
        )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command.parser("amazon", __doc__)
    parser.add_argument(
        "--num_negatives",
        type=int,
        default=4,
        metavar="N",
        help="items drawn for each positive of train (default: %(default)s)",
    )
    parser.add_argument(
        "--same_day",
        action="store_true",
        help="histories also take the interactions of the target's own day that stand "
        "before it in the files (dev after train, test after dev), as the published "
        "tables do; the data do not say in which order they happened",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the draws (default: %(default)s)"
    )
    flags = command.parse(parser, arguments)
    command.run(lambda: convert(**vars(flags)), flags.out)


if __name__ == "__main__":
    main()
