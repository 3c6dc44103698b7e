"""Random numbers that are functions of a counter, and Zipf's law.

A generator with a state can only be read from its start. Here the i-th number of a
stream is a hash of i (SplitMix64: Steele, Lea and Flood, OOPSLA 2014), so rows can be
made in any order and in any pieces. Integer results are the same on every machine;
`normal` may differ in the last bit where the mathematics library does.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FINALIZER = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


class CounterRandom:
    """Independent streams, told apart by name, of one seed."""

    def __init__(self, seed: int):
        """Prepares the streams; costs nothing."""
        self._seed = seed
        self._starts: dict[str, np.uint64] = {}

    def bits(self, stream: str, counter: np.ndarray) -> np.ndarray:
        """Returns one uniform uint64 per counter (integers of any shape)."""
        if stream not in self._starts:
            name = f"{self._seed}/{stream}".encode()
            digest = hashlib.blake2b(name, digest_size=8).digest()
            self._starts[stream] = np.uint64(int.from_bytes(digest, "little"))
        x = counter.astype(np.uint64)  # a copy: the rest works in place
        x *= _GOLDEN
        x += self._starts[stream]
        for shift, factor in _FINALIZER:
            x ^= x >> shift
            x *= factor
        x ^= x >> np.uint64(31)
        return x

    def uniform(self, stream: str, counter: np.ndarray) -> np.ndarray:
        """Returns float64 in [0, 1), multiples of 2^-53."""
        return (self.bits(stream, counter) >> np.uint64(11)) * 2.0**-53

    def normal(self, stream: str, counter: np.ndarray) -> np.ndarray:
        """Returns standard normal float64, by Box and Muller's method."""
        distance = np.sqrt(-2 * np.log1p(-self.uniform(f"{stream}/distance", counter)))
        angle = 2 * np.pi * self.uniform(f"{stream}/angle", counter)
        return distance * np.cos(angle)


class Zipf:
    """Ids 0 .. V-1 with probability ∝ (id + 1)^-exponent, by table lookup.

    The inverse of the distribution function is tabulated at 2^bits equal steps, at
    least eight per id: a draw is the upper bits of a hash and one lookup.

    Attributes:
        probability: float64 [V], of the table as it is.
    """

    def __init__(self, num_ids: int, exponent: float):
        """Builds the table: 256 KiB, or 4 bytes · 8 to 16 per id if that is more."""
        num_bits = max(16, (8 * num_ids - 1).bit_length())
        mass = np.arange(1, num_ids + 1, dtype=np.float64) ** -exponent
        ends = np.cumsum(mass) * (2**num_bits / mass.sum())
        steps = np.diff(np.rint(ends).astype(np.int64), prepend=0)
        self._shift = np.uint64(64 - num_bits)
        self._table = np.repeat(np.arange(num_ids, dtype=np.int32), steps)
        self.probability = steps / 2**num_bits

    def draw(self, bits: np.ndarray) -> np.ndarray:
        """Maps uniform uint64 to ids, int32."""
        return self._table[bits >> self._shift]
