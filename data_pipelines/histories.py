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

    Attributes:
        positions: [k] the events of row 0, oldest first, then those of row 1, ...
        lengths: [n] how many events each row has, max_length at most.
        num_earlier: [n] how many it had in all, however long the history may be.
    """

    positions: np.ndarray
    lengths: np.ndarray
    num_earlier: np.ndarray

    def take(self, values: np.ndarray | pa.Array) -> pa.ListArray:
        """Returns a column of the events [m] as one list a row, oldest event first."""
        elements = pa.array(values).take(pa.array(self.positions))
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
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
    # A pair (user, time) becomes one integer that sorts like the pair; a time of a row
    # becomes the number of event times before it, so that "less" is all that counts.
    _, codes = np.unique(np.concatenate([event_user, user]), return_inverse=True)
    times, event_rank = np.unique(event_time, return_inverse=True)
    first_key = codes * (len(times) + 1)
    num_events = len(event_user)
    event_key = first_key[:num_events] + event_rank
    order = np.argsort(event_key, kind="stable")
    ordered = event_key[order]

    first_key = first_key[num_events:]
    start = np.searchsorted(ordered, first_key)
    end = np.searchsorted(ordered, first_key + np.searchsorted(times, time))
    lengths = np.minimum(end - start, max_length)
    # Event j of a row is ordered[end - length + j]; all rows in one stroke.
    row_start = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum()) + np.repeat(end - lengths - row_start, lengths)
    return Past(order[places], lengths, end - start)
