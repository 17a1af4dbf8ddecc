"""What the processes of one run agree on. Alone, each of these is what one process would do anyway."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def is_grouped() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Whether this is rank 0, which alone makes, renames and removes."""
    return not is_grouped() or dist.get_rank() == 0


def agree(failure: str | None) -> str | None:
    """The first failure of any rank; None if there is none. It waits for all."""
    if not is_grouped():
        return failure
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    return next((found for found in failures if found is not None), None)


def from_first(action: Callable[[], T]) -> T:
    """What the action gives on rank 0; the others do not run it."""
    if not is_grouped():
        return action()
    box: list[T | None] = [action() if is_first() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]
