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

All-to-all is held up in the middle of the longest dimension. Of what a chip has for all
chips, itself included, half is for the other half of the n chips in its line, so n / 4
of it pass through one link, or through two where the ends are joined. Sums by ring use
all links of a chip at once.
"""

from collections.abc import Mapping
import dataclasses

from rankax.observe.peaks import Peaks
from rankax.parallel.topology import Topology

# Where ends are joined: in 3D slices of whole cubes, in 2D ones along a side of the pod
# ("How to Scale Your Model", jax-ml.github.io/scaling-book, "How to Think About TPUs").
_CUBE, _POD_SIDE = 4, 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds that a step takes for each kind of work.

    Attributes:
        batch_size: B.
        arithmetic: of matrix products, seconds.
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
        return _on_torus(peaks, topology, swapped, summed)
    count, near = topology.num_devices, peaks.num_neighbours
    if not near or count <= near:
        return (swapped + summed) / peaks.link_rate
    away = swapped * (count - near) / (count - 1)
    network = (away + summed / near) / (peaks.network_rate or peaks.link_rate)
    return network + (swapped - away + summed) / peaks.link_rate


def _on_torus(peaks: Peaks, topology: Topology, swapped: float, summed: float) -> float:
    dims, count = topology.dims, topology.num_devices
    sides = [size for size in dims if size > 1]
    if not sides:  # the two devices of one chip
        return (swapped + summed) / peaks.link_rate
    per_link = peaks.link_rate / (2 * len(dims))
    is_whole = all(size % _CUBE == 0 for size in dims)
    swap_seconds, used = 0.0, 0.0
    for size in sides:
        is_ring = size == _POD_SIDE if len(dims) == 2 else is_whole
        through = swapped * count / (count - 1) * size / 4
        swap_seconds = max(swap_seconds, through / (per_link * (2 if is_ring else 1)))
        used += 2 if is_ring else 2 * (size - 1) / size  # of a chip, on average
    return swap_seconds + summed / (used * per_link)
