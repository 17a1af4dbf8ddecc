"""The same weights under another library's names: one table a library, read in both directions."""

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
    """One tensor of theirs, and the one or more of ours that it holds."""

    ours: tuple[str, ...]
    theirs: str
    give: Callable[[Sequence[Tensor]], Tensor]
    """Ours to theirs."""
    take: Callable[[Tensor], Sequence[Tensor]]
    """Theirs to ours."""
    default: float | None = None
    """What ours is filled with where they left the tensor out; None where they must have it."""


def same(ours: str, theirs: str, *, default: float | None = None) -> Rename:
    """Only the name differs."""
    return Rename((ours,), theirs, lambda parts: parts[0], lambda whole: [whole], default)


def norm(ours: str, theirs: str) -> list[Rename]:
    """Weight and bias of a norm or a linear map."""
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


def transposed(ours: str, theirs: str) -> Rename:
    """They multiply from the right."""
    return Rename((ours,), theirs, lambda parts: parts[0].T, lambda whole: [whole.T])


def stacked(ours: Sequence[str], theirs: str) -> Rename:
    """They keep several of ours in one tensor, one below the other."""
    return Rename(tuple(ours), theirs, lambda parts: torch.cat(list(parts)), lambda whole: whole.chunk(len(ours)))


def shaped(ours: str, theirs: str, shape: Sequence[int]) -> Rename:
    """They keep the first axis and give the second a shape: a patch's pixels as a convolution's kernel."""
    flat = prod(shape)
    return Rename(
        (ours,),
        theirs,
        lambda parts: parts[0].reshape(-1, *shape),
        lambda whole: [whole.reshape(-1, flat)],
    )


def to_theirs(weights: Mapping[str, Tensor], table: Iterable[Rename]) -> dict[str, Tensor]:
    """Our weights under their names."""
    return {rename.theirs: rename.give([weights[name] for name in rename.ours]).contiguous() for rename in table}


def from_theirs(
    weights: Mapping[str, Tensor], table: Sequence[Rename], config: CLIPConfig, *, what: str
) -> dict[str, Tensor]:
    """Their weights under our names, in float32.

    Raises:
        BundleError: tensors are missing, unexpected, of another shape than the config asks for, or hold no finite numbers; they
            are named.
    """
    with torch.device("meta"):
        empty = CLIP(config).state_dict()
    expected = to_theirs(empty, table)
    needed = {rename.theirs for rename in table if rename.default is None}
    _refuse(what, "tensors are missing", sorted(needed - weights.keys()))
    _refuse(what, "unexpected tensors", sorted(weights.keys() - expected.keys()))
    wrong = [
        f"{name} is {_shape(tensor)}, expected {_shape(expected[name])}"
        for name, tensor in weights.items()
        if tensor.shape != expected[name].shape
    ]
    _refuse(what, "wrong shapes", wrong)
    strange = [
        name
        for name, tensor in weights.items()
        if expected[name].is_floating_point()
        and (tensor.is_sparse or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()))
    ]
    _refuse(what, "tensors with numbers that are not finite, or of another kind", strange)
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


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
