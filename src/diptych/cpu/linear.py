"""Linear layers and MLPs for CPUs: faster matmuls and less memory. Shapes: N tokens, I inputs, O outputs."""

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from diptych.core.cpu import cpu_vendor
from diptych.models.clip import CLIP
from diptych.models.layers import MLP

GELU: TypeAlias = Literal["none", "tanh"]
"""The approximation of GELU, as in `torch.nn.functional.gelu`."""
_MIN_TOKENS_PER_CORE = 512
"""With fewer tokens, oneDNN does not make up for the 0.6 ms that it takes to compile for each new number of tokens."""


def optimize(model: CLIP) -> None:
    """Replace the linear layers and MLPs of a model on a CPU in place. Does nothing on other devices.

    The new layers share the parameters of the old ones, under the same names. Call this before `copy.deepcopy`, DDP or FSDP,
    and not for a model in int8.
    """
    if model.log_logit_scale.device.type == "cpu":
        _replace_layers(model.image_tower, num_tokens_varies=False)
        _replace_layers(model.text_tower, num_tokens_varies=True)


def _replace_layers(module: nn.Module, *, num_tokens_varies: bool) -> None:
    for name, child in module.named_children():
        _replace_layers(child, num_tokens_varies=num_tokens_varies)
        if type(child) is nn.Linear:  # Not a subclass, whose `forward` may differ.
            setattr(module, name, CpuLinear(child, num_tokens_varies=num_tokens_varies))
        elif type(child) is MLP and isinstance(child[1], nn.GELU) and isinstance(child[2], CpuLinear):
            setattr(module, name, _GeluMLP(*child).train(child.training))


class CpuLinear(nn.Linear):
    """Drop-in `nn.Linear` that uses oneDNN for large fp32 matmuls on AMD CPUs; results differ only in summation order.

    By default PyTorch uses MKL for fp32 matmuls on a CPU, which is optimized for Intel processors. On AMD processors, oneDNN
    makes a training step of ViT-B/32 10 % faster. The gradient of the weight is still computed by MKL, because oneDNN is slow
    for some of its sizes (`docs/log.md`).
    """

    IS_PLAIN_LINEAR = True
    """Computes the same as `nn.Linear` (`models/single_query.py`)."""

    def __init__(self, linear: nn.Linear, *, num_tokens_varies: bool = False) -> None:
        """Share the parameters of a linear layer.

        Args:
            linear: the layer.
            num_tokens_varies: whether the number of tokens changes from batch to batch, as for packed texts. If so, oneDNN is
                not used, because it would compile for every new number of tokens.
        """
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.num_tokens_varies = num_tokens_varies
        self.train(linear.training)

    def forward(self, x: Float[Tensor, "*N I"], *, gelu: GELU | None = None) -> Float[Tensor, "*N O"]:
        """The linear map of `x`, or of GELU(x) if `gelu` is given. In fp32, GELU is recomputed in backward to save memory."""
        is_plain = _is_plain(x, self.weight)
        by_onednn = (
            is_plain
            and not self.num_tokens_varies
            and x.numel() >= _MIN_TOKENS_PER_CORE * torch.get_num_threads() * x.shape[-1]
            and _is_onednn_faster()
        )
        if gelu is not None and not (is_plain and torch.is_grad_enabled()):
            x, gelu = functional.gelu(x, approximate=gelu), None
        if gelu is None and not by_onednn:
            return super().forward(x)
        out: Tensor = _Product.apply(x.flatten(0, -2), self.weight, self.bias, _ProductOptions(gelu, by_onednn))  # type: ignore[no-untyped-call]
        return out.unflatten(0, x.shape[:-1])


class _GeluMLP(nn.Sequential):
    """An `MLP` with GELU that recomputes GELU in the backward pass."""

    def forward(self, x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N I"]:
        """The output of the MLP for each token."""
        first, gelu, second = self
        # The second layer may have been replaced, for example by an adapter.
        is_fused = isinstance(second, CpuLinear)
        out: Tensor = second(first(x), gelu=gelu.approximate) if is_fused else second(gelu(first(x)))
        return out


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


def _is_onednn_faster() -> bool:
    return torch.backends.mkldnn.is_available() and cpu_vendor() == "AuthenticAMD"
