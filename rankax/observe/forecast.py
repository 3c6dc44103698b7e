"""How fast a step can be at most on chips that are not there: a roofline.

    arithmetic    3 · FLOPs of matrix products of the forward pass / peak
    memory        bytes that must pass between chip and memory / its rate
    links         bytes that a device sends / the rate of its links

If the three overlap perfectly, a step takes the longest of them; if nothing overlaps,
their sum. Real steps also wait for what no data sheet tells, above all for scattered
rows, so the larger of the two speeds is a bound and neither is a measurement.

The memory's bytes, of one device and step:

    tables        `traffic.table_bytes_per_example`
    dense         weights read forward and backward, gradients written and read, weights
                  and moments read and written: 6 · weights + 2 · moments
    activations   what the backward pass keeps, written once and read once

All-to-all on a torus goes h hops along a dimension of n chips, n / 4 on average where
the ends are joined and (n² − 1) / 3n where they are not, and loads each of its links by
as much; sums by ring use all links of a chip at once.
"""

from collections.abc import Iterable, Mapping
import dataclasses

from rankax.observe.peaks import Peaks
from rankax.parallel.topology import Topology

# The ends of a slice are joined if all its dimensions are multiples of these: whole
# cubes of 3D machines, the whole pod of 2D ones.
_JOINED_3D, _JOINED_2D = 4, 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds that a step takes for each kind of work.

    Attributes:
        batch_size: B.
        arithmetic: of matrix products, seconds; None = unknown.
        memory: seconds.
        links: seconds.
    """

    batch_size: int
    arithmetic: float
    memory: float
    links: float

    @property
    def parts(self) -> dict[str, float]:
        """Kind of work -> seconds."""
        return {
            "arithmetic": self.arithmetic,
            "memory": self.memory,
            "links": self.links,
        }

    @property
    def bound(self) -> str:
        """The kind that takes longest."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def most_examples_per_second(self) -> float:
        """If all kinds of work overlap."""
        return self.batch_size / max(self.parts.values())

    @property
    def least_examples_per_second(self) -> float:
        """If none overlap; real steps can be slower still."""
        return self.batch_size / sum(self.parts.values())


def forecast(
    peaks: Peaks,
    topology: Topology,
    *,
    dtype: str,
    batch_size: int,
    product_flops: float,
    memory_bytes: float,
    sent_bytes: Mapping[str, float],
) -> Forecast | None:
    """Returns what the data sheets allow; None where they do not tell.

    Args:
        peaks: of one device.
        topology: how many, and how they are linked.
        dtype: of the operands of products.
        batch_size: B, of all devices.
        product_flops: of one device in a step, forward and backward.
        memory_bytes: of one device in a step.
        sent_bytes: kind of collective -> bytes that one device sends in a step.
    """
    rate = peaks.flops_per_second(dtype)
    if rate is None or not peaks.memory_rate:
        return None
    return Forecast(
        batch_size=batch_size,
        arithmetic=product_flops / rate,
        memory=memory_bytes / peaks.memory_rate,
        links=link_seconds(peaks, topology, sent_bytes),
    )


def link_seconds(
    peaks: Peaks, topology: Topology, sent_bytes: Mapping[str, float]
) -> float:
    """Returns how long the links of the busiest kind are busy; see the module.

    Args:
        peaks: of one device.
        topology: how the devices are linked.
        sent_bytes: kind of collective -> bytes that one device sends.
    """
    swapped = sent_bytes.get("all-to-all", 0.0)
    summed = sum(sent_bytes.values()) - swapped
    if topology.platform == "tpu":
        return _on_torus(peaks, topology.dims, swapped, summed)
    count, near = topology.num_devices, peaks.num_neighbours
    if not near or count <= near:
        return (swapped + summed) / peaks.link_rate
    away = swapped * (count - near) / (count - 1)
    network = (away + summed / near) / (peaks.network_rate or peaks.link_rate)
    return network + (swapped - away + summed) / peaks.link_rate


def _on_torus(
    peaks: Peaks, dims: tuple[int, ...], swapped: float, summed: float
) -> float:
    ports = 2 * len(dims)
    per_link = peaks.link_rate / ports
    joined = _JOINED_2D if len(dims) == 2 else _JOINED_3D
    used, swap_seconds = 0.0, 0.0
    for size in dims:
        if size == 1:
            continue
        is_ring = size % joined == 0 and all(n % joined == 0 for n in dims)
        links = 2.0 if is_ring else 2 * (size - 1) / size  # of a chip, on average
        hops = size / 4 if is_ring else (size**2 - 1) / (3 * size)
        used += links
        swap_seconds = max(swap_seconds, swapped * hops / (links * per_link))
    if not used:  # the two devices of one chip
        return (swapped + summed) / peaks.link_rate
    return swap_seconds + summed / (used * per_link)


def sent_by_kind(collectives: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums (kind, bytes) by kind."""
    total: dict[str, float] = {}
    for kind, size in collectives:
        total[kind] = total.get(kind, 0.0) + size
    return total
