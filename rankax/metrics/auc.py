"""Area under the ROC curve: exact by sorting, or from a mergeable histogram.

AUC = P(p⁺ > p⁻) + ½·P(p⁺ = p⁻) over random positive and negative examples, each drawn
in proportion to its weight. `AucHistogram` reads every example once, in any order, in
constant memory; it counts the pairs that share a bin as ties, and so errs by at most
`bound`, which it knows.
"""

import numpy as np

# A float32 in [0, 1] compares like its own bit pattern. The top 20 of the 32 bits
# (sign, exponent, 11 bits of mantissa) make bins of relative width 2^-11, fine where a
# click-through rate is small. From 1/2 up the same is done to 1 - p, which float32
# holds exactly there, so that a model sure of its positives is ranked as finely.
_SHIFT = 12
_HALF = 0x3F000000 >> _SHIFT  # bits of 0.5
NUM_BINS = 2 * _HALF + 1

# Resampling does not need more groups than this. Bins are merged by their shares of
# both classes, so that a group has about 2/4096 of each at most and rare positives do
# not tie with many negatives: the ties move the AUC by some 1e-6, far below the width
# of the interval of so many positives.
_BOOTSTRAP_GROUPS = 4096


class AucHistogram:
    """AUC of a stream of examples, in two histograms of float64 [NUM_BINS] (8 MB).

    Weights are summed in float64, which counts unweighted examples exactly up to 2^53.
    """

    def __init__(self) -> None:
        """Starts without examples."""
        self.weight_sums = np.zeros((2, NUM_BINS))  # negatives, positives
        self._squares = np.zeros(2)  # Σ w² of each class, for the interval

    def update(
        self,
        probability: np.ndarray,
        label: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> None:
        """Adds examples.

        Args:
            probability: [n] float32 in [0, 1].
            label: [n], 0 or 1.
            weight: [n], not negative; 0 = padding, not looked at; None = all 1.

        Raises:
            ValueError: NaN, a probability outside [0, 1], a label outside {0, 1}, a
                negative weight, or unequal lengths.
        """
        probability, label, weight = checked(probability, label, weight)
        np.add.at(
            self.weight_sums.reshape(-1),
            bins(probability) + label.astype(np.int64) * NUM_BINS,
            weight,
        )
        self._squares += np.bincount(label, weights=weight * weight, minlength=2)

    def merge(self, other: "AucHistogram") -> None:
        """Adds the examples that another histogram has seen."""
        self.weight_sums += other.weight_sums
        self._squares += other._squares

    @property
    def value(self) -> float:
        """AUC, pairs inside a bin counted half; nan if a class has no examples."""
        return float(_area(*self.weight_sums))

    @property
    def bound(self) -> float:
        """Largest possible error of `value`: ½·Σᵢ tpᵢ·fpᵢ / (P·N) over the bins i."""
        negatives, positives = self.weight_sums
        pairs = negatives.sum() * positives.sum()
        return float(0.5 * (negatives @ positives) / pairs) if pairs else float("nan")

    @property
    def draw_weights(self) -> np.ndarray:
        """Weights c = Σw² / Σw [2] of negatives and positives.

        The examples of a class vary about like Σw / c draws of weight c: right if
        weights do not depend on the probability within a class. A class without
        examples gets that of the other.
        """
        totals = self.weight_sums.sum(axis=1)
        with np.errstate(invalid="ignore"):
            weights = self._squares / totals
        return np.where(totals > 0, weights, weights[::-1])

    def interval(
        self, level: float = 0.95, *, num_replicates: int = 200, seed: int = 0
    ) -> tuple[float, float]:
        """Returns the bootstrap percentile interval of the AUC over examples.

        Each replicate gives every example a Poisson(1) multiplicity; sums of those are
        Poisson again, so bins are resampled instead of examples. Weighted examples
        count as draws of `draw_weights`. It covers the choice of test examples as if
        they were independent, not the seed of the training.
        """
        filled = np.flatnonzero(self.weight_sums.any(axis=0))
        sums = self.weight_sums[:, filled]
        totals = sums.sum(axis=1)
        if not totals.all():
            return float("nan"), float("nan")
        # Neighbours of one class may become one group at no loss, others stay apart.
        is_mixed = sums.all(axis=0)
        kind = np.where(is_mixed, np.arange(len(filled)), np.where(sums[0], -1, -2))
        starts = run_starts(kind)
        if len(starts) > _BOOTSTRAP_GROUPS:
            shares = (sums / totals[:, None]).sum(axis=0)
            starts = equal_mass_starts(shares, _BOOTSTRAP_GROUPS)
        sums = np.add.reduceat(sums, starts, axis=1)
        scale = self.draw_weights[:, None]
        rng = np.random.default_rng(seed)
        replicates = np.array(
            [_area(*(rng.poisson(sums / scale) * scale)) for _ in range(num_replicates)]
        )
        tail = (1 - level) / 2
        low, high = np.nanquantile(replicates, (tail, 1 - tail))
        return float(low), float(high)


def exact(
    probability: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """Returns the AUC by sorting, ties counted half; nan if a class is missing.

    Arguments and errors are those of `AucHistogram.update`.
    """
    probability, label, weight = checked(probability, label, weight)
    order = np.argsort(probability)
    starts = run_starts(probability[order])
    return float(_area(*class_sums(label[order], weight[order], starts)))


def checked(
    probability: np.ndarray, label: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probability float32, label int8 and weight float64 without padding.

    Raises:
        ValueError: see `AucHistogram.update`.
    """
    probability = np.asarray(probability, np.float32) + np.float32(0)  # -0.0 -> 0.0
    label = np.asarray(label)
    weight = np.ones(len(label)) if weight is None else np.asarray(weight, np.float64)
    if not probability.shape == label.shape == weight.shape or label.ndim != 1:
        raise ValueError(
            f"probability {list(probability.shape)}, label {list(label.shape)} and "
            f"weight {list(weight.shape)} must be of one length [n]"
        )
    # Padding repeats real examples, but nobody should have to rely on that.
    if not np.all(weight > 0):
        _refuse(~(weight >= 0), weight, "weights", "negative or NaN")
        real = weight > 0
        probability, label, weight = probability[real], label[real], weight[real]
    # Written so that NaN, for which every comparison is false, is refused too.
    outside = ~((probability >= 0) & (probability <= 1))
    _refuse(outside, probability, "probabilities", "NaN or outside [0, 1]")
    _refuse(~((label == 0) | (label == 1)), label, "labels", "not 0 or 1")
    return probability, label.astype(np.int8), weight


def _refuse(bad: np.ndarray, values: np.ndarray, what: str, why: str) -> None:
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{bad.sum()} of {len(values)} {what} are {why}: the first is "
            f"{values[first]} at example {first}"
        )


def bins(probability: np.ndarray) -> np.ndarray:
    """Returns the bin int64 [n] of float32 probabilities [n]; it never decreases."""
    upper = probability >= 0.5
    distance = np.where(upper, np.float32(1) - probability, probability)
    index = (distance.view(np.uint32) >> _SHIFT).astype(np.int64)
    return np.where(upper, 2 * _HALF - index, index)


def bin_middles(index: np.ndarray) -> np.ndarray:
    """Returns the middle float64 [n] of bins [n], to 2^-12 of min(p, 1 - p)."""
    upper = index >= _HALF
    distance = np.where(upper, 2 * _HALF - index, index).astype(np.uint32)
    edges = np.stack([distance, distance + 1]) << _SHIFT
    middle = np.minimum(edges.view(np.float32), np.float32(0.5)).mean(0, np.float64)
    return np.where(upper, 1 - middle, middle)


def equal_mass_starts(mass: np.ndarray, num_groups: int) -> np.ndarray:
    """Returns where to start at most `num_groups` runs of about equal mass [n]."""
    before = np.cumsum(mass) - mass
    group = np.floor(before / mass.sum() * num_groups).astype(np.int64)
    return run_starts(group)


def run_starts(values: np.ndarray) -> np.ndarray:
    """Returns where runs of equal values start in a sorted array [n]."""
    return np.flatnonzero(np.r_[len(values) > 0, values[1:] != values[:-1]])


def class_sums(label: np.ndarray, weight: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the weight float64 [2, runs] of negatives and positives in each run."""
    if not len(starts):
        return np.zeros((2, 0))
    by_class = np.stack([weight * (label == 0), weight * (label == 1)])
    return np.add.reduceat(by_class, starts, axis=1)


def _area(negatives: np.ndarray, positives: np.ndarray) -> float:
    """AUC of class weights [n] in increasing order of probability."""
    pairs = negatives.sum() * positives.sum()
    if not pairs:
        return float("nan")
    below = np.cumsum(negatives) - 0.5 * negatives
    return (below @ positives) / pairs
