"""Tensors of which each rank holds a part (`fully_shard`): their whole, their part here, and sums over both kinds."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.distributed import Ranks


def is_sharded(tensor: Tensor) -> bool:
    """Whether other ranks hold the rest of it."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What of it lies on this rank, in the same memory."""
    held: Any = tensor
    part: Tensor = held.to_local() if is_sharded(tensor) else tensor
    return part


def numbers(grad: Tensor) -> Tensor:
    """What a gradient holds on this rank, in the same memory; of a gradient of a few rows, which must be coalesced, these."""
    return grad.values() if grad.is_sparse else local(grad)


def copy_tensors(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Overwrite the targets, which are cut as the sources are, or whole. Every rank must call it."""
    if not target:
        return
    if any(map(is_sharded, source)) and not any(map(is_sharded, target)):
        for held, given in zip(source, target, strict=True):
            whole: Any = held
            given.copy_(whole.full_tensor() if is_sharded(held) else held)
    else:
        torch._foreach_copy_([local(tensor) for tensor in target], [local(tensor) for tensor in source])


def copy_model(source: nn.Module, target: nn.Module) -> None:
    """Overwrite weights and buffers of a model with another's; see `copy_tensors`."""
    with torch.no_grad():
        copy_tensors(list(source.parameters()), list(target.parameters()))
        copy_tensors(list(source.buffers()), list(target.buffers()))


def grad_norm(parameters: Iterable[nn.Parameter], ranks: Ranks) -> Tensor:
    """Length of the gradient, whoever holds it. Every rank must call it."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    whole = nn.utils.get_total_norm([numbers(grad) for grad in grads if not is_sharded(grad)])
    shards = [local(grad) for grad in grads if is_sharded(grad)]
    if not shards:
        return whole
    return (ranks.sum(nn.utils.get_total_norm(shards).square()) + whole.square()).sqrt()


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float, ranks: Ranks) -> Tensor:
    """Scale a longer gradient down to this length; the length that it had. Every rank must call it."""
    learned = [parameter for parameter in parameters if parameter.grad is not None]
    norm = grad_norm(learned, ranks)
    if norm.device.type == "cpu" and norm + 1e-6 <= max_norm:
        return norm
    shares = [[p for p in learned if is_sharded(p) is kind] for kind in (True, False)]
    for share in shares:
        if share:
            factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([numbers(p.grad) for p in share if p.grad is not None], factor)
    return norm
