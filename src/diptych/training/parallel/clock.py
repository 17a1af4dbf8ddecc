"""The elapsed time of a run, on which all of its ranks agree."""

import time

import torch

from diptych.device.distributed import Ranks

_PERIOD_S = 5.0
"""Ranks agree at least this often, or after every step if a step takes longer."""


class RunClock:
    """Elapsed seconds of a run, and whether any rank received a stop signal. All ranks see the same values.

    Args:
        ranks: the ranks of the run.
        elapsed_s: seconds of training before the run was resumed.
        every_steps: maximum number of steps between two agreements of several ranks.
    """

    def __init__(self, ranks: Ranks, *, elapsed_s: float = 0.0, every_steps: int = 1) -> None:
        self._ranks = ranks
        self._every_steps = every_steps
        self._last_step: int | None = None
        self._next_step = 0
        self._started = time.monotonic() - elapsed_s
        self.elapsed_s = elapsed_s
        """The longest time of any rank, at the last call of `agree`."""
        self.is_stopped = False
        """Whether any rank had received a stop signal at the last call of `agree`."""

    def now(self) -> float:
        """Seconds since the run started, by the clock of this rank."""
        return time.monotonic() - self._started

    def is_due(self, step: int) -> bool:
        """Whether the ranks should agree after this step. All ranks get the same answer."""
        return self._ranks.size == 1 or step >= self._next_step

    def agree(self, step: int, *, is_stopped: bool) -> None:
        """Exchange the elapsed time, and whether this rank received a stop signal. All ranks must call it.

        Args:
            step: number of completed steps.
            is_stopped: whether this rank received a stop signal.
        """
        own, before_s = torch.tensor([self.now(), float(is_stopped)], dtype=torch.float64), self.elapsed_s
        self.elapsed_s, stop = self._ranks.max(own).tolist()
        self.is_stopped = stop > 0
        steps = step - self._last_step if self._last_step is not None else 0
        most = int(_PERIOD_S * steps / max(self.elapsed_s - before_s, 1e-9)) if steps else 1
        self._last_step, self._next_step = step, step + max(1, min(self._every_steps, most))
