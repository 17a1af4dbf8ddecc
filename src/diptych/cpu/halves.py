"""Two halves of a batch at the same time, each on half of the cores of a CPU.

Threads that share a matrix product wait for each other some thousand times per step; two halves wait twice. A step of
the small model of `benchmarks/train_step.py` takes 8 % less time, one of ViT-B/32 4 % (`docs/log.md`, decision 0024).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import nn

from diptych.models.clip import CLIP
from diptych.models.text_transformer import TextTransformer
from diptych.models.vision_transformer import VisionTransformer

_NUM = 2
"""Threads. A sum of two does not depend on their order, so a gradient does not depend on which half is done first."""
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class ParallelHalves:
    """Two threads with half of the caller's cores each; a `PartRunner` of a training step."""

    num = _NUM

    def __init__(self) -> None:
        whole = torch.get_num_threads()
        ready = Barrier(_NUM)
        self._threads = ThreadPoolExecutor(_NUM, "half", initializer=_take, initargs=(whole // _NUM, ready))
        self.map(lambda _: None, range(_NUM))
        torch.set_num_threads(whole)

    def map(self, work: Callable[[_Given], _Made], given: Sequence[_Given]) -> list[_Made]:
        """The results of `work` for each part, in order.

        Raises:
            Exception: the first that `work` raised, when all are done.
        """
        running = [self._threads.submit(work, one) for one in given]
        for one in running:
            one.exception()
        return [one.result() for one in running]


def _take(share: int, ready: Barrier) -> None:
    torch.get_num_threads()  # Until it was asked, a thread would take the number that another one sets later.
    torch.set_num_threads(share)
    ready.wait()


def can_halve(model: CLIP) -> bool:
    """Whether two halves of a batch give the gradients of the whole batch.

    This holds on a CPU for transformers without dropout. Batch norms need the whole batch, and two threads would draw from one
    generator in no fixed order. A tower that is compiled or uses gradient checkpointing is not halved, either.
    """
    num = torch.get_num_threads()
    return (
        model.log_logit_scale.device.type == "cpu"
        and num >= _NUM
        and num % _NUM == 0
        and not any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
        and all(_is_plain(tower) for tower in (model.image_tower, model.text_tower))
    )


def _is_plain(tower: nn.Module) -> bool:
    if not isinstance(tower, VisionTransformer | TextTransformer):
        return False
    is_compiled = tower._compiled_call_impl is not None
    draws = bool(getattr(tower.config, "patch_dropout", 0))
    return not (is_compiled or draws or tower.transformer.gradient_checkpointing)
