"""The time of a run, which all of its ranks agree on."""

import time

import torch

from diptych.core.distributed import Ranks


class RunClock:
    """Seconds of training, and whether a rank was told to stop. Ranks must call `agree` together, so that all act alike.

    Args:
        ranks: the processes that train the run.
        elapsed_s: seconds that the run took before it was resumed.
    """

    def __init__(self, ranks: Ranks, *, elapsed_s: float = 0.0) -> None:
        self._ranks = ranks
        self._started = time.monotonic() - elapsed_s
        self.elapsed_s = elapsed_s
        """As of the last `agree`: the longest time of any rank."""
        self.is_stopped = False
        """As of the last `agree`."""

    def now(self) -> float:
        """Seconds since the run began, by the clock of this rank."""
        return time.monotonic() - self._started

    def agree(self, *, is_stopped: bool) -> None:
        """Exchange times, and whether this rank was told to stop."""
        own = torch.tensor([self.now(), float(is_stopped)], dtype=torch.float64)
        self.elapsed_s, stop = self._ranks.max(own).tolist()
        self.is_stopped = stop > 0
