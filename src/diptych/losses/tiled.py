"""The contrastive loss without its matrix of logits, over one process or many: memory grows with the batch, not its square.

Shapes: N rows of this rank, M rows of all ranks together, E embedding.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from diptych.core.distributed import ALONE, Ranks, all_ranks
from diptych.losses.contrastive import clip_loss
from diptych.losses.positives import group_numbers, group_sums
from diptych.losses.softmaxes import Softmaxes
from diptych.losses.tiles import tiles, tiling


def tiled_clip_loss(
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    groups: Int64[Tensor, " N"] | None = None,
    *,
    label_smoothing: float = 0.0,
    across_ranks: bool = False,
) -> Float[Tensor, ""]:
    """What `clip_loss` gives, and the same gradients, without the (N, N) matrix of logits.

    On a GPU, where launches would take longer than products, `clip_loss` itself computes a matrix that fits into one tile.

    The log-sum-exp of each row and column is a running one (Milakov & Gimelshein 2018), exact at a logit scale of 100. The
    gradient of the logit scale is the inner product of embeddings and their gradients, row by row, which loses fewer digits
    than a sum over all logits.

    With `across_ranks` the batch is the joint one of all ranks of the default process group. Each rank gives its own rows,
    as many as every other, with `groups` that mean the same on all ranks, and gets the loss of the joint batch and the
    gradients of that loss with respect to its own embeddings. The logit scale gets the rank's own part: the sum over ranks
    of any parameter's gradient is the gradient of the joint loss (DistributedDataParallel takes the mean: multiply by the
    number of ranks). A rank computes the logits of its own images and all texts, which are gathered; both passes exchange
    tensors, so that each rank must run both.

    >>> emb = torch.eye(4)
    >>> bool(tiled_clip_loss(emb, emb, torch.tensor(100.0)) < 1e-6)
    True
    """
    ranks, how = all_ranks() if across_ranks else ALONE, tiling(image_emb.device)
    if ranks.size == 1 and not how.is_host and how.is_one_tile(len(image_emb), len(text_emb)):
        with torch.autocast(image_emb.device.type, enabled=False):
            singles = image_emb.float(), text_emb.float(), logit_scale.float()
            return clip_loss(*singles, groups, label_smoothing=label_smoothing)
    loss: Float[Tensor, ""] = _TiledClipLoss.apply(  # type: ignore[no-untyped-call]  # PyTorch's own is not typed.
        image_emb, text_emb, logit_scale, groups, label_smoothing, ranks
    )
    return loss


class _TiledClipLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (as PyTorch calls it)
        ctx: Any,
        image_emb: Tensor,
        text_emb: Tensor,
        logit_scale: Tensor,
        groups: Tensor | None,
        smoothing: float,
        ranks: Ranks,
    ) -> Tensor:
        ctx.ranks, ctx.smoothing = ranks, smoothing
        text_emb, here = ranks.gather_rows(text_emb), ranks.rows(len(image_emb))
        with torch.autocast(image_emb.device.type, enabled=False):
            image, text, scale = image_emb.float(), text_emb.float(), logit_scale.float()
            softmaxes = Softmaxes.of(image, text, scale, ranks=ranks)
            rows, columns = softmaxes.rows, softmaxes.columns.part(here)
            own, number = _own_weights(text, None if groups is None else ranks.gather_rows(groups), smoothing)
            image_rest = _other_texts(text, own, number, smoothing, here=here)
            own_logits, rest = scale * (image * text[here]).sum(dim=1), scale * (image * image_rest).sum(dim=1)
            # Shifts lie near the logits of the positives: their difference first, so that digits are not lost.
            shifts = (rows.shift + columns.shift) / 2 - own[here] * own_logits - rest
            loss = ranks.sum((shifts + (rows.total.log() + columns.total.log()) / 2).sum()) / len(text)
        ctx.save_for_backward(image_emb, text_emb, logit_scale, own, number, image_rest, *softmaxes.to_save())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image_emb, text_emb, logit_scale, own, number, image_rest, *sums, bound = ctx.saved_tensors
        here = ctx.ranks.rows(len(image_emb))
        with torch.autocast(image_emb.device.type, enabled=False):
            image, text, scale = image_emb.float(), text_emb.float(), logit_scale.float()
            softmaxes = Softmaxes.from_saved(sums, bound)
            to_text, to_image = _residuals(image, text, scale, softmaxes, own=own, here=here)
            text_rest = _other_images(image, own, number, ctx.smoothing, here=here)
            image_grad = (to_text / 2 - image_rest) * (scale * grad / len(text))
            text_grad = ctx.ranks.scatter_sum(to_image / 2 - text_rest) * (scale * grad / len(text))
            scale_grad = (image * image_grad).sum() / scale
        grads = image_grad.to(image_emb.dtype), text_grad.to(text_emb.dtype), scale_grad.to(logit_scale)
        return *grads, None, None, None


def _own_weights(
    text: Float[Tensor, "M E"], groups: Int64[Tensor, " M"] | None, smoothing: float
) -> tuple[Float[Tensor, " M"], Int64[Tensor, " M"] | None]:
    """The weight of each row's own partner in its target, and the number of each row's group."""
    own = text.new_full((len(text),), 1.0 - smoothing)
    if groups is None:
        return own, None
    number, count = group_numbers(groups)
    return own / count, number


def _other_texts(
    text: Float[Tensor, "M E"], own: Float[Tensor, " M"], number: Tensor | None, smoothing: float, *, here: slice
) -> Float[Tensor, "N E"]:
    """For each image of this rank, the weighted sum of its target's texts but its partner."""
    rest = smoothing * text.mean(dim=0).expand_as(text[here])
    if number is None:
        return rest
    others = group_sums(text, number, number[here], len(text)) - text[here]
    return rest + own[here, None] * others


def _other_images(
    image: Float[Tensor, "N E"], own: Float[Tensor, " M"], number: Tensor | None, smoothing: float, *, here: slice
) -> Float[Tensor, "M E"]:
    """For each text of all ranks, the weighted sum of its target's images but its partner, as far as they are this rank's."""
    rest = (smoothing / len(own) * image.sum(dim=0)).expand(len(own), -1)
    if number is None:
        return rest
    others = group_sums(image, number[here], number, len(own))
    others[here] -= image
    return rest + own[:, None] * others


def _residuals(
    image: Float[Tensor, "N E"],
    text: Float[Tensor, "M E"],
    scale: Float[Tensor, ""],
    softmaxes: Softmaxes,
    *,
    own: Float[Tensor, " M"],
    here: slice,
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "M E"]]:
    """(P + Q - 2 diag(own)) @ text and its transpose @ image: P is the softmax over each row of logits, Q over each column.

    The partner's weight is taken off in the tile: afterwards, where a pair is learned, it would cancel all digits.
    """
    to_text, to_image = torch.zeros_like(image), torch.zeros_like(text)
    for tile in tiles(image, text, scale):
        weights = softmaxes.on(tile)
        tile.take_off_pairs(2 * own[here], here.start)
        to_text[tile.rows].addmm_(weights, text[tile.columns])
        to_image[tile.columns].addmm_(weights.T, image[tile.rows])
    return to_text, to_image
