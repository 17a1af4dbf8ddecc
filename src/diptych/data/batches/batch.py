"""The tensors that one training step reads.

Shapes: B batch, U distinct captions of the batch, H height, W width, T tokens of the longest of them, K marks a row.
"""

from dataclasses import dataclass

from jaxtyping import Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """What one model reads: pixels that are not normalised, and ids padded to the longest text."""

    pixels: UInt8[Tensor, "B 3 H W"]
    ids: Int64[Tensor, "U T"]
    lengths: Int64[Tensor, " U"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one training step sees. Pixels are not normalised; ids are padded to the longest caption of the batch.

    A caption that several rows share is there once, so that the text tower reads it once.
    """

    pixels: UInt8[Tensor, "B 3 H W"]
    ids: Int64[Tensor, "U T"]
    lengths: Int64[Tensor, " U"]
    """Tokens of each caption, its start and end marks included."""
    text_of_row: Int64[Tensor, " B"]
    """Which of the captions is each row's."""
    groups: Int64[Tensor, " B"]
    """Rows of one group are positives of each other."""
    marks: Int64[Tensor, "B K"]
    """What groups are made from, where processes put their batches together: rows of any of them that share a mark are
    positives of each other."""
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    for_teacher: ModelInput | None = None
    """The same pictures and captions, as a teacher reads them."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(key, reason) of the samples that could not be read and were replaced."""
    num_cut: int = 0
    """Captions that were longer than the context and lost their tail."""
    read_s: float = 0.0
    """Seconds that a process spent on reading, decoding and cropping its rows."""
    source_pixels: int = 0
    """Pixels of all its pictures before they were cropped and resized."""
