"""Whether probabilities mean what they say (Guo et al. 2017, sec. 2). Shapes: N images, K bins."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from numpy import ndarray

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Answers by how sure the model was of them."""

    count: Int64[ndarray, " K"]
    confidence: Float[ndarray, " K"]
    """Mean probability of each bin's answers; 0 where there are none."""
    accuracy: Float[ndarray, " K"]
    """Share of them that is right."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of both, weighted by count; within [0, 1]."""
        return float((np.abs(self.confidence - self.accuracy) * self.count).sum() / max(1, self.count.sum()))


def calibration(probability: Float32[ndarray, " N"], is_right: Bool[ndarray, " N"], *, bins: int = BINS) -> Calibration:
    """Bins of equal width over [0, 1].

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
