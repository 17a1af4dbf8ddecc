"""Compute the two halves of a batch in parallel, each on half of the cores of a CPU.

The threads of a matrix product synchronize about a thousand times per training step; two halves synchronize twice. A step of
the small model of `benchmarks/train_step.py` takes 8 % less time, a step of ViT-B/32 4 % less (`docs/log.md`, decision 0024).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import nn

from diptych.models.clip import CLIP
from diptych.models.layers import Block
from diptych.models.text_transformer import TextTransformer
from diptych.models.vision_transformer import VisionTransformer

_NUM_PARTS = 2
"""Number of parts and threads. The sum of two gradients does not depend on their order."""
_Input = TypeVar("_Input")
_Output = TypeVar("_Output")


class ParallelHalves:
    """Two threads, each with half of the caller's cores. Implements the `PartRunner` protocol of a training step."""

    num = _NUM_PARTS
    """Number of parts that run in parallel."""

    def __init__(self) -> None:
        whole = torch.get_num_threads()
        ready = Barrier(_NUM_PARTS)
        self._threads = ThreadPoolExecutor(
            _NUM_PARTS, "half", initializer=_set_num_threads, initargs=(whole // _NUM_PARTS, ready)
        )
        self.map(lambda _: None, range(_NUM_PARTS))
        torch.set_num_threads(whole)

    def map(self, work: Callable[[_Input], _Output], parts: Sequence[_Input]) -> list[_Output]:
        """Apply `work` to each part in parallel and return the results in order.

        Raises:
            Exception: `work` failed. The error of the first failed part is raised after all parts have finished.
        """
        futures = [self._threads.submit(work, part) for part in parts]
        for future in futures:
            future.exception()  # Waits without raising.
        return [future.result() for future in futures]


def _set_num_threads(share: int, ready: Barrier) -> None:
    torch.get_num_threads()  # Without this call, a later `set_num_threads` of another thread would override the number.
    torch.set_num_threads(share)
    ready.wait()


def can_halve(model: CLIP) -> bool:
    """Whether `ParallelHalves` can be used: the gradients of two halves of a batch add up to those of the whole batch.

    This is the case on a CPU with an even number of threads, for vision and text transformers without dropout. Batch norms
    depend on the whole batch. With dropout, two threads would use one random generator in an undefined order. Towers that are
    compiled or use gradient checkpointing are excluded, too.
    """
    num = torch.get_num_threads()
    return (
        model.log_logit_scale.device.type == "cpu"
        and num >= _NUM_PARTS
        and num % _NUM_PARTS == 0
        and not any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
        and all(_is_plain(tower) for tower in (model.image_tower, model.text_tower))
    )


def _is_plain(tower: nn.Module) -> bool:
    if not isinstance(tower, VisionTransformer | TextTransformer):
        return False
    # `compile_blocks` replaces the class of compiled blocks.
    is_compiled = tower._compiled_call_impl is not None or any(
        type(block) is not Block for block in tower.transformer.blocks
    )
    has_patch_dropout = bool(getattr(tower.config, "patch_dropout", 0))
    return not (is_compiled or has_patch_dropout or tower.transformer.gradient_checkpointing)
