"""The tensors of one training step.

Shapes: B batch, U distinct captions in the batch, H height, W width, T tokens of the longest caption, K positive keys per row.
"""

from dataclasses import dataclass

from jaxtyping import Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """Inputs of one model: pixels before normalization, and token ids padded to the longest text."""

    pixels: UInt8[Tensor, "B 3 H W"]
    ids: Int64[Tensor, "U T"]
    lengths: Int64[Tensor, " U"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of one training step: pixels before normalization, and token ids padded to the longest caption.

    A caption that several rows share is stored once, so the text tower encodes it once.
    """

    pixels: UInt8[Tensor, "B 3 H W"]
    ids: Int64[Tensor, "U T"]
    lengths: Int64[Tensor, " U"]
    """Number of tokens in each caption, including its start and end tokens."""
    text_of_row: Int64[Tensor, " B"]
    """Index of each row's caption in `ids`."""
    positive_groups: Int64[Tensor, " B"]
    """Group id of each row; rows with the same id are positives of each other."""
    positive_keys: Int64[Tensor, "B K"]
    """Hashes that define the positive groups: rows that share a key are positives of each other. They are comparable across
    ranks, so that groups can be formed over the global batch."""
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    for_teacher: ModelInput | None = None
    """The same images and captions, preprocessed for the teacher model."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(key, reason) of each sample that could not be read and was replaced."""
    num_cut: int = 0
    """Number of captions that were truncated to the context length."""
    read_s: float = 0.0
    """Seconds that the worker spent reading, decoding and cropping the rows."""
    source_pixels: int = 0
    """Total pixels of the images before cropping and resizing."""
