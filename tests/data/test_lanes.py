import dataclasses
import itertools
import threading
import time

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pyarrow as pa
import pytest

from rankax.config.base import ConfigError
from rankax.data import lanes, order
from rankax.data.card import Card, CategoricalField, DataError, Label, Table
from rankax.data.schema import Schema

MAX_ROWS = 100_000
CARD = Card(
    name="made",
    tables=(Table(name="row", num_rows=MAX_ROWS),),
    fields=(CategoricalField(name="row", table="row"),),
    labels=(Label(name="click"),),
    splits={},
)
SCHEMA = Schema.select(CARD)


@dataclasses.dataclass
class Numbered:
    """A source whose only field is the number of the row in the split."""

    rows_per_group: np.ndarray
    name: str = "made/train"
    fingerprint: str = "0123456789ab"
    bad_group: int = -1
    delay_seconds: float = 0
    reads: list[int] = dataclasses.field(default_factory=list)

    def read(self, group: int) -> pa.Table:
        self.reads.append(group)
        time.sleep(self.delay_seconds)
        start = int(self.rows_per_group[:group].sum())
        rows = np.arange(start, start + self.rows_per_group[group])
        click = rows % 2 + (2 if group == self.bad_group else 0)
        return pa.table({"row": rows, "click": click})

    def where(self, group: int) -> str:
        return f"{self.name} row group {group}"


def numbered(*rows_per_group: int, **options) -> Numbered:
    return Numbered(np.array(rows_per_group, np.int64), **options)


def read(source, *, batch_size=8, lanes_=4, num_epochs=1, **options):
    defaults = {"seed": 0, "shuffle": True}
    return lanes.read_batches(
        source,
        SCHEMA,
        batch_size=batch_size,
        lanes=lanes_,
        num_epochs=num_epochs,
        **(defaults | options),
    )


def rows_of(elements):
    """Returns (row number, weight) of every example, batch by batch."""
    return [
        list(zip(batch["ids"][:, 0].tolist(), batch["weight"].tolist(), strict=True))
        for batch, _ in elements
    ]


def reading_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("grain")]


def wait_for_threads_to_end() -> None:
    for _ in range(200):
        if not reading_threads():
            return
        time.sleep(0.01)
    raise AssertionError(f"threads left: {reading_threads()}")


# ---------------------------------------------------------------- the plan


def lane_plan(rows_per_group, **options):
    return order.lane_plan(order.one_window(rows_per_group), **options)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    rows=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    num_lanes=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_plan_deals_every_row_once_and_lanes_within_one(
    rows, num_lanes, seed, epoch, shuffle
):
    options = dict(lanes=num_lanes, seed=seed, epoch=epoch, shuffle=shuffle)
    plan = lane_plan(rows, **options)
    dealt = [(u.group, r) for units in plan for u in units for r in range(*u[1:])]
    assert sorted(dealt) == [(g, r) for g, n in enumerate(rows) for r in range(n)]
    sizes = [sum(u.stop - u.start for u in units) for units in plan]
    assert max(sizes) - min(sizes) <= 1
    assert plan == lane_plan(np.array(rows), **options)


def test_plan_without_shuffle_keeps_the_order_of_groups():
    plan = lane_plan([4] * 6, lanes=2, seed=0, epoch=5, shuffle=False)
    groups = [[u.group for u in units] for units in plan]
    assert groups == [[0, 1, 3, 5], [0, 2, 4, 5]]


def test_plan_changes_with_seed_and_epoch():
    def groups(seed, epoch):
        plan = lane_plan([1] * 50, lanes=1, seed=seed, epoch=epoch, shuffle=True)
        return [u.group for u in plan[0]]

    assert groups(0, 0) == groups(0, 0)
    assert groups(0, 0) != groups(0, 1) != groups(1, 0)


def test_one_group_is_shared_by_all_lanes():
    plan = lane_plan([10], lanes=4, seed=0, epoch=0, shuffle=True)
    assert plan == [[(0, 0, 3)], [(0, 3, 6)], [(0, 6, 8)], [(0, 8, 10)]]


# ---------------------------------------------------------------- batches


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    rows=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    num_lanes=st.integers(1, 6),
    rows_of_lane=st.integers(1, 5),
    shuffle=st.booleans(),
)
def test_every_row_counts_once_an_epoch(rows, num_lanes, rows_of_lane, shuffle):
    hypothesis.assume(sum(rows) >= num_lanes)
    source = numbered(*rows)
    size = num_lanes * rows_of_lane
    batches = rows_of(read(source, batch_size=size, lanes_=num_lanes, shuffle=shuffle))
    assert len(batches) == lanes.num_batches_per_epoch(
        source, batch_size=size, lanes=num_lanes
    )
    assert all(len(batch) == size for batch in batches)
    counted = [row for batch in batches for row, weight in batch if weight]
    assert sorted(counted) == list(range(sum(rows)))
    assert len(source.reads) == len(rows)  # each group is decoded once


def test_order_in_order_is_the_documented_one():
    # Lanes: 0 = group 0, 1 = group 1; the third group is shared at their ends.
    batches = rows_of(read(numbered(4, 4, 3), batch_size=4, lanes_=2, shuffle=False))
    assert batches == [
        [(0, 1), (1, 1), (4, 1), (5, 1)],
        [(2, 1), (3, 1), (6, 1), (7, 1)],
        [(8, 1), (9, 1), (10, 1), (10, 0)],  # lane 1 has one row less: padding
    ]


def test_padding_repeats_real_rows_of_the_same_lane():
    source = numbered(30, 30, 13)
    batches = rows_of(read(source, batch_size=40, lanes_=4))
    of_lane = [set() for _ in range(4)]
    for batch in batches:
        for i, (row, weight) in enumerate(batch):
            if weight:
                of_lane[i // 10].add(row)
    padding = [(i // 10, row) for i, (row, w) in enumerate(batches[-1]) if not w]
    assert len(padding) == 80 - 73
    assert all(row in of_lane[lane] for lane, row in padding)


def test_lane_without_a_row_in_the_last_batch_still_repeats_real_ones():
    # 9 rows on 4 lanes: 3, 2, 2, 2; the second batch of 2 rows a lane has one real row.
    *_, last = rows_of(read(numbered(5, 4), batch_size=8, lanes_=4))
    assert sum(weight for _, weight in last) == 1
    assert all(0 <= row < 9 for row, _ in last)


def test_shuffle_mixes_groups_and_rows_and_changes_every_epoch():
    batches = rows_of(read(numbered(*[64] * 8), batch_size=64, lanes_=8, num_epochs=2))
    first, second = batches[:8], batches[8:]
    assert first != second
    for batch in first:
        assert {row // 64 for row, _ in batch} == set(range(8))
        assert [row for row, _ in batch[:8]] != sorted(row for row, _ in batch[:8])
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second))
    other = rows_of(read(numbered(*[64] * 8), batch_size=64, lanes_=8, seed=1))
    assert other != first


@pytest.mark.parametrize("shard_count", [2, 4])
def test_shards_side_by_side_are_the_global_batch(shard_count):
    groups = (50, 1, 33, 20, 7, 61)
    whole = rows_of(read(numbered(*groups), num_epochs=2))
    shards = [
        rows_of(
            read(
                numbered(*groups), num_epochs=2, shard_index=i, shard_count=shard_count
            )
        )
        for i in range(shard_count)
    ]
    assert [list(itertools.chain(*parts)) for parts in zip(*shards, strict=True)] == (
        whole
    )


@pytest.mark.parametrize("num_threads", [2, 5])
def test_number_of_threads_changes_nothing(num_threads):
    groups = tuple(range(1, 40))
    one = rows_of(read(numbered(*groups), num_epochs=2))
    many = rows_of(read(numbered(*groups), num_epochs=2, num_threads=num_threads))
    assert many == one


# ---------------------------------------------------------------- position


def test_reading_goes_on_exactly_from_every_position():
    groups = (30, 5, 17, 9, 23)  # 84 rows: 11 batches an epoch, the last one padded
    elements = list(read(numbered(*groups), num_epochs=3))
    batches = rows_of(elements)
    assert len(batches) == 33
    for done in range(len(elements)):
        position = order.Position.from_dict(elements[done][1].to_dict())
        rest = read(numbered(*groups), num_epochs=3, position=position)
        assert rows_of(rest) == batches[done + 1 :]


def test_resume_on_another_number_of_shards_continues_the_global_batches():
    groups = (30, 5, 17, 9, 23)
    elements = list(read(numbered(*groups), num_epochs=2))
    for done in (0, 9, 10, 13):
        shards = [
            rows_of(
                read(
                    numbered(*groups),
                    num_epochs=2,
                    position=elements[done][1],
                    shard_index=i,
                    shard_count=2,
                )
            )
            for i in range(2)
        ]
        joined = [a + b for a, b in zip(*shards, strict=True)]
        assert joined == rows_of(elements)[done + 1 :]


def test_another_batch_size_goes_on_with_the_same_rows_of_each_lane():
    source = numbered(64, 64, 64, 64)
    (_, position), *_ = read(source, batch_size=8)
    rest = rows_of(read(source, batch_size=16, position=position))
    small = rows_of(read(source, batch_size=8, position=position))
    lane_0 = [row for batch in rest for row in batch[:4] if row[1]]
    assert lane_0 == [row for batch in small for row in batch[:2] if row[1]]


def test_position_after_an_epoch_is_the_start_of_the_next():
    *_, (_, last) = read(numbered(20, 20))
    start = lanes.start_position(numbered(20, 20), lanes=4, seed=0, shuffle=True)
    assert last == dataclasses.replace(start, epoch=1)
    assert list(read(numbered(20, 20), position=last)) == []
    assert rows_of(read(numbered(20, 20), position=start)) == rows_of(
        read(numbered(20, 20))
    )


def test_prefetching_does_not_run_ahead_in_the_position():
    with_prefetch = read(numbered(50, 50), prefetch_batches=6)
    plain = read(numbered(50, 50), prefetch_batches=1)
    for (_, a), (_, b) in zip(with_prefetch, plain, strict=True):
        assert a == b


def test_position_of_another_order_is_refused():
    start = lanes.start_position(numbered(50), lanes=4, seed=0, shuffle=True)
    with pytest.raises(DataError, match=r"saved with data.lanes = 4, the run has 8"):
        read(numbered(50), lanes_=8, position=start)
    changed = "belongs to the order '0123456789ab/shuffle-0', the run has "
    with pytest.raises(DataError, match=changed + "'ffff/shuffle-0'"):
        read(numbered(50, fingerprint="ffff"), position=start)
    with pytest.raises(DataError, match=changed + "'0123456789ab/shuffle-7'"):
        read(numbered(50), seed=7, position=start)
    with pytest.raises(DataError, match=changed + "'0123456789ab/in-order'"):
        read(numbered(50), shuffle=False, position=start)
    beyond = dataclasses.replace(start, rows_per_lane=13)
    with pytest.raises(DataError, match=r"row 13 of lanes that have 13; it is damaged"):
        read(numbered(50), position=beyond)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": "1"},
        {"format": 1},
        {"lanes": None},
        {"extra": 1},
        {"rows_per_lane": 1.5},
    ],
)
def test_damaged_position_record_is_refused(change):
    start = lanes.start_position(numbered(50), lanes=4, seed=0, shuffle=True)
    with pytest.raises(DataError, match=r"cannot be used: expected format 2"):
        order.Position.from_dict({**start.to_dict(), **change})
    missing = start.to_dict()
    del missing["epoch"]
    with pytest.raises(DataError, match=r"cannot be used"):
        order.Position.from_dict(missing)


# ---------------------------------------------------------------- sizes, errors, threads


def test_sizes_that_do_not_divide_are_refused_at_once():
    with pytest.raises(ConfigError, match=r"batch size 10 is not .*lanes = 4; use 8"):
        read(numbered(50), batch_size=10)
    with pytest.raises(
        ConfigError, match=r"lanes = 4 cannot be split over 3 processes"
    ):
        read(numbered(50), shard_count=3)
    with pytest.raises(ConfigError, match=r"shard 2 is not one of 2"):
        read(numbered(50), shard_index=2, shard_count=2)
    with pytest.raises(DataError, match=r"made/train has 3 examples, fewer than .* 4"):
        read(numbered(3))


def test_as_many_examples_as_lanes_are_enough():
    assert len(rows_of(read(numbered(4)))) == 1


@pytest.mark.parametrize("num_threads", [1, 3])
def test_errors_of_the_data_reach_the_consumer_unchanged(num_threads):
    batches = read(
        numbered(*[8] * 10, bad_group=9), shuffle=False, num_threads=num_threads
    )
    with pytest.raises(DataError, match=r"^made/train row group 9: column 'click' has"):
        list(batches)
    wait_for_threads_to_end()


def test_errors_of_map_batch_reach_the_consumer_unchanged():
    def fail(batch):
        raise RuntimeError("no room for 5 ids")

    with pytest.raises(RuntimeError, match=r"^no room for 5 ids"):
        next(read(numbered(50), map_batch=fail))
    wait_for_threads_to_end()


def test_leaving_early_stops_the_reading_threads():
    batches = read(
        numbered(*[8] * 50, delay_seconds=0.001), num_epochs=None, num_threads=3
    )
    next(batches)
    assert reading_threads()
    batches.close()
    wait_for_threads_to_end()
    for _ in read(numbered(*[8] * 50), num_epochs=None):
        break  # the abandoned generator is collected
    wait_for_threads_to_end()


def test_endless_reading_goes_on_over_epochs():
    source = numbered(20, 12)
    *_, (_, position) = itertools.islice(read(source, num_epochs=None), 41)
    assert (position.epoch, position.rows_per_lane) == (10, 2)


def test_map_batch_is_applied_to_every_batch():
    summed = read(numbered(20, 20), map_batch=lambda batch: batch["weight"].sum())
    assert [total for total, _ in summed] == [8, 8, 8, 8, 8]


def test_batches_share_no_memory():
    expected = rows_of(read(numbered(9, 9), num_epochs=2))
    seen = []
    for batch, position in read(numbered(9, 9), num_epochs=2, prefetch_batches=1):
        seen.append(({key: array.copy() for key, array in batch.items()}, position))
        for array in batch.values():
            array[:] = -7
    assert rows_of(seen) == expected


class Timed(Numbered):
    """Rows that come at the time of their number, one a unit."""

    def read(self, group: int) -> pa.Table:
        table = super().read(group)
        return table.append_column("time", table["row"])

    def times(self, group: int) -> np.ndarray:
        return self.read(group)["time"].to_numpy()

    def time_range(self, group: int) -> None:
        return None


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("time_window", [0, 6])
def test_examples_of_a_batch_are_found_in_the_split(shuffle, time_window):
    source = Timed(np.array([5, 7, 4, 6, 8, 3, 3, 5]))  # 41 rows: lanes of 11 and 10
    options = dict(batch_size=12, seed=3, shuffle=shuffle, time_window=time_window)
    schema = Schema.select(dataclasses.replace(CARD, time="time"))
    position = lanes.start_position(
        source, lanes=4, seed=3, shuffle=shuffle, time_window=time_window
    )
    starts = np.cumsum([0, *source.rows_per_group])
    batches = lanes.read_batches(source, schema, lanes=4, num_epochs=2, **options)
    num_padded = 0
    for batch, after in batches:
        found = lanes.examples_at(
            source, position, range(12), time_column="time", **options
        )
        assert batch["ids"][:, 0].tolist() == [starts[g] + row for g, row in found]
        num_padded += int((batch["weight"] == 0).sum())
        position = after
    assert num_padded == 2 * (48 - 41)


# ---------------------------------------------------------------- where rows stand


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    rows=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(
        lambda rows: sum(rows) >= 4
    ),
    num_lanes=st.sampled_from([1, 2, 4]),
)
def test_row_numbers_are_those_of_the_batches(rows, num_lanes):
    source = numbered(*rows)
    batches = rows_of(read(source, lanes_=num_lanes, shuffle=False))
    found = lanes.row_numbers(source, batch_size=8, lanes=num_lanes)
    expected = [[row if weight else -1 for row, weight in batch] for batch in batches]
    assert [own.tolist() for own in found] == expected


def test_one_lane_keeps_to_the_order_of_the_split():
    found = lanes.row_numbers(numbered(5, 9, 3), batch_size=8, lanes=1)
    assert np.concatenate(list(found)).tolist() == [*range(17), *[-1] * 7]
