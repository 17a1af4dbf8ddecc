"""Linear maps by the faster of PyTorch's two libraries of matrix products. Shapes: N tokens, I numbers in, O numbers out."""

from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from diptych.core.device import cpu_vendor

GELU: TypeAlias = Literal["none", "tanh"]
"""Its approximation."""
_MANY = 512
"""Tokens a core from which on oneDNN earns back the 0.6 ms in which it compiles for their number."""


class Linear(nn.Linear):
    """`nn.Linear`, with the same weights under the same names and, but for the order of sums, the same results.

    On a CPU PyTorch takes products of floats from MKL, which is written for Intel's processors; on AMD's, oneDNN is faster, by
    a tenth over a whole step of ViT-B/32. The weights' gradient stays with MKL: of some sizes oneDNN is slow (`docs/log.md`).
    """

    rows_vary = False
    """Of packed texts: oneDNN would compile for a new number of tokens in every batch, and keep the last thousand."""

    def forward(self, x: Float[Tensor, "*N I"], *, gelu: GELU | None = None) -> Float[Tensor, "*N O"]:
        """What PyTorch's gives, of x or of its GELU.

        On a CPU GELU is computed again on the way back: it takes less time than its results take memory.
        """
        is_plain = _is_plain(x, self.weight)
        by_onednn = (
            is_plain
            and not self.rows_vary
            and x.numel() >= _MANY * torch.get_num_threads() * x.shape[-1]
            and _is_onednn_faster()
        )
        if gelu is not None and not (is_plain and torch.is_grad_enabled()):
            x, gelu = functional.gelu(x, approximate=gelu), None
        if gelu is None and not by_onednn:
            return super().forward(x)
        out: Tensor = _Product.apply(x.flatten(0, -2), self.weight, self.bias, _How(gelu, by_onednn))  # type: ignore[no-untyped-call]
        return out.unflatten(0, x.shape[:-1])


class _How(NamedTuple):
    gelu: GELU | None
    by_onednn: bool


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return _product(_activated(x, how.gelu), weight.t(), bias, by_onednn=how.by_onednn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (x, weight), how = ctx.saved_tensors, ctx.how
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        weight_grad = grad.t() @ _activated(x, how.gelu) if of_weight else None
        x_grad = _product(grad, weight, by_onednn=how.by_onednn) if of_x else None
        if x_grad is not None and how.gelu is not None:
            torch.ops.aten.gelu_backward.grad_input(x_grad, x, approximate=how.gelu, grad_input=x_grad)
        return x_grad, weight_grad, grad.sum(dim=0) if of_bias else None, None


def _activated(x: Tensor, gelu: GELU | None) -> Tensor:
    return x if gelu is None else functional.gelu(x, approximate=gelu)


def _product(
    left: Float[Tensor, "N I"], right: Float[Tensor, "I O"], bias: Tensor | None = None, *, by_onednn: bool
) -> Float[Tensor, "N O"]:
    if not by_onednn:
        return left @ right if bias is None else torch.addmm(bias, left, right)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
    return out


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether these are floats on a CPU, and nothing casts or compiles what is done with them."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@cache
def _is_onednn_faster() -> bool:
    return torch.backends.mkldnn.is_available() and cpu_vendor() == "AuthenticAMD"
