"""The matrix of logits, computed tile by tile and never held. Shapes: N images, M texts, E embedding, R rows and C columns."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

TILE_ROWS, TILE_COLUMNS = 512, 1024
"""On a CPU. 2 MB of float32: a tile stays in a core's cache between the passes over it."""
HOST_DEVICES = frozenset({"cpu", "meta"})
"""Devices whose results the host reads without waiting for a queue of kernels."""
_MAX_SIDE = 8192
"""256 MB of float32. On an H200 larger tiles save 5 % of the loss of 65,536 pairs, and take three times its memory."""
_OTHER_MEMORY = 8 * 2**30
"""Bytes that a device is taken to have where PyTorch does not tell."""


class Tiling(NamedTuple):
    """How a device computes the matrix of logits."""

    rows: int
    columns: int
    """Of a tile."""
    is_host: bool
    """Whether the host reads a number at once. Elsewhere a read stalls the device until its queue is empty."""

    def is_one_tile(self, num_rows: int, num_columns: int) -> bool:
        """Whether a tile holds the whole matrix.

        >>> tiling(torch.device("cpu")).is_one_tile(512, 1024), tiling(torch.device("cpu")).is_one_tile(513, 1024)
        (True, False)
        """
        return num_rows <= self.rows and num_columns <= self.columns


def tiling(device: torch.device) -> Tiling:
    """The tiles of a device: on a CPU small ones, for its caches; elsewhere large ones, since each pays a dozen launches."""
    if device.type in HOST_DEVICES:
        return Tiling(TILE_ROWS, TILE_COLUMNS, is_host=True)
    side = _side(device)
    return Tiling(side, side, is_host=False)


@cache
def _side(device: torch.device) -> int:
    """A power of two, so that a tile takes at most 1/128 of the device's memory.

    Of all its memory, not of what is free: other tiles give sums in another order, and two runs on one card must not differ.
    """
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else _OTHER_MEMORY
    largest = (memory // (128 * 4)) ** 0.5
    return min(_MAX_SIDE, 1 << (int(largest).bit_length() - 1))


class Tile(NamedTuple):
    """A rectangle of the matrix of logits."""

    rows: slice
    columns: slice
    logits: Float[Tensor, "R C"]
    """In memory that the next tile uses again."""
    spare: Float[Tensor, "R C"]
    """As much memory again, for whoever needs it; what is in it is undefined."""

    def take_off_pairs(self, weights: Float[Tensor, " N"], first_partner: int = 0) -> None:
        """Subtract the weight of each row's own partner, where it lies in this tile; row 0 has column `first_partner`."""
        first = max(self.rows.start, self.columns.start - first_partner)
        last = min(self.rows.stop, self.columns.stop - first_partner)
        if first < last:
            first_column = first + first_partner - self.columns.start
            pairs = self.logits[first - self.rows.start : last - self.rows.start, first_column:]
            pairs.diagonal().sub_(weights[first:last])


def tiles(image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""]) -> Iterator[Tile]:
    """The matrix `scale * image @ text.T`, one tile after another."""
    max_rows, max_columns, _ = tiling(image.device)
    num = min(max_rows, len(image)) * min(max_columns, len(text))
    memory, spare = (image.new_empty(num) for _ in range(2))
    for first_row in range(0, len(image), max_rows):
        rows = slice(first_row, min(first_row + max_rows, len(image)))
        scaled = scale * image[rows]
        for first_column in range(0, len(text), max_columns):
            columns = slice(first_column, min(first_column + max_columns, len(text)))
            part = text[columns]
            shape = (len(scaled), len(part))
            logits, beside = (m[: shape[0] * shape[1]].view(shape) for m in (memory, spare))
            yield Tile(rows, columns, torch.mm(scaled, part.T, out=logits), beside)
