"""Measures how much of a GPU's peak rate a run uses, and its peak memory."""

from collections import deque

import torch

from diptych.data.batches.batch import Batch
from diptych.device.peak import peak_flops
from diptych.models.flops import step_flops
from diptych.training.config import TrainConfig

_NUM_STEPS = 100
"""Number of steps over which operations per pair are averaged; they depend on the lengths of the captions."""


class Utilization:
    """The share of a GPU's peak rate that the operations of training steps use. It measures nothing on other devices.

    The operations are those of `step_flops`: of real caption lengths, without anything that is computed twice to save memory.

    Args:
        config: config of the run, with a precision other than `auto`.
        device: the device of this rank.
        num_ranks: number of ranks, each with a device of this kind.
        peak: peak rate of the device in operations per second; by default that of `peak_flops` for a known CUDA GPU.
    """

    def __init__(
        self, config: TrainConfig, device: torch.device, *, num_ranks: int = 1, peak: float | None = None
    ) -> None:
        self._config, self._device, self._num_ranks = config, device, num_ranks
        if device.type == "cuda":
            assert config.precision != "auto"
            peak = peak or peak_flops(torch.cuda.get_device_name(device), config.precision)
            torch.cuda.reset_peak_memory_stats(device)  # Of an earlier run in this process.
        self._peak = peak
        self._recent = deque[tuple[int, int]](maxlen=_NUM_STEPS)
        """(operations, pairs) of this rank in each of the last steps."""

    def record(self, batch: Batch, *, small_px: int | None = None) -> None:
        """Record a step on a batch of this rank; `small_px` is the side to which its images were resized, if they were."""
        if self._peak is None:
            return
        config, num = self._config, len(batch.keys)
        operations = step_flops(
            config.model,
            num_images=num,
            text_lengths=batch.lengths,
            num_candidates=num * self._num_ranks,
            image_px=small_px,
            frozen_image=config.lock.image,
            frozen_text=config.lock.text,
        )
        self._recent.append((operations, num))

    def share(self, pairs_per_s: float) -> float | None:
        """The share of the peak rate that is used at this speed, within [0, 1]; None if the peak rate is not known.

        Args:
            pairs_per_s: pairs per second, over all ranks.
        """
        if self._peak is None or not self._recent:
            return None
        operations, pairs = (sum(values) for values in zip(*self._recent, strict=True))
        return min(1.0, operations / pairs * pairs_per_s / (self._num_ranks * self._peak))

    def peak_memory_bytes(self) -> int | None:
        """The largest memory that tensors have occupied on a CUDA GPU since the run started; None on other devices."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
