"""A user's own features of the videos of KuaiRand, and what they must not be."""

import pathlib

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from data_pipelines.engine import raw_files
from rankax.data.card import DataError

# How the columns of the published statistics are called, all but video_id.
COUNTER_ENDS = ("_cnt", "_user_num")
COUNTERS = ("counts", "play_duration", "play_progress", "comment_stay_duration")


def read(path: pathlib.Path) -> pa.Table:
    """Reads video_id, which comes first, and columns of ids or texts.

    Raises:
        DataError: not such a table, or one with counters that tell the labels.
    """
    where = f"--video_features={path}"
    try:
        is_parquet = path.suffix == ".parquet"
        table = (pq.read_table if is_parquet else pyarrow.csv.read_csv)(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: {error}") from error
    counters = [
        name
        for name in table.column_names
        if name.endswith(COUNTER_ENDS) or name in COUNTERS
    ]
    if counters:
        raise DataError(
            f"{where}: {counters[0]} ({len(counters)} such columns) is called as a "
            "counter of the statistics file; these are averages over the whole "
            "collection period, the test days included, so they tell the labels; "
            "leave them out, or count on days before the row's and call it otherwise"
        )
    types = {
        name: raw_files.column_of(table.schema, name, "id", where=where).type
        for name in dict.fromkeys(["video_id", *table.column_names])
    }
    return table.select(list(types)).cast(pa.schema(types)).combine_chunks()
