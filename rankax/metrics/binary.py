"""Log loss, normalized entropy and calibration of a binary task, from float64 sums.

With weights w, labels y, logits z, p = 1 / (1 + e^-z) and base rate r = Σwy / Σw:

    log_loss           = Σ w·(log(1 + e^z) - y·z) / Σw
    normalized_entropy = log_loss / (-r·log r - (1 - r)·log(1 - r))
    calibration        = Σwp / Σwy

The log loss is taken from logits and is not clipped. Clipping probabilities at 1e-7,
as is common, changes only examples that are wrong with |z| > 16.1.
"""

import numpy as np
from scipy import special

# Only for log losses of probabilities, whose logits are not known.
CLIP = 1e-7


def probability(logits: np.ndarray) -> np.ndarray:
    """Returns sigmoid(logits) float32 [n], rounded once from float64."""
    return special.expit(np.asarray(logits, np.float64)).astype(np.float32)


def example_loss(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns log(1 + e^z) - y·z of each example, float64 [n]."""
    z = np.asarray(logits, np.float64)
    return np.logaddexp(0, z) - label * z


def log_loss_of_probability(
    probability: np.ndarray, label: np.ndarray, weight: np.ndarray
) -> float:
    """Returns Σ w·loss of probabilities [n], clipped to [CLIP, 1 - CLIP]."""
    p = np.clip(np.asarray(probability, np.float64), CLIP, 1 - CLIP)
    return float(-(weight @ np.where(label == 1, np.log(p), np.log1p(-p))))


class BinarySums:
    """Sums over a stream of examples from which the averages follow."""

    def __init__(self) -> None:
        """Starts without examples."""
        self.num_examples = 0  # of positive weight
        self.weight = 0.0
        self.label = 0.0
        self.probability = 0.0
        self.loss = 0.0

    def update(self, logits: np.ndarray, label: np.ndarray, weight: np.ndarray) -> None:
        """Adds examples.

        Args:
            logits: [n] float32, finite.
            label: [n], 0 or 1.
            weight: [n], not negative.

        Raises:
            ValueError: a logit is NaN or infinite.
        """
        weight = np.asarray(weight, np.float64)
        real = weight > 0
        z = np.asarray(logits, np.float64)[real]
        y = np.asarray(label, np.float64)[real]
        weight = weight[real]
        bad = ~np.isfinite(z)
        if bad.any():
            raise ValueError(
                f"{bad.sum()} of {len(z)} logits are NaN or infinite: the model has "
                "diverged; lower the learning rate or set optimizer.dense.clip_norm"
            )
        self.num_examples += len(z)
        self.weight += float(weight.sum())
        self.label += float(weight @ y)
        self.probability += float(weight @ special.expit(z))
        self.loss += float(weight @ example_loss(z, y))

    def merge(self, other: "BinarySums") -> None:
        """Adds the examples that another state has seen."""
        self.num_examples += other.num_examples
        self.weight += other.weight
        self.label += other.label
        self.probability += other.probability
        self.loss += other.loss

    @property
    def log_loss(self) -> float:
        """Mean log loss in nats; nan without examples."""
        return _ratio(self.loss, self.weight)

    @property
    def positive_rate(self) -> float:
        """Base rate r; nan without examples."""
        return _ratio(self.label, self.weight)

    @property
    def normalized_entropy(self) -> float:
        """Log loss over that of always predicting r; nan if a class is missing."""
        rate = self.positive_rate
        if min(rate, 1 - rate) < 1e-12:  # as sums of weights are rounded
            return float("nan")
        return _ratio(self.log_loss, float(special.entr(rate) + special.entr(1 - rate)))

    @property
    def calibration(self) -> float:
        """Predicted over observed positives, 1 is best; nan without positives."""
        return _ratio(self.probability, self.label)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")
