"""Read LongCLIP's weights (Zhang et al. 2024), which have two position embedding tables for a context of 248 tokens."""

from collections.abc import Mapping

from torch import Tensor

from diptych.bundle.renaming import shape_text
from diptych.core.errors import BundleError

_FIRST, _REST = "positional_embedding", "positional_embedding_res"
_NUM_FIRST = 20
"""Number of positions with OpenAI's original embeddings. LongCLIP interpolates and trains only the others."""


def is_long_clip(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights in OpenAI's naming are LongCLIP's."""
    return _REST in weights


def with_positions(weights: Mapping[str, Tensor], *, what: str) -> dict[str, Tensor]:
    """Return the weights with a single position embedding table: 20 rows of the first table, then the rest of the second.

    LongCLIP's code multiplies each table by a mask and adds them, which gives the same result.

    >>> import torch
    >>> tables = {"positional_embedding": torch.zeros(22, 1), "positional_embedding_res": torch.ones(22, 1)}
    >>> with_positions(tables, what="weights.pt")["positional_embedding"].sum()
    tensor(2.)

    Args:
        weights: tensors by OpenAI's names.
        what: name of the file, which starts the message.

    Raises:
        BundleError: the tables have different shapes.
    """
    first, rest = weights.get(_FIRST), weights[_REST]
    if first is None or first.shape != rest.shape or rest.ndim != 2:
        shape = "missing" if first is None else shape_text(first.shape)
        raise BundleError(
            f"{what}: wrong shapes: {_FIRST} is {shape}, expected that of {_REST}, {shape_text(rest.shape)}"
        )
    merged = rest.clone()
    merged[:_NUM_FIRST] = first[:_NUM_FIRST].to(rest.dtype)
    return {**{name: tensor for name, tensor in weights.items() if name != _REST}, _FIRST: merged}
