"""One model that several ranks train: copies that average their gradients (DDP), or shards of one (FSDP2)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from diptych.core.distributed import ALONE, Ranks
from diptych.models.clip import CLIP
from diptych.models.layers import Transformer

Parallel: TypeAlias = Literal["ddp", "fsdp"]
"""`ddp`: every rank holds the whole model. `fsdp`: each holds a part of every matrix, and of the optimizer's state with it."""


@dataclass(frozen=True)
class Replicas:
    """How a step uses the model where other ranks use theirs at the same time. Gradients are means over ranks."""

    forward: nn.Module
    """What is called: the model, or what is wrapped around it."""
    ranks: Ranks = ALONE
    unsharded: tuple[nn.Parameter, ...] = ()
    """Parameters whose gradients nobody else exchanges: a single number cannot be cut in parts."""
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within it, gradients are added up here and not yet exchanged."""

    def average_unsharded(self) -> None:
        """Called after the last backward pass of a step."""
        for parameter in self.unsharded:
            if parameter.grad is not None:
                parameter.grad = self.ranks.sum(parameter.grad) / self.ranks.size


def replicate(model: CLIP, parallel: Parallel, ranks: Ranks) -> Replicas:
    """Tie the model to those of other ranks, which must have the same weights; called before optimizers are built."""
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
    """Each block is gathered when it is due, all else at the start; gives the numbers that stay whole."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415  (half a second that few runs need)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # noqa: PLC0415

    mesh = init_device_mesh(model.log_logit_scale.device.type, (ranks.size,))
    numbers = tuple(parameter for parameter in model.parameters() if parameter.ndim == 0)
    for module in model.modules():
        if isinstance(module, Transformer):
            for block in module.blocks:
                fully_shard(block, mesh=mesh)
                for other in ("pooled", "along_paths"):
                    register_fsdp_forward_method(block, other)
    fully_shard(model, mesh=mesh, ignored_params=set(numbers))
    return numbers
