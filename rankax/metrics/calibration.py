"""Calibration table: observed against predicted rates in bins of equal mass."""

import numpy as np

from rankax.metrics import auc


def table(
    histogram: auc.AucHistogram, *, num_bins: int = 20
) -> list[tuple[float, float, float, float]]:
    """Returns (mean predicted, observed rate, weight, count) of bins by rising score.

    Bins hold equal weight, except that examples of one histogram bin stay together;
    there may therefore be fewer than `num_bins`. The mean prediction takes each example
    at the middle of its histogram bin: a relative error of 2^-12 at most.

    Count is how many examples of weight 1 would leave the observed rate r as uncertain:
    its variance is r·(1 - r) / count. With c⁻ and c⁺ the weights of the classes' draws
    (`AucHistogram.draw_weights`) it is weight / (r·c⁻ + (1 - r)·c⁺).
    """
    filled = np.flatnonzero(histogram.weight_sums.any(axis=0))
    if not len(filled):
        return []
    negatives, positives = histogram.weight_sums[:, filled]
    mass = negatives + positives
    starts = auc.equal_mass_starts(mass, num_bins)
    weight = np.add.reduceat(mass, starts)
    predicted = np.add.reduceat(auc.bin_middles(filled) * mass, starts) / weight
    observed = np.add.reduceat(positives, starts) / weight
    negative, positive = histogram.draw_weights
    count = weight / (observed * negative + (1 - observed) * positive)
    columns = (column.tolist() for column in (predicted, observed, weight, count))
    return list(zip(*columns, strict=True))
