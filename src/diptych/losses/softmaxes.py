"""The softmaxes over rows and over columns of a matrix of logits that is never held.

The matrix is computed tile by tile, and again backward. What is kept between the two passes is one number a row and one a
column. Of several ranks each has its own rows of the matrix, and all columns. Shapes: N images of this rank, M texts of all
ranks, E embedding, R rows and C columns of a tile.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diptych.core.distributed import Ranks
from diptych.losses.tiles import Tile, tiles, tiling

_MAX_SPREAD = 60.0
"""exp(-60) of the largest term is nothing to a sum in float32, and exp(60) is still far from its limit."""


class RunningSum(NamedTuple):
    """Sums of exponentials, each in units of exp(its own shift) (Milakov & Gimelshein 2018)."""

    shift: Float[Tensor, " N"]
    total: Float[Tensor, " N"]

    @classmethod
    def zeros(cls, emb: Float[Tensor, "N E"]) -> "RunningSum":
        """Empty ones, one for each row."""
        return cls(emb.new_full((len(emb),), -torch.inf), emb.new_zeros(len(emb)))

    def part(self, which: slice) -> "RunningSum":
        """Some of them, in the same memory."""
        return RunningSum(self.shift[which], self.total[which])

    def add(self, shift: Float[Tensor, " N"], total: Float[Tensor, " N"]) -> None:
        """Add sums in units of exp(shift), in place."""
        larger = torch.maximum(self.shift, shift)
        self.total.mul_((self.shift - larger).exp_()).add_(total * (shift - larger).exp_())
        self.shift.copy_(larger)

    def logs(self) -> Float64[Tensor, " N"]:
        """The logarithm of each sum."""
        return self.shift.double() + self.total.double().log()

    def merged(self, ranks: Ranks) -> "RunningSum":
        """The sums over the terms of all ranks."""
        shift = ranks.max(self.shift)
        return RunningSum(shift, ranks.sum(self.total * (self.shift - shift).exp_()))


class Softmaxes(NamedTuple):
    """The softmax P over each row of `scale * image @ text.T`, and the softmax Q over each column."""

    rows: RunningSum
    columns: RunningSum
    bound: Float[Tensor, ""] | None
    """The shift of all sums, where there is one that serves all."""

    @classmethod
    def of(
        cls, image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""], *, ranks: Ranks
    ) -> "Softmaxes":
        """Those of this rank's images and the texts of all ranks; columns are summed over the images of all ranks."""
        how = tiling(image.device)
        # One read for the whole matrix saves more than it stalls a device, but not where there is one tile.
        reads = how.is_host or not how.is_one_tile(len(image), len(text))
        bound = _bound(image, text, scale, ranks, reads=reads)
        rows, columns = RunningSum.zeros(image), RunningSum.zeros(text)
        for tile in tiles(image, text, scale):
            shift = _shared_shift(tile.logits) if bound is None and how.is_host else bound
            row_sum, column_sum = rows.part(tile.rows), columns.part(tile.columns)
            if shift is not None:  # One exponential serves both directions.
                terms = tile.logits.sub_(shift).exp_()
                row_sum.add(shift.expand(len(terms)), terms.sum(dim=1))
                column_sum.add(shift.expand(terms.shape[1]), terms.sum(dim=0))
                continue
            for running, dim in ((row_sum, 1), (column_sum, 0)):
                largest = tile.logits.amax(dim=dim)
                running.add(largest, (tile.logits - largest.unsqueeze(dim)).exp_().sum(dim=dim))
        return cls(rows, columns.merged(ranks) if ranks.size > 1 else columns, bound)

    @classmethod
    def from_saved(cls, sums: Sequence[Tensor], bound: Tensor | None) -> "Softmaxes":
        """Those whose `to_save` this was."""
        return cls(RunningSum(*sums[:2]), RunningSum(*sums[2:]), bound)

    def to_save(self) -> list[Tensor | None]:
        """Four sums and the bound, to be kept for the backward pass."""
        return [*self.rows, *self.columns, self.bound]

    def on(self, tile: Tile) -> Float[Tensor, "R C"]:
        """P + Q on a tile, in place of its logits."""
        row, column = self.rows.part(tile.rows), self.columns.part(tile.columns)
        if self.bound is not None:
            torch.add(1 / row.total[:, None], 1 / column.total[None, :], out=tile.spare)
            return tile.logits.sub_(self.bound).exp_().mul_(tile.spare)
        torch.sub(tile.logits, row.shift[:, None], out=tile.spare).exp_().div_(row.total[:, None])
        return tile.logits.sub_(column.shift).exp_().div_(column.total).add_(tile.spare)


def _bound(
    image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""], ranks: Ranks, *, reads: bool
) -> Tensor | None:
    """A number that no logit exceeds, where all logits are so close to it that it may stand for every maximum.

    None where the host does not read it. The exchange does not depend on that: ranks on other cards may have other tiles.
    """
    if not reads and ranks.size == 1:
        return None
    longest = ranks.max(image.norm(dim=1).max())
    if not reads:
        return None
    bound = scale.abs() * longest * text.norm(dim=1).max()
    return bound if bool(2 * bound <= _MAX_SPREAD) else None


def _shared_shift(logits: Float[Tensor, "R C"]) -> Tensor | None:
    """The largest logit, where every row and every column has one that is close enough to it."""
    row_max, column_max = logits.amax(dim=1), logits.amax(dim=0)
    largest = row_max.max()
    return largest if bool(torch.minimum(row_max.min(), column_max.min()) > largest - _MAX_SPREAD) else None
