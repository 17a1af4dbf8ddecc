"""Measures the throughput of a run and the time that it waits for data, and gives advice on faster reading."""

import math
import os
import time
from dataclasses import dataclass

from diptych.core.program import command
from diptych.data.batches.batch import Batch

_WINDOW_S = 5.0
_MIN_TRAIN_S = 20.0
"""Minimum training time before advice is given: every run waits for its first batches."""
_MIN_DATA_WAIT = 0.10


class Throughput:
    """Adds up the time of training steps, without validation and checkpoints.

    Args:
        batch_size: number of pairs in a batch, over all ranks.
        image_pixels: number of pixels of an image as the model reads it.
        num_workers: number of processes that read data.
        is_decoded: whether the source stores decoded pixels.
    """

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
        """Restart the measurement of `pairs_per_s`. Call it after time was spent on anything but training."""
        self._recent = []

    def record_step(self, batch: Batch, *, waited_s: float, took_s: float) -> None:
        """Record a step that took `took_s` seconds, of which the first `waited_s` were spent waiting for its batch."""
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
        """Pairs per second over the last 5 seconds; 0 before the first step."""
        if not self._recent:
            return 0.0
        (first_at, first_step), (last_at, last_step) = self._recent[0], self._recent[-1]
        return (last_step - first_step) * self.batch_size / max(last_at - first_at, 1e-9)

    @property
    def data_wait(self) -> float:
        """Share of the training time that was spent waiting for data, within [0, 1]."""
        return self.wait_s / self.train_s if self.train_s else 0.0

    def advice(self) -> str | None:
        """Advice on faster reading, once, if at least 10% of the time was spent waiting for data; otherwise None."""
        if self._has_advised or self.train_s < _MIN_TRAIN_S or self.data_wait < _MIN_DATA_WAIT:
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
    """Resources for reading data."""

    num_workers: int
    cores: int
    is_decoded: bool


def advice(*, data_wait: float, needed_per_s: float, read_s: float, shrinks: float, setting: Setting) -> str:
    """A message that recommends more workers, packing or smaller images, whichever would shorten the wait.

    Args:
        data_wait: share of the training time spent waiting for data, within [0, 1].
        needed_per_s: images per second that training could process without waiting.
        read_s: CPU seconds to read one image.
        shrinks: pixels of a source image divided by the pixels that the model reads.
        setting: workers, CPU cores, and whether the source stores decoded pixels.
    """
    needed = max(1, math.ceil(needed_per_s * read_s))
    text = (
        f"{data_wait:.0%} of the time is spent waiting for data: reading an image takes {1000 * read_s:.1f} ms, and training "
        f"could process {needed_per_s:,.0f} per second"
    )
    ways = []
    if needed > setting.num_workers and setting.num_workers < setting.cores:
        ways.append(
            f"more workers (--data.workers {min(needed, setting.cores)}; this machine has {setting.cores} cores)"
        )
    if not setting.is_decoded and shrinks > 1.5:
        ways.append(f"decoding once ({command('data', 'pack')}, then --data packed:DIR)")
    elif shrinks > 4:
        ways.append(f"smaller images (they have {shrinks:.0f} times as many pixels as the model reads)")
    if not ways:
        ways.append("a faster disk, or less augmentation")
    return f"{text}. What would help: {'; or '.join(ways)}"
