"""Made-up files in the forms of KuaiRand; ids and values are ours.

    python tests/made_up/kuairand.py --out=DIR

writes DIR/parquet and DIR/published, which hold the same impressions.
"""

import argparse
import csv
import datetime
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_USERS = 40
NUM_VIDEOS = 60
SPLIT_OF_DAY = {4: "valid", 5: "valid", 6: "test", 7: "test", 8: "test"}  # of May
BEIJING = datetime.timezone(datetime.timedelta(hours=8))

FLAGS = ("is_follow", "is_comment", "is_forward", "is_hate")
LOG = pa.schema(
    [
        ("user_id", pa.int32()),
        ("video_id", pa.int32()),
        ("date", pa.int32()),
        ("hourmin", pa.int16()),
        ("time_ms", pa.int64()),
        *((name, pa.int8()) for name in ("is_click", "is_like", *FLAGS, "long_view")),
        ("play_time_ms", pa.int32()),
        ("duration_ms", pa.int32()),
        ("profile_stay_time", pa.int32()),
        ("comment_stay_time", pa.int32()),
        *((name, pa.int8()) for name in ("is_profile_enter", "is_rand", "tab")),
    ]
)
USERS = pa.schema(
    [
        ("user_id", pa.int32()),
        ("user_active_degree", pa.string()),
        *(
            (name, pa.int32())
            for name in ("is_lowactive_period", "is_live_streamer", "is_video_author")
        ),
        ("follow_user_num", pa.int32()),
        ("follow_user_num_range", pa.string()),
        ("fans_user_num", pa.int32()),
        ("fans_user_num_range", pa.string()),
        ("friend_user_num", pa.int32()),
        ("friend_user_num_range", pa.string()),
        ("register_days", pa.int32()),
        ("register_days_range", pa.string()),
        *((f"onehot_feat{i}", pa.int32()) for i in range(18)),
    ]
)
VIDEOS = pa.schema(
    [
        ("video_id", pa.int32()),
        ("author_id", pa.int32()),
        ("video_type", pa.string()),
        ("upload_dt", pa.string()),
        ("upload_type", pa.string()),
        ("visible_status", pa.int32()),
        ("video_duration", pa.int32()),
        ("server_width", pa.int32()),
        ("server_height", pa.int32()),
        ("music_id", pa.int64()),
        ("music_type", pa.int32()),
        ("tag", pa.string()),
    ]
)
HISTORY = pa.schema(
    [
        ("user_id", pa.int32()),
        ("history_len", pa.int32()),
        ("last_time_ms", pa.int64()),
        *(
            (name, pa.list_(pa.int16()))
            for name in ("watch_seq", "like_seq", "long_watch_seq")
        ),
    ]
)


def write_parquet(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes the five files, and one of statistics that nobody may read."""
    folder.mkdir(parents=True, exist_ok=True)
    log = _impressions(seed)
    late = [row for row in log if row["date"] >= 20220425]
    schema = LOG.append(pa.field("split", pa.string()))
    for name, is_part in (
        ("log_0425_0430", lambda date: date < 20220501),
        ("log_0501_0508", lambda date: date >= 20220501),
    ):
        part = [row for row in late if is_part(row["date"])]
        pq.write_table(_table(part, schema), folder / f"{name}.parquet")
    history = [
        {
            "user_id": user,
            "history_len": len(past),
            "last_time_ms": past[-1]["time_ms"],
            "watch_seq": [row["video_id"] for row in past][-50:],
            "like_seq": [r["video_id"] for r in past if r["is_like"]][-50:],
            "long_watch_seq": [r["video_id"] for r in past if r["long_view"]][-50:],
        }
        for user in range(NUM_USERS)
        if (past := [r for r in log if r["user_id"] == user and r["date"] < 20220425])
    ]
    pq.write_table(_table(history, HISTORY), folder / "user_history_to_0424.parquet")
    users, videos = _users(seed), _videos(seed)
    pq.write_table(_table(users, USERS), folder / "user_features.parquet")
    pq.write_table(_table(videos, VIDEOS), folder / "video_features_basic.parquet")
    pq.write_table(_statistics(), folder / "video_statistics_LEAKY.parquet")


def write_published(folder: pathlib.Path, *, seed: int = 0, size: str = "pure") -> None:
    """Writes the CSV files of a size, "pure", "1k" or "27k", into data/ of the folder.

    The content is the same, but that the log of 27k is in other order: its parts, of
    every other row each, follow each other.
    """
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    log = _impressions(seed)
    early = [row for row in log if row["date"] < 20220422]
    late = [row for row in log if row["date"] >= 20220422]
    for days, rows in (("4_08_to_4_21", early), ("4_22_to_5_08", late)):
        parts = {"": rows}
        if size == "27k":
            parts = {"_part1": rows[::2], "_part2": rows[1::2]}
        for part, some in parts.items():
            _write_csv(data / f"log_standard_{days}_{size}{part}.csv", some, LOG)
    _write_csv(data / f"user_features_{size}.csv", _users(seed), USERS)
    _write_csv(data / f"video_features_basic_{size}.csv", _videos(seed), VIDEOS)
    statistics = _statistics()
    _write_csv(
        data / f"video_features_statistic_{size}.csv",
        statistics.to_pylist(),
        statistics.schema,
    )


def _table(rows: list[dict], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def _write_csv(path: pathlib.Path, rows: list[dict], schema: pa.Schema) -> None:
    """Writes as pandas does: integers of a column with missing ones become 9.0."""
    floats = {
        field.name
        for field in schema
        if pa.types.is_integer(field.type) and any(r[field.name] is None for r in rows)
    }
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(schema.names)
        for row in rows:
            cells = [row[name] for name in schema.names]
            writer.writerow(
                float(cell) if name in floats and cell is not None else cell
                for name, cell in zip(schema.names, cells, strict=True)
            )


def _impressions(seed: int) -> list[dict]:
    """The whole log of April and May in time order, pages and twins included."""
    rng = np.random.default_rng(seed)
    first = datetime.datetime(2022, 4, 8, tzinfo=BEIJING).timestamp() * 1000
    day = 24 * 3600 * 1000
    rows = []
    for user in range(NUM_USERS):
        num_pages = 130 if user == 0 else 24
        start = 18 if user % 5 == 4 else 0  # some users have no earlier impression
        times = np.sort(rng.integers(start * day, 31 * day - 3_600_000, num_pages))
        for time in times:
            for _ in range(rng.choice([1, 2], p=[0.9, 0.1])):  # a page of one or two
                rows.append(_impression(rng, user, int(first + time)))
        rows.append(dict(rows[-1]))  # some rows stand in the log twice
    # One history ends at the very time of the first impression after it.
    time = int(first + 17.3 * day)
    for date in (20220424, 20220425):
        rows.append(_impression(rng, 4, time) | {"date": date})
    # A video that training never sees.
    last = max(row["time_ms"] for row in rows)
    rows.append(_impression(rng, 1, last + 1) | {"video_id": NUM_VIDEOS - 1})
    return sorted(rows, key=lambda row: (row["time_ms"], row["date"]))


def _impression(rng: np.random.Generator, user: int, time: int) -> dict:
    logged = datetime.datetime.fromtimestamp(time / 1000 + 600, BEIJING)
    is_click = int(rng.random() < 0.45)
    return {
        "user_id": user,
        "video_id": int(rng.integers(NUM_VIDEOS - 1)),
        "date": int(logged.strftime("%Y%m%d")),
        "hourmin": logged.hour * 100,
        "time_ms": time,
        "is_click": is_click,
        "is_like": int(rng.random() < 0.15),
        **{name: int(rng.random() < 0.02) for name in FLAGS},
        "long_view": int(is_click and rng.random() < 0.7),
        "play_time_ms": int(rng.integers(100_000)),
        "duration_ms": int(rng.integers(5_000, 90_000)),
        "profile_stay_time": 0,
        "comment_stay_time": int(rng.integers(500)),
        "is_profile_enter": int(rng.random() < 0.02),
        "is_rand": 0,
        "tab": int(rng.choice([0, 1, 4], p=[0.2, 0.7, 0.1])),
        "split": SPLIT_OF_DAY.get(logged.day if logged.month == 5 else 0, "train"),
    }


def _users(seed: int) -> list[dict]:
    """Features of all users but one."""
    rng = np.random.default_rng([seed, 1])
    return [
        {
            "user_id": user,
            "user_active_degree": str(rng.choice(["full_active", "UNKNOWN"])),
            "is_lowactive_period": 0,
            "is_live_streamer": int(rng.choice([1, -124])),
            "is_video_author": int(rng.integers(2)),
            "follow_user_num": int(rng.integers(600)),
            "follow_user_num_range": str(rng.choice(["0", "(0,10]", "500+"])),
            "fans_user_num": int(rng.integers(600)),
            "fans_user_num_range": str(rng.choice(["[1,10)", "[1k,5k)"])),
            "friend_user_num": int(rng.integers(60)),
            "friend_user_num_range": str(rng.choice(["0", "[5,30)", "250+"])),
            "register_days": int(rng.integers(14, 3000)),
            "register_days_range": str(rng.choice(["15-30", "730+"])),
            **{
                f"onehot_feat{i}": None
                if i in (4, 12, 13, 14, 15, 16, 17) and user % 7 == 3
                else int(rng.integers(4))
                for i in range(18)
            },
        }
        for user in range(NUM_USERS - 1)
    ]


def _videos(seed: int) -> list[dict]:
    rng = np.random.default_rng([seed, 2])
    tags = ["", "39", "12", "7", "20,43", "12,65", "7,12,39"]
    return [
        {
            "video_id": video,
            "author_id": int(rng.integers(10**6)) if video % 4 else 77,
            "video_type": str(rng.choice(["NORMAL", "AD"])),
            "upload_dt": "2022-04-10",
            "upload_type": str(rng.choice(["LongImport", "Web", "Kmovie"])),
            "visible_status": 0,
            "video_duration": {5: None, 4: 0}.get(video % 9, int(5000 * 1.09**video)),
            "server_width": 720,
            "server_height": 1280,
            "music_id": 0 if video % 8 == 3 else 9 * 10**9 + video,
            "music_type": None if video % 8 == 3 else int(rng.choice([4, 9])),
            "tag": tags[video % len(tags)],
        }
        for video in range(NUM_VIDEOS)
    ]


def _statistics() -> pa.Table:
    """Counters that tell the labels; a few names of the fifty-one."""
    videos = np.arange(NUM_VIDEOS, dtype=np.int32)
    columns: dict[str, np.ndarray] = {"video_id": videos, "counts": videos + 1}
    for name in ("show_cnt", "play_user_num", "play_progress", "like_cnt"):
        columns[name] = videos.astype(np.float32) / NUM_VIDEOS
    return pa.table(columns)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    write_parquet(flags.out / "parquet", seed=flags.seed)
    write_published(flags.out / "published", seed=flags.seed)
