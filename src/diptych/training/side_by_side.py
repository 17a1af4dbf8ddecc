"""Halves of a batch at the same time, each by half of a CPU's cores.

Threads that share a product wait for the slowest of them, some thousand times a step, and for a process that reads ahead beside
them. Two halves wait for each other twice. The small model of `benchmarks/train_step.py` is 8 % faster so, ViT-B/32 4 %
(`docs/log.md`, decision 0024).
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

NUM = 2
"""Threads. Of two summands the order does not matter, so that a weight's gradient is the same whichever comes first."""
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class SideBySide:
    """Two threads that stay, with half of the caller's cores each."""

    def __init__(self) -> None:
        whole = torch.get_num_threads()
        ready = Barrier(NUM)
        self._threads = ThreadPoolExecutor(NUM, "half", initializer=_take, initargs=(whole // NUM, ready))
        self.each(lambda _: None, range(NUM))
        torch.set_num_threads(whole)

    def each(self, work: Callable[[_Given], _Made], given: Sequence[_Given]) -> list[_Made]:
        """What `work` makes of each, in their order.

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
    """Whether halves of a batch give what the whole gives: on a CPU, by transformers that draw nothing at random.

    A batch norm counts the whole batch; what is drawn comes from one generator, whose order two threads would not keep. A tower
    that is compiled, or computed again on the way back, stays as it is.
    """
    num = torch.get_num_threads()
    return (
        model.log_logit_scale.device.type == "cpu"
        and num >= NUM
        and num % NUM == 0
        and not any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
        and all(_is_plain(tower) for tower in (model.image_tower, model.text_tower))
    )


def _is_plain(tower: nn.Module) -> bool:
    if not isinstance(tower, VisionTransformer | TextTransformer):
        return False
    is_compiled = tower._compiled_call_impl is not None
    draws = bool(getattr(tower.config, "patch_dropout", 0))
    return not (is_compiled or draws or tower.transformer.gradient_checkpointing)
