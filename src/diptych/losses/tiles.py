"""Tile-by-tile computation of the matrix of logits. Shapes: N images, M texts, E embedding, R rows and C columns of a tile."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.device.hardware import reads_values

TILE_ROWS, TILE_COLUMNS = 512, 1024
"""Tile size on a CPU: 2 MB of float32, so that a tile stays in the cache of a core."""
_MAX_SIDE = 8192
"""Maximum tile size on other devices: 256 MB of float32. For 65,536 pairs on an H200, larger tiles make the loss 5 % faster
and need three times its memory."""
_DEFAULT_MEMORY_BYTES = 8 * 2**30
"""Assumed memory of a device whose memory PyTorch does not report."""


class Tiling(NamedTuple):
    """Tile size of a device."""

    rows: int
    """Maximum number of rows of a tile."""
    columns: int
    """Maximum number of columns of a tile."""
    is_host: bool
    """Whether the host can read a value immediately. On a GPU, a read waits until the queue of kernels is empty."""

    def is_one_tile(self, num_rows: int, num_columns: int) -> bool:
        """Whether a matrix of this size fits into one tile.

        >>> tiling(torch.device("cpu")).is_one_tile(512, 1024), tiling(torch.device("cpu")).is_one_tile(513, 1024)
        (True, False)
        """
        return num_rows <= self.rows and num_columns <= self.columns


def tiling(device: torch.device) -> Tiling:
    """The tile size of a device: small on a CPU to fit its cache, large on a GPU because each tile needs a dozen launches."""
    if reads_values(device):
        return Tiling(TILE_ROWS, TILE_COLUMNS, is_host=True)
    side = _side(device)
    return Tiling(side, side, is_host=False)


@cache
def _side(device: torch.device) -> int:
    """The largest power of two for which a tile takes at most 1/128 of the device's memory, up to `_MAX_SIDE`.

    The total memory is used instead of the free memory, because the tile size determines the order of sums: two runs on the
    same kind of device must give equal results.
    """
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else _DEFAULT_MEMORY_BYTES
    largest = (memory // (128 * 4)) ** 0.5
    return min(_MAX_SIDE, 1 << (int(largest).bit_length() - 1))


class Tile(NamedTuple):
    """A rectangular part of the matrix of logits."""

    rows: slice
    columns: slice
    logits: Float[Tensor, "R C"]
    """The logits. The next tile reuses this memory."""
    spare: Float[Tensor, "R C"]
    """Scratch memory of the same shape, with undefined content."""

    def take_off_pairs(self, weights: Float[Tensor, " N"], first_partner: int = 0) -> None:
        """Subtract `weights[i]` from the logit in row i and column `first_partner + i` of the matrix, if it is in the tile."""
        start = max(self.rows.start, self.columns.start - first_partner)
        stop = min(self.rows.stop, self.columns.stop - first_partner)
        if start < stop:
            first_column = start + first_partner - self.columns.start
            pairs = self.logits[start - self.rows.start : stop - self.rows.start, first_column:]
            pairs.diagonal().sub_(weights[start:stop])


def tiles(image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""]) -> Iterator[Tile]:
    """Yield the tiles of the matrix `scale * image @ text.T`, row by row. All tiles share their memory."""
    max_rows, max_columns, _ = tiling(image.device)
    num = min(max_rows, len(image)) * min(max_columns, len(text))
    logits_memory, spare_memory = (image.new_empty(num) for _ in range(2))
    for first_row in range(0, len(image), max_rows):
        rows = slice(first_row, min(first_row + max_rows, len(image)))
        scaled = scale * image[rows]
        for first_column in range(0, len(text), max_columns):
            columns = slice(first_column, min(first_column + max_columns, len(text)))
            part = text[columns]
            shape = (len(scaled), len(part))
            logits, spare = (m[: shape[0] * shape[1]].view(shape) for m in (logits_memory, spare_memory))
            yield Tile(rows, columns, torch.mm(scaled, part.T, out=logits), spare)
