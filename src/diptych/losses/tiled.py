"""The same losses without their matrix of logits: memory grows with the batch, not with its square.

The matrix is computed tile by tile, and again backward. What is kept between the two passes is one number a row and one a
column. Shapes: N batch, E embedding, R rows and C columns of a tile.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_ROWS, TILE_COLUMNS = 512, 1024
"""2 MB of float32: a tile stays in a core's cache between the passes over it."""
_MAX_SPREAD = 60.0
"""exp(-60) of the largest term is nothing to a sum in float32, and exp(60) is still far from its limit."""


def tiled_clip_loss(
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    groups: Int64[Tensor, " N"] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """What `clip_loss` gives, and the same gradients, without the (N, N) matrix of logits.

    The log-sum-exp of each row and column is a running one (Milakov & Gimelshein 2018), exact at a logit scale of 100. The
    gradient of the logit scale is the inner product of embeddings and their gradients, row by row, which loses fewer digits
    than a sum over all logits.

    >>> emb = torch.eye(4)
    >>> bool(tiled_clip_loss(emb, emb, torch.tensor(100.0)) < 1e-6)
    True
    """
    loss: Float[Tensor, ""] = _TiledClipLoss.apply(  # type: ignore[no-untyped-call]  # PyTorch's own is not typed.
        image_emb, text_emb, logit_scale, groups, label_smoothing
    )
    return loss


class _TiledClipLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (as PyTorch calls it)
        ctx: Any, image_emb: Tensor, text_emb: Tensor, logit_scale: Tensor, groups: Tensor | None, smoothing: float
    ) -> Tensor:
        with torch.autocast(image_emb.device.type, enabled=False):
            image, text, scale = image_emb.float(), text_emb.float(), logit_scale.float()
            rows, columns = _log_sums(image, text, scale)
            own, image_rest, text_rest = _targets(image, text, groups, smoothing)
            own_logits, rest = scale * (image * text).sum(dim=1), scale * (image * image_rest).sum(dim=1)
            # Shifts lie near the logits of the positives: their difference first, so that digits are not lost.
            shifts = (rows.shift + columns.shift) / 2 - own * own_logits - rest
            loss = (shifts + (rows.total.log() + columns.total.log()) / 2).mean()
        ctx.save_for_backward(image_emb, text_emb, logit_scale, *rows, *columns, own, image_rest, text_rest)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image_emb, text_emb, logit_scale, *sums, own, image_rest, text_rest = ctx.saved_tensors
        with torch.autocast(image_emb.device.type, enabled=False):
            image, text, scale = image_emb.float(), text_emb.float(), logit_scale.float()
            to_text, to_image = _residuals(image, text, scale, RunningSum(*sums[:2]), RunningSum(*sums[2:]), own=own)
            image_grad = (to_text / 2 - image_rest) * (scale * grad / len(image))
            text_grad = (to_image / 2 - text_rest) * (scale * grad / len(image))
            scale_grad = (image * image_grad).sum() / scale
        return image_grad.to(image_emb.dtype), text_grad.to(text_emb.dtype), scale_grad.to(logit_scale), None, None


def _targets(
    image: Float[Tensor, "N E"], text: Float[Tensor, "N E"], groups: Tensor | None, smoothing: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N E"], Float[Tensor, "N E"]]:
    """The weight of each row's own partner; and the weighted sum of its other targets, of texts and of images."""
    own = image.new_full((len(image),), 1.0 - smoothing)
    rests = [smoothing * emb.mean(dim=0).expand_as(emb) for emb in (text, image)]
    if groups is not None:
        _, number, counts = torch.unique(groups, return_inverse=True, return_counts=True)
        own = own / counts[number]
        for i, emb in enumerate((text, image)):
            sums = emb.new_zeros(len(counts), emb.shape[1]).index_add_(0, number, emb)
            rests[i] = rests[i] + own[:, None] * (sums[number] - emb)
    return own, rests[0], rests[1]


def _log_sums(
    image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""]
) -> tuple["RunningSum", "RunningSum"]:
    """The sums of exp(logits) over each row and each column of `scale * image @ text.T`."""
    bound = _bound(image, text, scale)
    rows, columns = RunningSum.zeros(image), RunningSum.zeros(text)
    for tile in tiles(image, text, scale):
        shift = bound if bound is not None else _shared_shift(tile.logits)
        row_sum, column_sum = rows.part(tile.rows), columns.part(tile.columns)
        if shift is not None:  # One exponential serves both directions.
            terms = tile.logits.sub_(shift).exp_()
            row_sum.add(shift.expand(len(terms)), terms.sum(dim=1))
            column_sum.add(shift.expand(terms.shape[1]), terms.sum(dim=0))
            continue
        for running, dim in ((row_sum, 1), (column_sum, 0)):
            largest = tile.logits.amax(dim=dim)
            running.add(largest, (tile.logits - largest.unsqueeze(dim)).exp_().sum(dim=dim))
    return rows, columns


def _residuals(
    image: Float[Tensor, "N E"],
    text: Float[Tensor, "N E"],
    scale: Float[Tensor, ""],
    rows: "RunningSum",
    columns: "RunningSum",
    *,
    own: Float[Tensor, " N"],
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N E"]]:
    """(P + Q - 2 diag(own)) @ text and its transpose @ image: P is the softmax over each row of logits, Q over each column.

    The partner's weight is taken off in the tile: afterwards, where a pair is learned, it would cancel all digits.
    """
    bound = _bound(image, text, scale)
    to_text, to_image = torch.zeros_like(image), torch.zeros_like(text)
    weights = image.new_empty(TILE_ROWS * TILE_COLUMNS)
    for tile in tiles(image, text, scale):
        row, column = rows.part(tile.rows), columns.part(tile.columns)
        if bound is not None:  # All shifts are this bound.
            weight = weights[: tile.logits.numel()].view_as(tile.logits)
            torch.add(1 / row.total[:, None], 1 / column.total[None, :], out=weight)
            terms = tile.logits.sub_(bound).exp_().mul_(weight)
        else:
            terms = (tile.logits - row.shift[:, None]).exp_().div_(row.total[:, None])
            terms += tile.logits.sub_(column.shift).exp_().div_(column.total)
        tile._replace(logits=terms).take_off_pairs(2 * own)
        to_text[tile.rows].addmm_(terms, text[tile.columns])
        to_image[tile.columns].addmm_(terms.T, image[tile.rows])
    return to_text, to_image


class Tile(NamedTuple):
    """A rectangle of the matrix of logits."""

    rows: slice
    columns: slice
    logits: Float[Tensor, "R C"]
    """In memory that the next tile uses again."""

    def take_off_pairs(self, weights: Float[Tensor, " N"]) -> None:
        """Subtract the weight of each row's own partner, where it lies in this tile."""
        first, last = max(self.rows.start, self.columns.start), min(self.rows.stop, self.columns.stop)
        if first < last:
            pairs = self.logits[first - self.rows.start : last - self.rows.start, first - self.columns.start :]
            pairs.diagonal().sub_(weights[first:last])


def tiles(image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""]) -> Iterator[Tile]:
    """The matrix `scale * image @ text.T`, one tile after another."""
    memory = image.new_empty(TILE_ROWS * TILE_COLUMNS)
    for first_row in range(0, len(image), TILE_ROWS):
        rows = slice(first_row, min(first_row + TILE_ROWS, len(image)))
        scaled = scale * image[rows]
        for first_column in range(0, len(text), TILE_COLUMNS):
            columns = slice(first_column, min(first_column + TILE_COLUMNS, len(text)))
            part = text[columns]
            logits = memory[: len(scaled) * len(part)].view(len(scaled), len(part))
            yield Tile(rows, columns, torch.mm(scaled, part.T, out=logits))


class RunningSum(NamedTuple):
    """Sums of exponentials, each in units of exp(its own shift)."""

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


def _bound(image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], scale: Float[Tensor, ""]) -> Tensor | None:
    """A number that no logit exceeds, where all logits are so close to it that it may stand for every maximum."""
    bound = scale.abs() * image.norm(dim=1).max() * text.norm(dim=1).max()
    return bound if bool(2 * bound <= _MAX_SPREAD) else None


def _shared_shift(logits: Float[Tensor, "R C"]) -> Tensor | None:
    """The largest logit, where every row and every column has one that is close enough to it."""
    row_max, column_max = logits.amax(dim=1), logits.amax(dim=0)
    largest = row_max.max()
    return largest if bool(torch.minimum(row_max.min(), column_max.min()) > largest - _MAX_SPREAD) else None
