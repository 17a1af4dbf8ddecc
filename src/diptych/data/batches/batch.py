"""The tensors of one training step.

Shapes: B batch, U distinct captions in the batch, H height, W width, T tokens of the longest caption, K positive keys per row.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from diptych.device.packed_texts import PackedTexts
from diptych.device.tensors import tensors_of, with_tensors

_ON_HOST = frozenset({"lengths"})
"""Fields whose tensors always stay on the host: their values determine the shapes of a computation."""


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
    packed: tuple[PackedTexts, ...] = ()
    """The same captions packed for the text tower, one item for each part of the batch that is encoded at once. Empty if the
    tower packs `ids` itself: on a CPU, and in SigLIP's layout."""
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

    def pin_memory(self) -> "Batch":
        """The batch with its tensors in page-locked memory, from which they can be copied to a GPU asynchronously.

        `lengths` is not changed. The data loader calls this method in a separate thread.
        """
        return with_tensors(self, Tensor.pin_memory, keep=_ON_HOST)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Batch":
        """The batch with its tensors on a device, except `lengths`, which stays on the host.

        Args:
            device: the device.
            non_blocking: whether copies from page-locked memory may still be running when this returns.
        """
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking), keep=_ON_HOST)

    def share_memory(self) -> None:
        """Move all tensors into shared memory, in place, as a transfer to another process needs.

        Raises:
            RuntimeError: there is not enough shared memory.
        """
        for tensor in tensors_of(self):
            tensor.share_memory_()

    @property
    def num_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in tensors_of(self))
