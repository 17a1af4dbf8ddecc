"""The elapsed time of a run, on which all of its ranks agree."""

import time

import torch

from diptych.device.distributed import Ranks


class RunClock:
    """Elapsed seconds of a run, and whether any rank received a stop signal. All ranks see the same values.

    Args:
        ranks: the ranks of the run.
        elapsed_s: seconds of training before the run was resumed.
    """

    def __init__(self, ranks: Ranks, *, elapsed_s: float = 0.0) -> None:
        self._ranks = ranks
        self._started = time.monotonic() - elapsed_s
        self.elapsed_s = elapsed_s
        """The longest time of any rank, at the last call of `agree`."""
        self.is_stopped = False
        """Whether any rank had received a stop signal at the last call of `agree`."""

    def now(self) -> float:
        """Seconds since the run started, by the clock of this rank."""
        return time.monotonic() - self._started

    def agree(self, *, is_stopped: bool) -> None:
        """Exchange the elapsed time, and whether this rank received a stop signal. All ranks must call it."""
        own = torch.tensor([self.now(), float(is_stopped)], dtype=torch.float64)
        self.elapsed_s, stop = self._ranks.max(own).tolist()
        self.is_stopped = stop > 0
