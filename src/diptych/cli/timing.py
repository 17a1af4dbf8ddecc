"""Where a command's time goes."""

import os
import sys
import time
from pathlib import Path


class Laps:
    """Counts from the start of the process, where the system tells it; elsewhere from its own."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._laps = [("start", _age_s())]

    def end(self, what: str) -> None:
        """All since the last one was this."""
        now = time.perf_counter()
        self._laps.append((what, now - self._last))
        self._last = now

    def tell(self) -> None:
        """A line each on standard error, and the sum."""
        laps = [*self._laps, ("in all", sum(seconds for _, seconds in self._laps))]
        sys.stderr.write("".join(f"{seconds:7.3f} s  {what}\n" for what, seconds in laps))


def _age_s() -> float:
    """Of this process."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0
