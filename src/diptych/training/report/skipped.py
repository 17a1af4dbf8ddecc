"""Records the samples that a run could not read, and ends the run if there are too many."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from diptych.core.errors import DataError
from diptych.core.files import write_text
from diptych.device.distributed import Ranks

_ALWAYS_ALLOWED = 3
"""In small data, a single unreadable sample can exceed the allowed share."""


class SkippedSamples:
    """Keys of the skipped samples with reasons, also written to a file by rank 0.

    Args:
        path: the file, with one JSON object per line.
        ranks: the ranks of the run.
        num_samples: number of training samples.
        max_share: largest allowed share of skipped samples, within [0, 1].
    """

    def __init__(self, path: Path, ranks: Ranks, *, num_samples: int, max_share: float) -> None:
        self.path = path
        self.num_samples = num_samples
        self.max_share = max_share
        self.reasons: dict[str, str] = {}
        self._ranks = ranks
        self._noted: list[tuple[str, str]] = []

    def go_on(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Replace the record by that of a checkpoint. Samples that a killed run recorded after it are removed from the file."""
        self.reasons = dict(skipped)
        if self._ranks.rank == 0 and self.path.exists():
            write_text(self.path, _lines(self.reasons))

    def note(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Note (key, reason) of samples that a batch of this rank could not read, until the next `exchange`."""
        self._noted += skipped

    def exchange(self, *, num_tried: int) -> None:
        """Record the noted samples of all ranks. All ranks must call it; see `add`.

        Raises:
            DataError: too many samples are unreadable.
        """
        noted, self._noted = self._noted, []
        self.add(self._ranks.gather_if_any(noted), num_tried=num_tried)

    def add(self, skipped: Iterable[tuple[str, str]], *, num_tried: int) -> None:
        """Record the samples that a batch could not read.

        Args:
            skipped: (key, reason) of each sample.
            num_tried: number of samples that the run has read or tried to read so far. The share is computed over at least
                1,000 samples (or all samples, if there are fewer).

        Raises:
            DataError: more than three samples and more than `max_share` of those tried are unreadable.
        """
        new = {key: reason for key, reason in skipped if key not in self.reasons}
        if not new:
            return
        self.reasons.update(new)
        if self._ranks.rank == 0:
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
                f"(data.max_skipped){but_few}; all are listed in {self.path}; the first: {first}. Repair or remove "
                f"them, or allow more: --data.max-skipped {enough:g}"
            )


def _lines(reasons: Mapping[str, str]) -> str:
    return "".join(json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in reasons.items())
