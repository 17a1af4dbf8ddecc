"""The samples of a run that could not be read: noted once each, and too many of them end it."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from diptych.core.distributed import Ranks
from diptych.core.errors import DataError
from diptych.core.files import write_text

_ALWAYS_ALLOWED = 3
"""Of few samples, one that cannot be read is more than a hundredth."""


class SkippedSamples:
    """Key and reason of each, also in a file, which rank 0 writes."""

    def __init__(self, path: Path, ranks: Ranks, *, num_samples: int, max_share: float) -> None:
        self.path = path
        self.num_samples = num_samples
        self.max_share = max_share
        self.reasons: dict[str, str] = {}
        self._writes = ranks.rank == 0

    def go_on(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Know what a checkpoint knows; drop what a killed run noted after it, which may end in half a line."""
        self.reasons = dict(skipped)
        if self._writes and self.path.exists():
            write_text(self.path, _lines(self.reasons))

    def add(self, skipped: Iterable[tuple[str, str]], *, num_tried: int) -> None:
        """Note what a batch could not read.

        The share is of the samples that were tried, so that a hopeless source is found out within a thousand.

        Raises:
            DataError: they are too many.
        """
        new = {key: reason for key, reason in skipped if key not in self.reasons}
        if not new:
            return
        self.reasons.update(new)
        if self._writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_lines(new))
        tried = min(self.num_samples, max(num_tried, 1000))
        few = _ALWAYS_ALLOWED if self.max_share else 0
        if len(self.reasons) > max(few, self.max_share * tried):
            enough = min(0.99, math.ceil(200 * len(self.reasons) / tried) / 100)
            but_few = f" and more than {few}" if few else ""
            first = next(iter(self.reasons.values()))
            raise DataError(
                f"{len(self.reasons)} of {tried} samples cannot be read, more than {100 * self.max_share:g}% "
                f"(data.max_skipped){but_few}; all are listed in {self.path}; the first: {first}. Mend or remove "
                f"them, or allow more: --data.max-skipped {enough:g}"
            )


def _lines(reasons: Mapping[str, str]) -> str:
    return "".join(json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in reasons.items())
