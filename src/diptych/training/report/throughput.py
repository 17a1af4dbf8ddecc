"""How fast a run goes, what it waits for, and what would help."""

import math
import os
import time
from dataclasses import dataclass

from diptych.core.program import command
from diptych.data.batches.batch import Batch

_WINDOW_S = 5.0
_MIN_TRAIN_S = 20.0
"""Seconds of training before the share of waiting says anything: the first batches are always waited for."""
_MUCH = 0.10


class Throughput:
    """Adds up the time of each step; validation and checkpoints do not count."""

    def __init__(self, *, batch_size: int, image_pixels: int, num_workers: int, is_decoded: bool) -> None:
        self.batch_size = batch_size
        self.image_pixels = image_pixels
        self.num_workers = num_workers
        self.is_decoded = is_decoded
        self.wait_s = self.train_s = self._read_s = 0.0
        self._source_pixels = self._steps = 0
        self._recent: list[tuple[float, int]] = []
        self._has_advised = False

    def pause(self) -> None:
        """Something else is done now: speed is measured over training alone."""
        self._recent = []

    def record_step(self, batch: Batch, *, waited_s: float, took_s: float) -> None:
        """A step is done that took so long, of which the first part was waiting for its batch."""
        now = time.monotonic()
        self._steps += 1
        self.wait_s += waited_s
        self.train_s += took_s
        self._read_s += batch.read_s
        self._source_pixels += batch.source_pixels
        before = self._recent or [(now - took_s, self._steps - 1)]
        self._recent = [(at, step) for at, step in before if now - at < _WINDOW_S] + [(now, self._steps)]

    @property
    def pairs_per_s(self) -> float:
        """Over the last few seconds."""
        if not self._recent:
            return 0.0
        (first_at, first_step), (last_at, last_step) = self._recent[0], self._recent[-1]
        return (last_step - first_step) * self.batch_size / max(last_at - first_at, 1e-9)

    @property
    def data_wait(self) -> float:
        """Share of the time that was spent waiting for data, within [0, 1]."""
        return self.wait_s / self.train_s if self.train_s else 0.0

    def advice(self) -> str | None:
        """What would shorten the waiting, once, when it is a tenth of the time or more."""
        if self._has_advised or self.train_s < _MIN_TRAIN_S or self.data_wait < _MUCH:
            return None
        self._has_advised = True
        pairs = self._steps * self.batch_size
        return advice(
            data_wait=self.data_wait,
            needed_per_s=pairs / max(self.train_s - self.wait_s, 1e-9),
            read_s=self._read_s / pairs,
            shrinks=self._source_pixels / pairs / self.image_pixels,
            setting=Setting(self.num_workers, os.cpu_count() or 1, self.is_decoded),
        )


@dataclass(frozen=True)
class Setting:
    """What the reading of data has to work with."""

    num_workers: int
    cores: int
    is_decoded: bool


def advice(*, data_wait: float, needed_per_s: float, read_s: float, shrinks: float, setting: Setting) -> str:
    """Which of more workers, packing and smaller pictures would help, with the figures that say so.

    Args:
        data_wait: share of time spent waiting.
        needed_per_s: pictures that training could take without waiting.
        read_s: seconds of one core that a picture costs.
        shrinks: pixels of a picture over those that the model sees of it.
        setting: workers, cores, and whether the pictures are pixels already.
    """
    needed = max(1, math.ceil(needed_per_s * read_s))
    text = (
        f"{data_wait:.0%} of the time is spent waiting for data: a picture takes {1000 * read_s:.1f} ms to read, training "
        f"could take {needed_per_s:,.0f} a second"
    )
    ways = []
    if needed > setting.num_workers and setting.num_workers < setting.cores:
        ways.append(
            f"more workers (--data.workers {min(needed, setting.cores)}; this machine has {setting.cores} cores)"
        )
    if not setting.is_decoded and shrinks > 1.5:
        ways.append(f"decoding once ({command('data', 'pack')}, then --data packed:DIR)")
    elif shrinks > 4:
        ways.append(f"smaller pictures (they have {shrinks:.0f} times the pixels that the model sees)")
    if not ways:
        ways.append("a faster disk, or less augmentation")
    return f"{text}. What would help: {'; or '.join(ways)}"
