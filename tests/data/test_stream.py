"""A stream and its windows hold the rows of the splits, each once and in order."""

import numpy as np
import pyarrow as pa

from rankax.config.synthetic import SyntheticConfig
from rankax.data import order, synthetic
from rankax.data.schema import Schema
from rankax.data.stream import Stream, WindowSplit

CONFIG = SyntheticConfig(
    num_train_rows=3000, num_valid_rows=500, num_test_rows=700, rows_per_group=400
)
DAY = 86_400


def make_stream():
    schema = Schema.select(synthetic.card(CONFIG), tasks=("ctr",))
    splits = [
        synthetic.SyntheticSplit(CONFIG, name, schema)
        for name in ("train", "valid", "test")
    ]
    return Stream("clicks", splits), splits


def table_of(source):
    return pa.concat_tables(source.read(g) for g in range(len(source.rows_per_group)))


def test_a_stream_is_its_splits_one_after_the_other():
    stream, splits = make_stream()
    whole = pa.concat_tables(map(table_of, splits))
    assert table_of(stream).equals(whole)
    assert stream.rows_per_group.sum() == 4200
    times = [stream.times(g) for g in range(len(stream.rows_per_group))]
    expected = [s.times(g) for s in splits for g in range(len(s.rows_per_group))]
    for found, own, group in zip(times, expected, range(99), strict=False):
        np.testing.assert_array_equal(found, own)
        assert stream.time_range(group) == (own.min(), own.max())
    assert stream.where(8) == "synthetic/valid row group 0"
    other = Stream("clicks", splits[:2])
    assert other.fingerprint != stream.fingerprint


def test_windows_are_the_rows_of_their_times():
    stream, _ = make_stream()
    whole = table_of(stream)
    times = np.concatenate([stream.times(g) for g in range(len(stream.rows_per_group))])
    windows = [
        WindowSplit(stream, window, number)
        for number, window in enumerate(order.time_windows(stream, "time", DAY))
    ]
    assert len(windows) == len({*(times // DAY).tolist()}) == 28
    for window, day in zip(windows, np.unique(times // DAY), strict=True):
        expected = whole.filter(pa.array(times // DAY == day))
        assert table_of(window).equals(expected)
        assert window.rows_per_group.sum() == len(expected)
        for group in range(len(window.rows_per_group)):
            own = window.times(group)
            assert (own // DAY == day).all()
            assert window.time_range(group) in (None, (own.min(), own.max()))
    assert len({window.fingerprint for window in windows}) == 28
    assert windows[3].name == "clicks/window 3"
