"""Time windows: what comes before what, and what is refused."""

import dataclasses
import itertools

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pyarrow as pa
import pytest

from rankax.config.synthetic import SyntheticConfig
from rankax.data import lanes, order, source, synthetic
from rankax.data.card import Card, CategoricalField, DataError, Label, Table
from rankax.data.schema import Schema

CARD = Card(
    name="made",
    tables=(Table(name="row", num_rows=10_000),),
    fields=(CategoricalField(name="row", table="row"),),
    labels=(Label(name="click"),),
    splits={},
    time="when",
)
SCHEMA = Schema.select(CARD)
WIDTH = 10


@dataclasses.dataclass
class Timed:
    """Row groups whose only field is the number of the row in the split."""

    groups: list[list[int]]  # times
    name: str = "made/train"
    fingerprint: str = "0123456789ab"

    @property
    def rows_per_group(self):
        return np.array([len(times) for times in self.groups], np.int64)

    def read(self, group: int) -> pa.Table:
        start = int(self.rows_per_group[:group].sum())
        rows = np.arange(start, start + len(self.groups[group]))
        return pa.table({"row": rows, "click": rows % 2, "when": self.times(group)})

    def times(self, group: int) -> np.ndarray:
        return np.array(self.groups[group], np.int64)

    def time_range(self, group: int) -> tuple[int, int] | None:
        return None

    def where(self, group: int) -> str:
        return f"{self.name}, 00000.parquet row group {group}"


def read(data, *, num_lanes=2, rows=2, **options):
    defaults = {"seed": 0, "shuffle": True, "num_epochs": 1, "time_window": WIDTH}
    return lanes.read_batches(
        data,
        SCHEMA,
        batch_size=num_lanes * rows,
        lanes=num_lanes,
        **(defaults | options),
    )


def by_lane(batches, num_lanes):
    """Returns the (row, time) of each lane in order, padding left out."""
    result = [[] for _ in range(num_lanes)]
    for batch, _ in batches:
        parts = zip(
            *(np.split(batch[name], num_lanes) for name in ("ids", "time", "weight")),
            strict=True,
        )
        for lane, (ids, time, weight) in zip(result, parts, strict=True):
            lane += [
                (int(i), int(t))
                for (i,), t, w in zip(ids, time, weight, strict=True)
                if w
            ]
    return result


@st.composite
def timed(draw):
    """Splits sorted by window, with any order inside a window and any row groups."""
    counts = draw(st.lists(st.integers(1, 25), min_size=1, max_size=6))
    steps = [WIDTH * draw(st.sampled_from([1, 3])) for _ in counts]
    times = draw(st.sampled_from([-50, 0])) + np.cumsum(steps)
    inside = st.integers(0, WIDTH - 1)
    flat = [
        int(start) + draw(inside)
        for start, count in zip(times, counts, strict=True)
        for _ in range(count)
    ]
    cuts = sorted(draw(st.lists(st.integers(0, len(flat)), max_size=5)))
    ends = [0, *cuts, len(flat)]
    groups = [flat[a:b] for a, b in itertools.pairwise(ends) if a < b]
    return Timed(groups)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=timed(), num_lanes=st.integers(1, 4), shuffle=st.booleans())
def test_every_window_is_over_in_all_lanes_before_the_next_begins(
    data, num_lanes, shuffle
):
    hypothesis.assume(data.rows_per_group.sum() >= num_lanes)
    own = by_lane(read(data, num_lanes=num_lanes, shuffle=shuffle), num_lanes)
    flat = [time for group in data.groups for time in group]
    assert sorted(pair for lane in own for pair in lane) == list(enumerate(flat))
    for window in {time // WIDTH for time in flat}:
        until = [sum(t // WIDTH <= window for _, t in lane) for lane in own]
        assert max(until) - min(until) <= 1
    for lane in own:
        windows = [time // WIDTH for _, time in lane]
        assert windows == sorted(windows)


def test_a_row_group_in_two_windows_is_shuffled_in_each_by_itself():
    data = Timed([[1] * 40 + [11] * 24])
    ((*first,), (*second,)) = (
        by_lane(read(data, num_lanes=1, seed=seed), 1)[0] for seed in (0, 1)
    )
    for rows in (first, second):
        assert sorted(rows[:40]) == [(row, 1) for row in range(40)]
        assert rows[:40] != sorted(rows[:40])
        assert rows[40:] != sorted(rows[40:])
    assert first != second


def test_without_shuffling_one_lane_reads_the_stored_order():
    data = Timed([[3, 1, 2], [12, 15], [11, 33]])
    rows = by_lane(read(data, num_lanes=1, shuffle=False), 1)[0]
    assert [row for row, _ in rows] == list(range(7))


def test_reading_goes_on_from_any_batch_of_a_windowed_order():
    data = Timed([[t] * 9 for t in range(0, 80, 5)])
    whole = list(read(data, num_lanes=4, num_epochs=2))
    for done in (0, 5, len(whole) // 2, len(whole) - 2):
        rest = list(read(data, num_lanes=4, num_epochs=2, position=whole[done][1]))
        assert len(rest) == len(whole) - done - 1
        for (a, _), (b, _) in zip(rest, whole[done + 1 :], strict=True):
            np.testing.assert_array_equal(a["ids"], b["ids"])


def test_rows_after_those_of_a_later_window_are_an_error():
    data = Timed([[1, 12, 13], [19, 25, 9, 26]])
    with pytest.raises(
        DataError,
        match=r"row group 1: row 2 has a time of window 0, after rows of window 2",
    ):
        order.time_windows(data, "when", WIDTH)
    assert len(order.time_windows(data, "when", 100)) == 1  # sorted enough for it


def test_far_too_many_windows_are_a_wrong_unit(monkeypatch):
    monkeypatch.setattr(order, "MAX_WINDOWS", 3)
    assert len(order.time_windows(Timed([[1, 2, 3]]), "when", 1)) == 3
    with pytest.raises(DataError, match="more than 3 windows; its unit is that of"):
        order.time_windows(Timed([[1, 2], [3, 4]]), "when", 1)


def test_windows_without_a_time_column_are_an_error():
    with pytest.raises(DataError, match="needs a time column, and the card names none"):
        order.time_windows(Timed([[1]]), "", WIDTH)


def test_a_position_of_other_windows_is_refused():
    data = Timed([[1, 2, 11, 12]])
    position = lanes.start_position(data, lanes=2, seed=0, shuffle=True, time_window=5)
    with pytest.raises(DataError, match=r"shuffle-0-window-5.*shuffle-0-window-10"):
        read(data, position=position)


def test_synthetic_clicks_go_through_time_by_the_day():
    config = SyntheticConfig(num_train_rows=5000, num_valid_rows=500, num_test_rows=500)
    schema = Schema.select(synthetic.card(config))
    train = source.open_split(config, "train", schema)
    day = 86_400
    batches = lanes.read_batches(
        train,
        schema,
        batch_size=64,
        lanes=4,
        seed=0,
        shuffle=True,
        num_epochs=1,
        time_window=day,
    )
    days = [batch["time"][batch["weight"] > 0] // day for batch, _ in batches]
    assert all(a.max() <= b.min() for a, b in itertools.pairwise(days))
    assert days[0].min() < days[-1].max()
