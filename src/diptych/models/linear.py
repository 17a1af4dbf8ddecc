"""Linear maps by the faster of PyTorch's two libraries of matrix products. Shapes: N tokens, I numbers in, O numbers out."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.core.device import cpu_vendor

_MANY = 1024
"""Tokens from which on oneDNN earns back the 0.6 ms in which it compiles for their number."""


class Linear(nn.Linear):
    """`nn.Linear`, with the same weights under the same names and, but for the order of sums, the same results.

    On a CPU PyTorch takes products of floats from MKL, which is written for Intel's processors; on AMD's, oneDNN is faster, by
    a tenth over a whole step of ViT-B/32. The weights' gradient stays with MKL: of some sizes oneDNN is slow (`docs/log.md`).
    """

    rows_vary = False
    """Of packed texts: oneDNN would compile for a new number of tokens in every batch, and keep the last thousand."""

    def forward(self, x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """What PyTorch's gives."""
        if self.rows_vary or not _prefers_onednn(x, self.weight):
            return super().forward(x)
        out: Tensor = _Product.apply(x.flatten(0, -2), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out.unflatten(0, x.shape[:-1])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight.t(), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(grad, weight) if of_x else None,
            grad.t() @ x if of_weight else None,
            grad.sum(dim=0) if of_bias else None,
        )


def _product(
    left: Float[Tensor, "N I"], right: Float[Tensor, "I O"], bias: Tensor | None = None
) -> Float[Tensor, "N O"]:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
    return out


def _prefers_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether it is the faster: for many tokens of floats on AMD's processors, where nothing else casts or compiles."""
    return (
        x.numel() >= _MANY * x.shape[-1]
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and _is_faster()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@cache
def _is_faster() -> bool:
    return torch.backends.mkldnn.is_available() and cpu_vendor() == "AuthenticAMD"
