"""The past of each target row: a user's latest events, strictly before its time.

    past = past_events(
        user=user, time=time, event_user=who, event_time=when, max_length=50
    )
    table.append_column("watched_video", past.take(event_video))

A history must not know its target. The target row may stand among the events, so what
happened at its very time is left out too: in a feed that is its page, in data that
know only days it is its day.
"""

import dataclasses

import numpy as np
import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Past:
    """For n target rows, which of m events are their histories.

    It holds no list, so it is small however long the histories are: `rows` and `take`
    make the lists of a chunk of rows at a time.

    Attributes:
        order: [m] the events, user by user, each user's oldest first.
        ends: [n] where in `order` the past of each row ends.
        num_earlier: [n] how many events it has, however long the history may be.
        max_length: how many of them, the latest, are the row's history.
    """

    order: np.ndarray
    ends: np.ndarray
    num_earlier: np.ndarray
    max_length: int

    def rows(self, places: np.ndarray) -> "Past":
        """Returns the same of some of the rows."""
        return dataclasses.replace(
            self, ends=self.ends[places], num_earlier=self.num_earlier[places]
        )

    def take(self, values: np.ndarray | pa.Array) -> pa.ListArray:
        """Returns a column of the events [m] as one list a row, oldest event first."""
        lengths = np.minimum(self.num_earlier, self.max_length)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        # Event j of a row is order[end - length + j]; all rows in one stroke.
        shift = np.repeat(self.ends - offsets[1:], lengths)
        events = self.order[np.arange(offsets[-1]) + shift]
        elements = pa.array(values).take(pa.array(events))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), elements)


def past_events(
    *,
    user: np.ndarray,
    time: np.ndarray,
    event_user: np.ndarray,
    event_time: np.ndarray,
    max_length: int,
) -> Past:
    """Finds the latest events of each row's user whose time is less than the row's.

    Args:
        user: [n] integers.
        time: [n] integers, in the unit of `event_time`.
        event_user: [m] integers.
        event_time: [m] integers; events of one user and time stay in the given order.
        max_length: how many events a row gets at most.
    """
    num_events = len(event_user)
    if not num_events:
        none = np.zeros(len(user), np.int64)
        return Past(np.zeros(0, np.int64), none, none, max_length)
    first, last = int(event_time.min()), int(event_time.max())
    users = np.unique(event_user)
    if len(users) * (last - first + 2) > 2**62:
        times, event_time = np.unique(event_time, return_inverse=True)
        time, first, last = np.searchsorted(times, time), 0, len(times) - 1
    # A pair (user, time) becomes one integer that sorts like the pair.
    width = last - first + 2
    event_key = np.searchsorted(users, event_user) * width + (event_time - first)
    order = np.argsort(event_key, kind="stable")
    ordered = event_key[order]

    code = np.searchsorted(users, user)
    is_known = users[np.minimum(code, len(users) - 1)] == user
    offset = np.where(is_known, np.clip(time, first, last + 1) - first, 0)
    key = code * width + offset
    # Sorted keys are looked up several times faster.
    by_key = np.argsort(key)
    end = np.empty(len(key), np.int64)
    end[by_key] = np.searchsorted(ordered, key[by_key])
    start = np.searchsorted(ordered, np.arange(len(users) + 1) * width)[code]
    return Past(order, end, end - start, max_length)
