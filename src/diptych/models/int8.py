"""Int8 linear layers, for CPUs that multiply 8-bit integers several times faster than floats.

Shapes: N tokens, I inputs, O outputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.models.clip import CLIP
from diptych.models.layers import Block

_MAX_INT8 = 127


class Int8Linear(nn.Module):
    """A linear layer with int8 weights (one scale per output channel) and dynamic int8 inputs (one scale per token).

    With a scale per token, a few tokens with large values do not reduce the precision of the others (Dettmers et al. 2022,
    "LLM.int8()", sec. 3.1). The layer has no parameters and cannot be trained.
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
        """The output of the linear layer, up to quantization error."""
        tokens = x.flatten(0, -2)  # N I
        scale = _scale(tokens)
        sums = torch._int_mm((tokens / scale).round_().to(torch.int8), self.weight)
        out = sums.float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            out.add_(self.bias)
        return out.unflatten(0, x.shape[:-1])

    def to_linear(self) -> nn.Linear:
        """A differentiable float32 layer with the dequantized weights."""
        num_out, num_in = len(self.scale), len(self.weight)
        linear = nn.Linear(num_in, num_out, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter((self.weight.float() * self.scale).T.contiguous())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias)
        return linear


def to_int8(model: CLIP) -> CLIP:
    """Quantize the linear layers in the blocks of both towers in place, and return the model.

    The model can no longer be trained or saved.
    """
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
    """The scale of each row: its largest absolute value divided by 127."""
    return rows.abs().amax(dim=1, keepdim=True).div_(_MAX_INT8).clamp_min_(torch.finfo(torch.float32).tiny)
