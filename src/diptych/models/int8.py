"""Linear maps in eight-bit integers, for CPUs that multiply these several times faster than floats.

Shapes: N tokens, I numbers in, O numbers out.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.models.clip import CLIP
from diptych.models.layers import Block
from diptych.models.linear import Linear

_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear map whose weights are integers scaled by output channel, and whose input is rounded by token as it comes.

    A scale for each token keeps the few that have large numbers from taking the others' precision (Dettmers et al. 2022,
    "LLM.int8()", sec. 3.1).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)
        self.register_buffer("weight", (weight / scale).round().to(torch.int8).T.contiguous())
        self.register_buffer("scale", scale[:, 0].contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """What the linear map gives, but for rounding."""
        tokens = x.flatten(0, -2)
        scale = _scale(tokens)
        sums = torch._int_mm((tokens / scale).round_().to(torch.int8), self.weight)
        out = sums.float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            out.add_(self.bias)
        return out.unflatten(0, x.shape[:-1])

    def to_linear(self) -> Linear:
        """The layer in float32 with the rounded weights. It is differentiable."""
        num_out, num_in = len(self.scale), len(self.weight)
        linear = Linear(num_in, num_out, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter((self.weight.float() * self.scale).T.contiguous())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias)
        return linear


def to_int8(model: CLIP) -> CLIP:
    """Give the blocks of both towers linear maps in integers, in place; the model can no longer be trained or saved."""
    for module in list(model.modules()):
        if isinstance(module, Block):
            _replace(module)
    return model


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            _replace(child)


def _scale(rows: Float[Tensor, "N I"]) -> Float[Tensor, "N 1"]:
    """What makes each row's largest number 127."""
    return rows.abs().amax(dim=1, keepdim=True).div_(_LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
