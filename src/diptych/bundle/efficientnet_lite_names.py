"""Tensor names of EfficientNet-Lite in its PyTorch port of 2020 and in timm.

The port (`efficientnet_lite_pytorch`) numbers the blocks of all stages consecutively, and its norms from 0. timm numbers the
blocks of each stage separately, and its norms from 1. The blocks of the first stage have no expansion. Both have the same
tensors in the same order.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
_NOT_EXPANDED = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def is_efficientnet_lite(names: Iterable[str]) -> bool:
    """Whether the tensors of a file have the names of the port.

    >>> is_efficientnet_lite(["_conv_stem.weight", "_blocks.0._bn1.bias"]), is_efficientnet_lite(["conv_stem.weight"])
    (True, False)
    """
    return {"_conv_stem.weight", "_blocks.0._bn1.bias"} <= set(names)


def to_timm_names(weights: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors under timm's names.

    Args:
        weights: the tensors by their names in the port.
        expected: the tensor names of the timm model, which determine the number of blocks per stage.
    """
    blocks = {found[0] for name in expected if (found := re.match(r"blocks\.\d+\.\d+", name))}
    in_order = sorted(blocks, key=lambda block: [int(part) for part in block.split(".")[1:]])
    expanded = {name.split(".")[1] for name in weights if "._expand_conv." in name}
    renamed = {}
    for name, tensor in weights.items():
        head, _, rest = name.partition(".")
        if head != "_blocks":
            renamed[f"{_OUTSIDE.get(head, head)}.{rest}"] = tensor
            continue
        number, part, last = rest.split(".")
        inside = _EXPANDED if number in expanded else _NOT_EXPANDED
        block = in_order[int(number)] if int(number) < len(in_order) else f"blocks.{number}"
        renamed[f"{block}.{inside.get(part, part)}.{last}"] = tensor
    return renamed
