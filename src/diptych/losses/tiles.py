"""The matrix of logits, computed tile by tile and never held. Shapes: N images, M texts, E embedding, R rows and C columns."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

TILE_ROWS, TILE_COLUMNS = 512, 1024
"""2 MB of float32: a tile stays in a core's cache between the passes over it."""


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
    memory, spare = (image.new_empty(TILE_ROWS * TILE_COLUMNS) for _ in range(2))
    for first_row in range(0, len(image), TILE_ROWS):
        rows = slice(first_row, min(first_row + TILE_ROWS, len(image)))
        scaled = scale * image[rows]
        for first_column in range(0, len(text), TILE_COLUMNS):
            columns = slice(first_column, min(first_column + TILE_COLUMNS, len(text)))
            part = text[columns]
            shape = (len(scaled), len(part))
            logits, beside = (m[: shape[0] * shape[1]].view(shape) for m in (memory, spare))
            yield Tile(rows, columns, torch.mm(scaled, part.T, out=logits), beside)
