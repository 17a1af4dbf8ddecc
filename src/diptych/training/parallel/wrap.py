"""Wraps a model for training on several ranks: as replicas that average their gradients (DDP) or as shards (FSDP2)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from diptych.device.distributed import ALONE, Ranks
from diptych.models.clip import CLIP
from diptych.models.layers import Transformer

Parallel: TypeAlias = Literal["ddp", "fsdp"]
"""`ddp`: every rank has the whole model. `fsdp`: every rank has a shard of each matrix and of its optimizer state."""


@dataclass(frozen=True)
class Replicas:
    """The model of one rank as a training step uses it. Gradients are averaged over ranks."""

    forward: nn.Module
    """The module to call: the model or its wrapper."""
    ranks: Ranks = ALONE
    unsharded: tuple[nn.Parameter, ...] = ()
    """Parameters whose gradients no wrapper averages: the scalars of an FSDP model, which cannot be sharded."""
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context manager in which gradients are accumulated without being averaged over ranks."""

    def average_unsharded(self) -> None:
        """Average the gradients of `unsharded` over ranks. Call it after the last backward pass of a step."""
        for parameter in self.unsharded:
            if parameter.grad is not None:
                parameter.grad = self.ranks.sum(parameter.grad) / self.ranks.size


def replicate(model: CLIP, parallel: Parallel, ranks: Ranks) -> Replicas:
    """Wrap a model for training on several ranks. Call it before the optimizers are built.

    Args:
        model: the model, with the same weights on all ranks. `fsdp` shards its parameters in place.
        parallel: `ddp` or `fsdp`.
        ranks: the ranks that train it; a single rank needs no wrapper.
    """
    if ranks.size == 1:
        return Replicas(model)
    if parallel == "fsdp":
        return Replicas(model, ranks, unsharded=_shard(model, ranks))
    device = model.log_logit_scale.device
    wrapped = nn.parallel.DistributedDataParallel(
        model,
        device_ids=None if device.index is None else [device.index],
        gradient_as_bucket_view=True,
    )
    return Replicas(wrapped, ranks, no_sync=wrapped.no_sync)


def _shard(model: CLIP, ranks: Ranks) -> tuple[nn.Parameter, ...]:
    """Shard a model in place: each transformer block separately, then the rest. Returns the scalars, which are not sharded."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415  (takes half a second; few runs need it)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # noqa: PLC0415

    mesh = init_device_mesh(model.log_logit_scale.device.type, (ranks.size,))
    scalars = tuple(parameter for parameter in model.parameters() if parameter.ndim == 0)
    for module in model.modules():
        if isinstance(module, Transformer):
            for block in module.blocks:
                fully_shard(block, mesh=mesh)
                for other in ("pooled", "along_paths"):
                    register_fsdp_forward_method(block, other)
    fully_shard(model, mesh=mesh, ignored_params=set(scalars))
    return scalars
