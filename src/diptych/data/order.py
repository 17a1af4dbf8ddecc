"""Which samples each step sees: a pure function of (seed, step)."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diptych.core.randomness import keyed_permutation


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Full batches of an epoch; the remainder waits for another epoch's order."""
    return num_samples // batch_size


def batch_of_step(step: int, *, num_samples: int, batch_size: int, seed: int) -> tuple[int, NDArray[np.int64]]:
    """The epoch that a step (from 0) lies in, and the indices of its batch.

    >>> epoch, indices = batch_of_step(5, num_samples=10, batch_size=4, seed=0)
    >>> epoch, len(indices)
    (2, 4)
    """
    epoch, position = divmod(step, steps_per_epoch(num_samples, batch_size))
    return epoch, _epoch_order(num_samples, seed, epoch)[position * batch_size : (position + 1) * batch_size]


class StepOrder:
    """The (epoch, index) pairs of each batch from one step on, without end; what the loader walks."""

    def __init__(self, *, num_samples: int, batch_size: int, seed: int, first_step: int = 0) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first_step
        while True:
            epoch, indices = batch_of_step(
                step, num_samples=self.num_samples, batch_size=self.batch_size, seed=self.seed
            )
            yield [(epoch, int(index)) for index in indices]
            step += 1


@lru_cache(maxsize=2)
def _epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return keyed_permutation(num_samples, seed, "order", epoch)
