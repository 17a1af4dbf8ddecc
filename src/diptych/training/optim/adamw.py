"""PyTorch's AdamW, for gradients of a few rows, too, and without PyTorch's compiler. Shapes: R rows, W width, K rows asked."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.training.optim.base import loss_of

MANY_ROWS = 16_384
"""Of a vocabulary: of as many, a batch of captions asks few."""
_ROWS_AT_ONCE = 2048
"""Of a matrix with a gradient of a few rows: so many stay in the processor's cache between being filled and being read."""
_DECORATED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
_PYTORCHS_STEP = inspect.unwrap(torch.optim.AdamW.step)


def leave_compiler_out() -> None:
    """Keep PyTorch's optimizers from loading its compiler, which takes 72 MB and the better part of a second.

    They load it to tell it that it must not compile four of their methods, when the first of these is called. Here each is its
    own version that is not compiled; nothing that Diptych compiles calls one.
    """
    for name in _DECORATED:
        inner = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if inner is not None:
            inner.__dict__.setdefault("__dynamo_disable", inner)


def takes_rows(embedding: nn.Embedding, optimizers: Iterable[torch.optim.Optimizer]) -> bool:
    """Whether its gradient is better kept as the rows that a batch asks, and whoever moves it can do so."""
    movers = [
        optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(parameter is embedding.weight for parameter in group["params"])
    ]
    is_able = all(isinstance(mover, AdamW) for mover in movers) and embedding.weight.device.type == "cpu"
    return is_able and embedding.num_embeddings >= MANY_ROWS


class AdamW(torch.optim.AdamW):
    """The fused one of PyTorch (Loshchilov & Hutter 2019), with the same state and results.

    Of a large vocabulary, a batch asks a few hundred rows. Their gradient may come as these rows alone (`sparse=True` of an
    embedding); all others move as with a gradient of zero: their means fade, and decay draws them in.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every weight that has a gradient; gives back the closure's loss."""
        loss = loss_of(closure)
        of_rows = [
            (parameter, parameter.grad, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for parameter, _, _ in of_rows:
            parameter.grad = None
        _PYTORCHS_STEP(self)
        for parameter, grad, group in of_rows:
            parameter.grad = grad.coalesce()
            self._move_rows(parameter, parameter.grad, group)
        return loss

    def _move_rows(self, matrix: Float[Tensor, "R W"], grad: Float[Tensor, "R W"], group: dict[str, Any]) -> None:
        state = self.state[matrix]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(matrix), torch.zeros_like(matrix)
        state["step"] += 1
        beta_1, beta_2 = group["betas"]
        asked, values = grad.indices()[0], grad.values()
        wholes = (matrix, state["exp_avg"], state["exp_avg_sq"])
        blocks = list(zip(*(whole.split(_ROWS_AT_ONCE) for whole in wholes), strict=True))
        cuts = torch.searchsorted(asked, torch.arange(len(blocks) + 1) * _ROWS_AT_ONCE).tolist()
        room = torch.zeros_like(matrix[:_ROWS_AT_ONCE])
        for i, (block, mean, square) in enumerate(blocks):
            here = slice(cuts[i], cuts[i + 1])
            rows, block_grad = asked[here] - i * _ROWS_AT_ONCE, room[: len(block)]
            block_grad[rows] = values[here]
            torch._fused_adamw_(
                [block], [block_grad], [mean], [square], [], [state["step"]], lr=group["lr"], beta1=beta_1,
                beta2=beta_2, weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
            )  # fmt: skip
            block_grad[rows] = 0
