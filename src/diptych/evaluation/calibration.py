"""Calibration of predicted probabilities (Guo et al. 2017, sec. 2). Shapes: N images, K bins."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from numpy import ndarray

BINS = 15
"""Number of bins."""


@dataclass(frozen=True)
class Calibration:
    """Predictions in bins of confidence."""

    count: Int64[ndarray, " K"]
    """Number of predictions in each bin."""
    confidence: Float[ndarray, " K"]
    """Mean predicted probability in each bin; 0 if the bin is empty."""
    accuracy: Float[ndarray, " K"]
    """Share of correct predictions in each bin; 0 if the bin is empty."""

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1]: the mean of |confidence - accuracy| over bins, weighted by count."""
        return float((np.abs(self.confidence - self.accuracy) * self.count).sum() / max(1, self.count.sum()))


def calibration(probability: Float32[ndarray, " N"], is_right: Bool[ndarray, " N"], *, bins: int = BINS) -> Calibration:
    """Return the calibration of predictions, in bins of equal width over [0, 1].

    Args:
        probability: probability of the predicted class, in [0, 1].
        is_right: whether the prediction is correct.
        bins: number of bins.

    >>> found = calibration(np.array([0.9, 0.9, 0.1], dtype=np.float32), np.array([True, False, False]), bins=2)
    >>> round(found.error, 3)
    0.3
    """
    number = np.clip((probability * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    filled = np.maximum(count, 1)
    confidence = np.bincount(number, weights=probability.astype(np.float64), minlength=bins) / filled
    accuracy = np.bincount(number, weights=is_right.astype(np.float64), minlength=bins) / filled
    return Calibration(count=count.astype(np.int64), confidence=confidence, accuracy=accuracy)
