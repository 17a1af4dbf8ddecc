"""Collective operations between the ranks of a distributed run. With a single process, every operation is the identity.

All ranks must call the same operations in the same order, with tensors of equal shapes. The operations are not differentiable;
callers exchange gradients themselves. Shapes: R rows of one rank, N rows of all ranks together.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed

from diptych.core.deprecation import renamed_parameter
from diptych.core.errors import DiptychError

Object = TypeVar("Object")


class Ranks(NamedTuple):
    """The processes that work on one joint batch, from the point of view of one of them.

    >>> bool((ALONE.sum(torch.ones(3)) == 1).all())
    True
    """

    rank: int
    """Index of this process, from 0."""
    size: int
    """Number of processes."""

    def rows(self, num: int) -> slice:
        """Return the slice of this rank's `num` rows among the rows of all ranks.

        >>> Ranks(rank=2, size=3).rows(10)
        slice(20, 30, None)
        """
        return slice(self.rank * num, (self.rank + 1) * num)

    def gather_rows(self, tensor: Shaped[Tensor, "R *rest"]) -> Shaped[Tensor, "N *rest"]:
        """Return the rows of all ranks, concatenated in order of rank."""
        if self.size == 1:
            return tensor
        gathered = tensor.new_empty(self.size * len(tensor), *tensor.shape[1:])
        distributed.all_gather(list(gathered.chunk(self.size)), tensor.detach().contiguous())
        return gathered

    def scatter_sum(self, tensor: Shaped[Tensor, "N *rest"]) -> Shaped[Tensor, "R *rest"]:
        """Return this rank's rows of the sum over ranks."""
        if self.size == 1:
            return tensor
        if tensor.device.type == "cpu":  # gloo lacks reduce-scatter in some of the supported PyTorch versions.
            return self.sum(tensor)[self.rows(len(tensor) // self.size)].clone()
        parts = list(tensor.detach().contiguous().chunk(self.size))
        summed = torch.empty_like(parts[0])
        distributed.reduce_scatter(summed, parts)
        return summed

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the element-wise sum over ranks, the same on all of them."""
        return self._reduced(tensor, distributed.ReduceOp.SUM) if self.size > 1 else tensor

    def max(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the element-wise maximum over ranks, the same on all of them."""
        return self._reduced(tensor, distributed.ReduceOp.MAX) if self.size > 1 else tensor

    def ring_shift(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Send the tensor to the next rank and return the tensor of the previous rank; the last rank sends to the first."""
        if self.size == 1:
            return tensor
        sent = tensor.detach().contiguous()
        received = sent.new_empty(sent.shape)
        exchange = [
            distributed.P2POp(distributed.isend, sent, (self.rank + 1) % self.size),
            distributed.P2POp(distributed.irecv, received, (self.rank - 1) % self.size),
        ]
        for work in distributed.batch_isend_irecv(exchange):
            work.wait()
        return received

    def gather_objects(self, ours: Object) -> list[Object]:
        """Return the objects of all ranks, in order of rank. Objects must be picklable."""
        if self.size == 1:
            return [ours]
        gathered = [ours] * self.size
        distributed.all_gather_object(gathered, ours)
        return gathered

    def gather_if_any(self, ours: Sequence[Object]) -> list[Object]:
        """Return the objects of all ranks, concatenated in order of rank. Objects must be picklable.

        If no rank has any, this exchanges a single number; use it for objects that are rare.
        """
        if self.size == 1:
            return list(ours)
        if not int(self.max(torch.tensor(len(ours)))):
            return []
        return [value for part in self.gather_objects(tuple(ours)) for value in part]

    def run_on_rank0(self, action: Callable[[], Object]) -> Object:
        """Run the action on rank 0 only and return its result on all ranks. The result must be picklable.

        Raises:
            DiptychError: the action raised it on rank 0; it is raised on all ranks.
        """
        if self.size == 1:
            return action()
        box: list[tuple[Object | None, DiptychError | None]] = [_outcome(action) if self.rank == 0 else (None, None)]
        distributed.broadcast_object_list(box, src=0)
        value, error = box[0]
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def run_on_all(self, action: Callable[[], Object]) -> list[Object]:
        """Run the action on every rank and return the results of all, in order of rank. Results must be picklable.

        Raises:
            DiptychError: the action raised it on a rank; the error of the first such rank is raised on all ranks.
        """
        if self.size == 1:
            return [action()]
        outcomes = self.gather_objects(_outcome(action))
        for _, error in outcomes:
            if error is not None:
                raise error
        return [value for value, _ in outcomes]  # type: ignore[misc]

    @staticmethod
    def _reduced(tensor: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
        reduced = tensor.detach().clone().contiguous()
        distributed.all_reduce(reduced, operation)
        return reduced


def _outcome(action: Callable[[], Object]) -> tuple[Object | None, DiptychError | None]:
    try:
        return action(), None
    except DiptychError as error:
        return None, error


ALONE = Ranks(rank=0, size=1)
"""This process alone, even if other processes exist."""


def all_ranks() -> Ranks:
    """Return the ranks of the default process group, or `ALONE` if none is initialized.

    >>> all_ranks()
    Ranks(rank=0, size=1)
    """
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(rank=distributed.get_rank(), size=distributed.get_world_size())
    return ALONE


accepts_across_ranks = renamed_parameter(
    "across_ranks", "ranks", convert=lambda is_joint: all_ranks() if is_joint else ALONE
)
"""Decorator of losses that also accept the deprecated flag `across_ranks` instead of `ranks`."""
