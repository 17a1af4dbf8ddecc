"""Measures how long the parts of a command take."""

import os
import sys
import time
from pathlib import Path


class Stopwatch:
    """Measures the durations of consecutive parts. The first part, `start`, begins with the process if its age is known."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._laps = [("start", _process_age_s())]

    def lap(self, name: str) -> None:
        """End the current part and give it a name."""
        now = time.perf_counter()
        self._laps.append((name, now - self._last))
        self._last = now

    def print(self) -> None:
        """Print the duration of each part and the total to standard error, in seconds."""
        laps = [*self._laps, ("total", sum(seconds for _, seconds in self._laps))]
        sys.stderr.write("".join(f"{seconds:7.3f} s  {name}\n" for name, seconds in laps))


def _process_age_s() -> float:
    """Seconds since this process started; 0 if the system has no `/proc`."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0
