"""The statistics file of KuaiRand, which knows the test days, beside honest fields."""

from made_up import inspected
import numpy as np
import polars as pl
import pytest

from data_pipelines.inspection import alone, future, report, statistics
from data_pipelines.inspection.folder import Folder

LABELS = ("is_click", "is_like", "long_view")
VIDEO_CODES = (
    "author_id",
    "music_id",
    "video_type",
    "upload_type",
    "tag",
    "music_type",
)
VIDEO_NUMBERS = ("video_duration", "server_width", "server_height")
USER_NUMBERS = (
    "follow_user_num",
    "fans_user_num",
    "friend_user_num",
    "register_days",
)
# Nine of ten videos unknown to training have no report at all, which tells nothing.
TOO_EMPTY = {"stat_report_cnt", "stat_report_user_num"}


def counters(log, by, prefix):
    """Honest ones, of the training days."""
    found = log.filter(pl.col("split") == "train").group_by(by)
    found = found.agg(
        pl.len().alias("shown"),
        *(pl.col(label).sum() for label in LABELS),
        pl.col("long_view").mean().alias("long_rate"),
        pl.col("play_time_ms").sum().alias("played"),
        (pl.col("date") == 20220503).sum().alias("shown_last_day"),
    )
    return found.rename(lambda name: name if name == by else f"{prefix}_{name}")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tables(real_data):
    folder = real_data / "kuairand-pure-late"
    read = {
        name: pl.read_parquet(folder / f"{name}.parquet")
        for name in (
            *("log_0425_0430", "log_0501_0508"),
            *("user_features", "video_features_basic", "video_statistics_LEAKY"),
        )
    }
    log = pl.concat([read["log_0425_0430"], read["log_0501_0508"]])
    return log, read


@pytest.fixture(scope="module")
def found(tables, tmp_path_factory):
    """Name of each field that is a statistic -> level, and all names by kind."""
    log, read = tables
    users, leaks = read["user_features"], read["video_statistics_LEAKY"]
    # Users have a follow_user_num too, and that is honest.
    leaks = leaks.rename(lambda name: name if name == "video_id" else f"stat_{name}")
    videos = read["video_features_basic"].select(
        "video_id", *VIDEO_CODES, *VIDEO_NUMBERS
    )
    user_codes = [
        name
        for name in users.columns
        if name.startswith(("onehot_feat", "is_")) or name.endswith("_range")
    ]
    of_video, of_user = (
        counters(log, f"{who}_id", f"own_{who}") for who in ("video", "user")
    )
    own = [*of_video.columns[1:], *of_user.columns[1:]]
    leaking = leaks.columns[1:]
    # As a number, and in ranges as `--video_features` would take them.
    coded = {
        f"{name}_range": (pl.col(f"stat_{name}") + 1).log(2).floor().cast(pl.Int64)
        for name in ("play_cnt", "long_time_play_cnt", "like_cnt")
    }
    rows = (
        log.join(videos, on="video_id", how="left")
        .join(users, on="user_id", how="left")
        .join(of_video, on="video_id", how="left")
        .join(of_user, on="user_id", how="left")
        .join(leaks, on="video_id", how="left")
        .with_columns(pl.col(own).fill_null(0), **coded)
    )
    ids = ["user_id", "video_id", *VIDEO_CODES, *user_codes, *coded]
    numbers = [*VIDEO_NUMBERS, *USER_NUMBERS, *own, *leaking]
    rows = rows.with_columns(
        pl.col(numbers).cast(pl.Float32).fill_nan(0).fill_null(0),
        *(
            pl.col(name).fill_null("" if rows[name].dtype == pl.String else -1)
            for name in ids
        ),
    )
    columns = [*ids, *numbers, *LABELS, "time_ms"]
    path = inspected.write(
        tmp_path_factory.mktemp("kuairand") / "folder",
        {
            str(split): {
                column: of_split[column].to_numpy()
                if of_split[column].dtype != pl.String
                else of_split[column].to_list()
                for column in columns
            }
            for (split,), of_split in rows.group_by("split", maintain_order=True)
        },
        ids=ids,
        numbers=numbers,
        labels=LABELS,
        time="time_ms",
        rule="by date",
        rows_per_group=65_536,
    )
    folder = Folder(path)
    cardinality, aucs = {}, {}
    for column, counted in statistics.counted_columns(folder):
        cardinality[column.name] = int((counted.rows[0] > 0).sum())
        aucs[column.name] = alone.aucs(folder, column, counted)
    levels = {
        name: finding.level
        for finding in future.findings(future.evidence(folder, cardinality))
        for name in finding.figures
    }
    honest = {*VIDEO_CODES, *VIDEO_NUMBERS, *user_codes, *USER_NUMBERS, *own}
    return levels, set(leaking), set(coded), honest, aucs


def test_the_leak_is_found(found):
    levels, leaking, coded, _, _ = found
    assert len(leaking) == 51
    assert leaking - levels.keys() == TOO_EMPTY
    assert coded <= levels.keys()
    errors = {name for name, level in levels.items() if level == "error"}
    assert len(errors & leaking) >= 20
    for name in ("play_cnt", "long_time_play_cnt", "play_progress", "like_cnt"):
        assert f"stat_{name}" in errors


def test_honest_fields_pass(found):
    levels, _, _, honest, _ = found
    assert len(honest) > 50
    assert not honest & levels.keys()


def test_no_single_field_is_too_good(found):
    aucs = found[-1]
    for name, of_field in aucs.items():
        assert not alone.findings(name, of_field, 0.8), name


def test_play_time_is_too_good(tables, tmp_path):
    log, _ = tables
    rows = log.select("video_id", "play_time_ms", "long_view", "split")
    path = inspected.write(
        tmp_path / "folder",
        {
            str(split): {
                "video_id": of_split["video_id"].to_numpy(),
                "play_time": of_split["play_time_ms"].to_numpy().astype(np.float32),
                "long_view": of_split["long_view"].to_numpy(),
            }
            for (split,), of_split in rows.group_by("split", maintain_order=True)
        },
        ids=("video_id",),
        numbers=("play_time",),
        labels=("long_view",),
        rows_per_group=65_536,
    )
    errors = [f for f in report.make(Folder(path))["findings"] if f["level"] == "error"]
    assert [(f["check"], f["subject"]) for f in errors] == [
        ("too good alone", "play_time")
    ]
