"""Functions for models whose parameters are sharded over ranks by `fully_shard` (FSDP2), or not."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diptych.device.distributed import Ranks
from diptych.device.hardware import reads_values


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this rank has one shard."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """The shard of a tensor on this rank, sharing its memory; the tensor itself if it is not sharded."""
    sharded: Any = tensor
    shard: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    return shard


def numbers(grad: Tensor) -> Tensor:
    """The values of a gradient on this rank, sharing its memory. A sparse gradient must be coalesced."""
    return grad.values() if grad.is_sparse else local(grad)


def copy_tensors(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Copy each source tensor to a target, which is sharded like the source or not at all. All ranks must call it."""
    if not target:
        return
    if any(map(is_sharded, source)) and not any(map(is_sharded, target)):
        for from_tensor, to_tensor in zip(source, target, strict=True):
            sharded: Any = from_tensor
            to_tensor.copy_(sharded.full_tensor() if is_sharded(from_tensor) else from_tensor)
    else:
        torch._foreach_copy_([local(tensor) for tensor in target], [local(tensor) for tensor in source])


def copy_model(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights and buffers of one model to another; see `copy_tensors`. All ranks must call it."""
    with torch.no_grad():
        copy_tensors(list(source.parameters()), list(target.parameters()))
        copy_tensors(list(source.buffers()), list(target.buffers()))


def grad_norm(parameters: Iterable[nn.Parameter], ranks: Ranks) -> Tensor:
    """The Euclidean norm of the gradients of all parameters, sharded or not, as a scalar tensor. All ranks must call it."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    unsharded_norm = nn.utils.get_total_norm([numbers(grad) for grad in grads if not is_sharded(grad)])
    shards = [local(grad) for grad in grads if is_sharded(grad)]
    if not shards:
        return unsharded_norm
    return (ranks.sum(nn.utils.get_total_norm(shards).square()) + unsharded_norm.square()).sqrt()


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float, ranks: Ranks) -> Tensor:
    """Scale the gradients in place so that their norm is at most `max_norm`. All ranks must call it.

    Returns:
        The norm before scaling, as a scalar tensor.
    """
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    norm = grad_norm(with_grad, ranks)
    if max_norm == float("inf") or (reads_values(norm.device) and norm + 1e-6 <= max_norm):
        return norm
    for kind in (True, False):
        same_kind = [parameter for parameter in with_grad if is_sharded(parameter) is kind]
        if same_kind:
            factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([numbers(p.grad) for p in same_kind if p.grad is not None], factor)
    return norm
