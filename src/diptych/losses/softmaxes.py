"""Softmax over the rows and over the columns of a matrix of logits that is not stored.

The matrix is computed tile by tile in the forward pass and again in the backward pass. Only normalizers are stored in between:
two numbers per row and two per column. Each rank has its own rows of the matrix and all columns.

On a CPU, the host reads values to find one shift for rows and columns, so that one exponential per logit suffices. On a GPU, a
read would wait for the device. There, rows and columns share h = exp(logit / 2), which neither overflows nor underflows for
logits between -170 and 170: a row's sum of exponentials is the square of its largest h times the sum of (h / largest h)^2.
Embeddings of unit length and a logit scale of at most 100 give logits between -100 and 100.

Shapes: N images of this rank, M texts of all ranks, E embedding, R rows and C columns of a tile.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diptych.device.distributed import Ranks
from diptych.device.hardware import reads_values
from diptych.losses.tiles import Tile, tiles

_MAX_SPREAD = 60.0
"""Maximum difference of a logit and its shift: exp(-60) is negligible in a float32 sum, and exp(60) does not overflow."""


class RunningSum(NamedTuple):
    """Running sums of exponentials, `total * exp(shift)` (Milakov & Gimelshein 2018)."""

    shift: Float[Tensor, " N"]
    total: Float[Tensor, " N"]

    @classmethod
    def zeros(cls, emb: Float[Tensor, "N E"]) -> "RunningSum":
        """One empty sum per row of `emb`."""
        return cls(emb.new_full((len(emb),), -torch.inf), emb.new_zeros(len(emb)))

    def part(self, which: slice) -> "RunningSum":
        """A view of some of the sums, which shares their memory."""
        return RunningSum(self.shift[which], self.total[which])

    def add(self, shift: Float[Tensor, " N"], total: Float[Tensor, " N"]) -> None:
        """Add `total * exp(shift)` in place."""
        larger = torch.maximum(self.shift, shift)
        self.total.mul_((self.shift - larger).exp_()).add_(total * (shift - larger).exp_())
        self.shift.copy_(larger)

    def logs(self) -> Float64[Tensor, " N"]:
        """The logarithm of each sum."""
        return self.shift.double() + self.total.double().log()

    def root(self) -> Float[Tensor, " N"]:
        """1 / sqrt(total * exp(shift)) of each sum, without exp(shift), which may exceed the range of float32."""
        return (-self.shift / 2).exp() * self.total.rsqrt()

    def merged(self, ranks: Ranks) -> "RunningSum":
        """The sums over the terms of all ranks."""
        shift = ranks.max(self.shift)
        return RunningSum(shift, ranks.sum(self.total * (self.shift - shift).exp_()))


class Softmaxes(NamedTuple):
    """The softmax P over each row of `scale * image @ text.T`, and the softmax Q over each column."""

    rows: RunningSum
    columns: RunningSum
    bound: Float[Tensor, ""] | None
    """The shift of all sums, if a single shift is possible; otherwise None. Always None on a GPU."""

    @classmethod
    def of(
        cls, image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""], *, ranks: Ranks
    ) -> "Softmaxes":
        """Softmaxes of this rank's images and the texts of all ranks. Column sums include the images of all ranks.

        On a GPU, the host reads no value.
        """
        bound = _bound(image, text, scale, ranks) if reads_values(image.device) else None
        softmaxes = cls(RunningSum.zeros(image), RunningSum.zeros(text), bound)
        add = softmaxes._add if reads_values(image.device) else softmaxes._add_halved
        for tile in softmaxes.tiles(image, text, scale):
            add(tile)
        return softmaxes._replace(columns=softmaxes.columns.merged(ranks)) if ranks.size > 1 else softmaxes

    @classmethod
    def from_saved(cls, sums: Sequence[Tensor], bound: Tensor | None) -> "Softmaxes":
        """Restore the softmaxes from the result of `to_save`."""
        return cls(RunningSum(*sums[:2]), RunningSum(*sums[2:]), bound)

    def to_save(self) -> list[Tensor | None]:
        """Shift and total of the rows and of the columns, and the bound, to save for the backward pass."""
        return [*self.rows, *self.columns, self.bound]

    def tiles(
        self, image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""]
    ) -> Iterator[Tile]:
        """The tiles of the matrix for `on`: of its logits on a CPU, of half its logits on a GPU."""
        return tiles(image, text, scale if reads_values(image.device) else scale / 2)

    def on(self, tile: Tile) -> Float[Tensor, "R C"]:
        """P + Q of one of `tiles`. It overwrites the tile's logits and its spare memory."""
        row, column = self.rows.part(tile.rows), self.columns.part(tile.columns)
        if not reads_values(tile.logits.device):  # With h: P = (h * row root)^2, Q = (h * column root)^2.
            torch.hypot(row.root()[:, None], column.root()[None, :], out=tile.spare)
            return tile.logits.exp_().mul_(tile.spare).square_()
        if self.bound is not None:
            torch.add(1 / row.total[:, None], 1 / column.total[None, :], out=tile.spare)
            return tile.logits.sub_(self.bound).exp_().mul_(tile.spare)
        torch.sub(tile.logits, row.shift[:, None], out=tile.spare).exp_().div_(row.total[:, None])
        return tile.logits.sub_(column.shift).exp_().div_(column.total).add_(tile.spare)

    def _add(self, tile: Tile) -> None:
        """Add a tile of logits to the sums. It overwrites the tile."""
        shift = _shared_shift(tile.logits) if self.bound is None else self.bound
        row_sum, column_sum = self.rows.part(tile.rows), self.columns.part(tile.columns)
        if shift is not None:  # Rows and columns share one exponential.
            terms = tile.logits.sub_(shift).exp_()
            row_sum.add(shift.expand(len(terms)), terms.sum(dim=1))
            column_sum.add(shift.expand(terms.shape[1]), terms.sum(dim=0))
            return
        for running, dim in ((row_sum, 1), (column_sum, 0)):
            largest = tile.logits.amax(dim=dim)
            running.add(largest, (tile.logits - largest.unsqueeze(dim)).exp_().sum(dim=dim))

    def _add_halved(self, tile: Tile) -> None:
        """Add a tile of half logits to the sums. It overwrites the tile and its spare memory."""
        halves = [tile.logits.amax(dim=dim) for dim in (1, 0)]
        exponentials = tile.logits.exp_()
        sums = self.rows.part(tile.rows), self.columns.part(tile.columns)
        for running, half, dim in zip(sums, halves, (1, 0), strict=True):
            torch.mul(exponentials, (-half).exp_().unsqueeze(dim), out=tile.spare)
            running.add(2 * half, torch.linalg.vector_norm(tile.spare, dim=dim).square_())


def _bound(
    image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""], ranks: Ranks
) -> Tensor | None:
    """An upper bound of all logits that is close enough to all of them to serve as the shift of every sum; None otherwise."""
    bound = scale.abs() * ranks.max(image.norm(dim=1).max()) * text.norm(dim=1).max()
    return bound if bool(2 * bound <= _MAX_SPREAD) else None


def _shared_shift(logits: Float[Tensor, "R C"]) -> Tensor | None:
    """The largest logit, if the maximum of each row and column is close enough to it; otherwise None."""
    row_max, column_max = logits.amax(dim=1), logits.amax(dim=0)
    largest = row_max.max()
    return largest if bool(torch.minimum(row_max.min(), column_max.min()) > largest - _MAX_SPREAD) else None
