r"""KuaiRand, its last two weeks: click, like and long view with three histories.

    python -m data_pipelines.kuairand --raw=DIR --out=datasets/kuairand

DIR holds KuaiRand-Pure (1.4 M impressions), -1K (12 M) or -27K (322 M) as they are
published (kuairand.com), its folder `data` or the one around it; or five Parquet files
of KuaiRand-Pure: log_0425_0430, log_0501_0508, user_features, video_features_basic,
user_history_to_0424. Read are the logs of the standard policies and the features of
users and videos. Rows are the impressions dated 2022-04-25 .. 05-08, split by the log's
`date`. What a user watched, liked and long-viewed before is history: earlier rows of
the log, and in the Parquet form the lists of `user_history_to_0424`, all of them at
that user's `last_time_ms`. The log's `date` lags up to 50 minutes behind `time_ms`, so
less than 1 % of the rows before a cut are later than the first row after it.

Histories hold what happened strictly before the row's `time_ms`. The impressions of a
page carry the same time and some rows stand in the log twice, so neither a row nor its
twin is in its own history. `hour` and `weekday` are those of `time_ms` in Beijing, not
of the log's `date` and `hourmin`, which run up to an hour behind the impression.

The published statistics of the videos are averages over the whole collection period,
test days included: they tell the labels. Nothing here reads them. A log of more than
2 M rows is dealt by user into temporary files beside --out, which are then in memory
one at a time for each thread or worker, some 0.9 GB each.
Licence of the data: CC BY-SA 4.0.
"""

from collections.abc import Collection
import dataclasses
import pathlib

import polars as pl

from data_pipelines.engine import buckets, command, conversion, text
from data_pipelines.engine.plan import LabelRule, Plan
from data_pipelines.sources import own_features
from data_pipelines.sources.kuairand_files import (
    HISTORIES,
    LOG,
    SPLITS,
    USER_CODES,
    USER_TEXTS,
    VIDEOS,
    check_log,
    find,
)
from data_pipelines.sources.kuairand_rows import EVENT_TABLES, KuaiRandRows
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    Field,
    SequenceColumn,
    SequenceField,
)

MAX_TAGS = 3  # no video of KuaiRand-Pure has more
FIELDS: tuple[Field, ...] = (
    *(
        CategoricalField(name=name, table=name)
        for name in ("user", "video", "author", "main_tag")
    ),
    CategoricalField(name="tags", table="main_tag", max_length=MAX_TAGS),
    *(
        CategoricalField(name=name, table=name)
        for name in (
            *("tab", "hour", "weekday"),
            *("video_type", "upload_type", "music_type", "duration"),
            *USER_TEXTS,
            *USER_CODES,
        )
    ),
    *(
        SequenceField(
            name=name,
            columns=tuple(
                SequenceColumn(name=table, table=table, column=f"{name}_{table}")
                for table in EVENT_TABLES
            ),
            max_length=history.max_length,
        )
        for name, history in HISTORIES.items()
    ),
)


def convert(
    raw: pathlib.Path,
    out: pathlib.Path,
    *,
    overwrite: bool = False,
    video_features: pathlib.Path | None = None,
    min_count: int = 1,
    num_buckets: int = 0,
    cluster: str = "",
) -> Card:
    """Writes the dataset folder.

    Args:
        raw: folder of the files of one size, in either form.
        out: dataset folder to make.
        overwrite: replace a dataset folder that is there.
        video_features: CSV or Parquet with video_id and further columns of ids or
            texts, each of which becomes a categorical field.
        min_count: ids that training has less often are unknown ids.
        num_buckets: parts of the log, by user; 0 makes one for 2 M rows.
        cluster: see `conversion.convert`.

    Raises:
        DataError: a file is missing or is not what it should be, or `video_features`
            holds counters of the whole collection period.
    """
    video_features = video_features.absolute() if video_features else None
    folder, form = find(raw.absolute())
    plan = Plan(
        name=form.dataset,
        fields=FIELDS,
        labels=tuple(
            LabelRule(name=name, column=column)
            for name, column in (
                ("click", "is_click"),
                ("like", "is_like"),
                ("long_view", "long_view"),
            )
        ),
        special={"group": "user", "time": "time_ms", "domain": "tab"},
        min_count=min_count,
        slices=("tab", "hour", "history", "is_new_video"),
        origin=(
            f"{form.title} (Gao et al., CIKM 2022, kuairand.com), standard policies, "
            "2022-04-25 .. 05-08"
        ),
        licence="CC BY-SA 4.0",
    )
    if video_features:
        own = _own_fields(video_features, taken=plan.kinds())
        plan = dataclasses.replace(plan, fields=FIELDS + own)
    names = (*form.logs, form.users, form.videos, form.history)
    files = [folder / name for name in names if name]
    files += [video_features] if video_features else []
    videos = buckets.scan([folder / form.videos], VIDEOS)
    count = buckets.number_for(check_log(folder, form), num_buckets)
    log = buckets.scan([folder / name for name in form.logs], LOG)
    with buckets.scratch(out, overwrite=overwrite) as scratch:
        parts = buckets.deal(log, "user_id", num_buckets=count, folder=scratch)
        trained = None
        if count > 1:
            is_train = pl.col("date").is_between(*SPLITS["train"])
            trained = pl.concat(parts).filter(is_train).select("video_id").unique()
            trained = buckets.keep(trained, scratch / "trained.parquet")
            videos = buckets.keep(videos, scratch / "videos.parquet")
        rows = KuaiRandRows(
            folder=folder,
            form=form,
            log=parts,
            videos=videos,
            trained=trained,
            own=video_features,
            kinds=plan.kinds(),
            inputs=text.stamp(files) if count > 1 else "",  # one part: nothing to keep
        )
        return conversion.convert(plan, rows, out, overwrite=overwrite, cluster=cluster)


def _own_fields(
    path: pathlib.Path, *, taken: Collection[str]
) -> tuple[CategoricalField, ...]:
    names = own_features.read(path).column_names[1:]
    if both := [name for name in names if name in taken]:
        raise DataError(f"{path}: the data set has columns {both} already; rename")
    return tuple(CategoricalField(name=name, table=name) for name in names)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command.parser("kuairand", __doc__)
    parser.add_argument(
        "--video_features",
        type=pathlib.Path,
        metavar="FILE",
        help="CSV or Parquet: video_id and columns of ids or texts, each a field",
    )
    command.add_min_count(parser, default=1)
    buckets.add_num_buckets(parser)
    flags = command.parse(parser, arguments)
    command.run(lambda: convert(**vars(flags)), flags.out)


if __name__ == "__main__":
    main()
