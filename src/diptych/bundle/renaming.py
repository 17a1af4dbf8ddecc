"""Convert weights between Diptych's names and those of other libraries. One table per library serves both directions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from diptych.core.errors import BundleError
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig


@dataclass(frozen=True)
class Rename:
    """One tensor of the other library, and the tensors of Diptych that it contains."""

    ours: tuple[str, ...]
    """Diptych's names."""
    theirs: str
    """The other library's name."""
    give: Callable[[Sequence[Tensor]], Tensor]
    """Converts Diptych's tensors to the other library's."""
    take: Callable[[Tensor], Sequence[Tensor]]
    """Converts the other library's tensor to Diptych's."""
    default: float | None = None
    """Fills Diptych's tensors if the other library's is missing; None if it is required."""


def same(ours: str, theirs: str, *, default: float | None = None) -> Rename:
    """Return the entry of a tensor of which only the name differs."""
    return Rename((ours,), theirs, lambda parts: parts[0], lambda whole: [whole], default)


def norm(ours: str, theirs: str) -> list[Rename]:
    """Return the entries of the weight and the bias of a normalization or linear layer."""
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


def transposed(ours: str, theirs: str) -> Rename:
    """Return the entry of a matrix that the other library stores transposed."""
    return Rename((ours,), theirs, lambda parts: parts[0].T, lambda whole: [whole.T])


def stacked(ours: Sequence[str], theirs: str) -> Rename:
    """Return the entry of several tensors that the other library concatenates along the first axis."""
    return Rename(tuple(ours), theirs, lambda parts: torch.cat(list(parts)), lambda whole: whole.chunk(len(ours)))


def shaped(ours: str, theirs: str, shape: Sequence[int]) -> Rename:
    """Return the entry of a matrix whose second axis the other library reshapes, such as patch pixels to a conv kernel."""
    flat = prod(shape)
    return Rename(
        (ours,),
        theirs,
        lambda parts: parts[0].reshape(-1, *shape),
        lambda whole: [whole.reshape(-1, flat)],
    )


def to_theirs(weights: Mapping[str, Tensor], table: Iterable[Rename]) -> dict[str, Tensor]:
    """Return Diptych's weights under the other library's names."""
    return {rename.theirs: rename.give([weights[name] for name in rename.ours]).contiguous() for rename in table}


def from_theirs(
    weights: Mapping[str, Tensor], table: Sequence[Rename], config: CLIPConfig, *, what: str
) -> dict[str, Tensor]:
    """Return the other library's weights under Diptych's names, in the dtypes of a new model (float32).

    Args:
        weights: tensors by the other library's names.
        table: the mapping of names.
        config: the config of the model.
        what: name of the file, which starts the messages.

    Raises:
        BundleError: tensors are missing, unexpected, of another shape than in the config, or not finite; the message names up
            to three of them.
    """
    empty = CLIP.without_memory(config).state_dict()
    expected = to_theirs(empty, table)
    needed = {rename.theirs for rename in table if rename.default is None}
    _refuse(what, "tensors are missing", sorted(needed - weights.keys()))
    _refuse(what, "unexpected tensors", sorted(weights.keys() - expected.keys()))
    wrong = [
        f"{name} is {shape_text(tensor.shape)}, expected {shape_text(expected[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != expected[name].shape
    ]
    _refuse(what, "wrong shapes", wrong)
    invalid = [
        name
        for name, tensor in weights.items()
        if expected[name].is_floating_point()
        and (tensor.is_sparse or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()))
    ]
    _refuse(what, "tensors that are not dense, not floating-point or not finite", invalid)
    ours: dict[str, Tensor] = {}
    for rename in table:
        if rename.theirs in weights:
            parts = rename.take(weights[rename.theirs])
        else:
            parts = [torch.full(empty[name].shape, rename.default or 0) for name in rename.ours]
        ours |= {name: part.to(empty[name].dtype).contiguous() for name, part in zip(rename.ours, parts, strict=True)}
    return ours


def _refuse(what: str, problem: str, names: list[str]) -> None:
    if names:
        more = f", and {len(names) - 3} more" if len(names) > 3 else ""
        raise BundleError(f"{what}: {problem}: {', '.join(names[:3])}{more}")


def shape_text(shape: Iterable[int]) -> str:
    """Return the shape of a tensor for a message.

    >>> shape_text((3, 4)), shape_text(())
    ('3x4', 'a single number')
    """
    return "x".join(map(str, shape)) or "a single number"
