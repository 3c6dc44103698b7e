from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pyarrow as pa
import pytest

from data_pipelines.engine import histories

# Few users and times, so that nearly every example has ties.
PAIRS = st.lists(st.tuples(st.integers(-1, 3), st.integers(-2, 4)), max_size=25)


def past_by_loop(rows, events, max_length, *, is_before=lambda event, row: event < row):
    """Lists of event positions, found by looking at every event of every row."""
    lists = []
    for user, time in rows:
        found = [
            (event_time, place)
            for place, (event_user, event_time) in enumerate(events)
            if event_user == user and is_before(event_time, time)
        ]
        lists.append([place for _, place in sorted(found)])
    return [one[-max_length:] for one in lists], [len(one) for one in lists]


def columns(pairs) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(pairs, np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def past_of(rows, events, max_length: int) -> histories.Past:
    user, time = columns(rows)
    event_user, event_time = columns(events)
    return histories.past_events(
        user=user,
        time=time,
        event_user=event_user,
        event_time=event_time,
        max_length=max_length,
    )


@settings(max_examples=300, deadline=None)
@given(rows=PAIRS, events=PAIRS, max_length=st.integers(1, 6))
def test_histories_are_those_of_a_loop_over_all_events(rows, events, max_length):
    past = past_of(rows, events, max_length)
    expected, num_earlier = past_by_loop(rows, events, max_length)
    assert past.take(np.arange(len(events))).to_pylist() == expected
    assert past.num_earlier.tolist() == num_earlier


@settings(max_examples=100, deadline=None)
@given(rows=PAIRS, max_length=st.integers(1, 6))
def test_rows_that_are_events_themselves_are_never_in_their_own_history(
    rows, max_length
):
    past = past_of(rows, rows, max_length)
    taken = past.take(np.arange(len(rows))).to_pylist()
    for place, ((user, time), history) in enumerate(zip(rows, taken, strict=True)):
        assert place not in history
        assert all(rows[e][0] == user and rows[e][1] < time for e in history)
        times = [rows[e][1] for e in history]
        assert times == sorted(times)


def test_the_loop_tells_a_history_that_takes_in_the_time_of_the_target():
    rows = events = [(1, 5), (1, 5), (1, 6)]
    strict, _ = past_by_loop(rows, events, 9)
    loose, _ = past_by_loop(rows, events, 9, is_before=lambda event, row: event <= row)
    assert past_of(rows, events, 9).take(np.arange(3)).to_pylist() == strict
    assert strict == [[], [], [0, 1]] and loose == [[0, 1], [0, 1], [0, 1, 2]]


@settings(max_examples=100, deadline=None)
@given(rows=PAIRS, events=PAIRS, data=st.data())
def test_the_histories_of_some_rows_are_theirs(rows, events, data):
    past = past_of(rows, events, 3)
    lists = past.take(np.arange(len(events))).to_pylist()
    places = data.draw(st.lists(st.integers(0, max(len(rows) - 1, 0)), max_size=9))
    places = np.array(places if rows else [], np.int64)
    some = past.rows(places)
    assert some.take(np.arange(len(events))).to_pylist() == [lists[p] for p in places]
    assert some.num_earlier.tolist() == past.num_earlier[places].tolist()


def test_times_too_far_apart_for_one_integer_keep_their_order():
    ends = (-(2**61), 2**61)
    rows = [(user, time) for user in (1, 2, 3) for time in (*ends, 0, 2**62)]
    events = [(user, time) for user in (3, 1) for time in (ends[1], ends[0], 5, 5)]
    expected, num_earlier = past_by_loop(rows, events, 9)
    past = past_of(rows, events, 9)
    assert past.take(np.arange(8)).to_pylist() == expected
    assert past.num_earlier.tolist() == num_earlier


def test_large_users_and_times_keep_their_order():
    late = 1_652_025_130_564  # milliseconds, beyond 32 bits
    rows = [(2**40, late), (7, late)]
    events = [(2**40, late - 1), (7, late + 1), (2**40, late - 2), (2**40, late)]
    assert past_of(rows, events, 5).take(np.arange(4)).to_pylist() == [[2, 0], []]


def test_a_missing_value_of_an_event_stays_missing_in_its_place():
    past = past_of([(1, 3), (1, 1)], [(1, 2), (1, 1)], 5)
    lists = past.take(pa.array([None, 8], pa.int64()))
    assert lists.to_pylist() == [[8, None], []]
    assert lists.null_count == 0 and lists.type == pa.list_(pa.int64())


@pytest.mark.parametrize(("rows", "events"), [([], [(1, 1)]), ([(1, 1)], []), ([], [])])
def test_no_rows_or_no_events_give_empty_histories(rows, events):
    past = past_of(rows, events, 3)
    assert past.take(np.arange(len(events))).to_pylist() == [[] for _ in rows]
