"""A linear layer that uses the faster of PyTorch's CPU libraries for matmuls. Shapes: N tokens, I inputs, O outputs."""

from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from diptych.device.hardware import cpu_vendor

GELU: TypeAlias = Literal["none", "tanh"]
"""The approximation of GELU, as in `torch.nn.functional.gelu`."""
_MIN_TOKENS_PER_CORE = 512
"""With fewer tokens, oneDNN does not make up for the 0.6 ms that it takes to compile for each new number of tokens."""


class Linear(nn.Linear):
    """Drop-in `nn.Linear` that uses oneDNN for large fp32 matmuls on AMD CPUs; results differ only in summation order.

    By default PyTorch uses MKL for fp32 matmuls on a CPU, which is optimized for Intel processors. On AMD processors, oneDNN
    makes a training step of ViT-B/32 10 % faster. The gradient of the weight is still computed by MKL, because oneDNN is slow
    for some of its sizes (`docs/log.md`).
    """

    rows_vary = False
    """Whether the number of tokens changes from batch to batch, as for packed texts. If so, oneDNN is not used: it would
    compile for every new number of tokens."""

    def forward(self, x: Float[Tensor, "*N I"], *, gelu: GELU | None = None) -> Float[Tensor, "*N O"]:
        """The linear map of `x`, or of GELU(x) if `gelu` is given.

        On a CPU, GELU is recomputed in the backward pass to save the memory of its output.
        """
        is_plain = _is_plain(x, self.weight)
        by_onednn = (
            is_plain
            and not self.rows_vary
            and x.numel() >= _MIN_TOKENS_PER_CORE * torch.get_num_threads() * x.shape[-1]
            and _is_onednn_faster()
        )
        if gelu is not None and not (is_plain and torch.is_grad_enabled()):
            x, gelu = functional.gelu(x, approximate=gelu), None
        if gelu is None and not by_onednn:
            return super().forward(x)
        out: Tensor = _Product.apply(x.flatten(0, -2), self.weight, self.bias, _ProductOptions(gelu, by_onednn))  # type: ignore[no-untyped-call]
        return out.unflatten(0, x.shape[:-1])


class _ProductOptions(NamedTuple):
    gelu: GELU | None
    by_onednn: bool


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: _ProductOptions) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return _product(_activated(x, options.gelu), weight.t(), bias, by_onednn=options.by_onednn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (x, weight), options = ctx.saved_tensors, ctx.options
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        weight_grad = grad.t() @ _activated(x, options.gelu) if needs_weight else None
        x_grad = _product(grad, weight, by_onednn=options.by_onednn) if needs_x else None
        if x_grad is not None and options.gelu is not None:
            torch.ops.aten.gelu_backward.grad_input(x_grad, x, approximate=options.gelu, grad_input=x_grad)
        return x_grad, weight_grad, grad.sum(dim=0) if needs_bias else None, None


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
    """Whether both are float32 tensors on a CPU, outside of autocast and `torch.compile`."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@cache
def _is_onednn_faster() -> bool:
    return torch.backends.mkldnn.is_available() and cpu_vendor() == "AuthenticAMD"
