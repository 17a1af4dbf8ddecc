"""The contrastive loss without storing the matrix of logits: memory is linear in the batch size. Works across ranks.

Shapes: N rows of this rank, M rows of all ranks, E embedding.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from diptych.device.distributed import ALONE, Ranks, accepts_across_ranks
from diptych.losses.contrastive import clip_loss
from diptych.losses.positives import group_numbers, group_sums
from diptych.losses.softmaxes import Softmaxes
from diptych.losses.tiles import tiling


@accepts_across_ranks
def tiled_clip_loss(
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    groups: Int64[Tensor, " N"] | None = None,
    *,
    label_smoothing: float = 0.0,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """The value and gradients of `clip_loss`, without storing the (N, N) matrix of logits.

    On a GPU, a matrix that fits into one tile is computed by `clip_loss` itself, because kernel launches would take longer
    than the matrix products.

    The log-sum-exp of each row and column is accumulated online (Milakov & Gimelshein 2018). It is exact for embeddings of unit
    length and logit scales up to 100; on a GPU, logits must lie between -170 and 170. The gradient of the logit scale is the
    inner product of the embeddings and their gradients, which is more precise than a sum over all logits.

    With several `ranks`, the batch is the joint batch of all of them (`all_ranks()`). All ranks must have the same
    number of rows and use the same ids in `groups`, and each must run the forward and the backward pass, because both exchange
    tensors. Each rank computes the logits of its own images and the gathered texts of all ranks. It returns the loss of the
    joint batch and gets the gradients with respect to its own embeddings and its own share of the logit scale's gradient.
    Summed over the ranks, the gradient of any parameter is that of the joint loss. DistributedDataParallel averages gradients,
    so multiply the loss by the number of ranks.

    >>> emb = torch.eye(4)
    >>> bool(tiled_clip_loss(emb, emb, torch.tensor(100.0)) < 1e-6)
    True
    """
    tile_shape = tiling(image_emb.device)
    if ranks.size == 1 and not tile_shape.is_host and tile_shape.is_one_tile(len(image_emb), len(text_emb)):
        with torch.autocast(image_emb.device.type, enabled=False):
            inputs = image_emb.float(), text_emb.float(), logit_scale.float()
            return clip_loss(*inputs, groups, label_smoothing=label_smoothing)
    loss: Float[Tensor, ""] = _TiledClipLoss.apply(  # type: ignore[no-untyped-call]  # PyTorch's own is not typed.
        image_emb, text_emb, logit_scale, groups, label_smoothing, ranks
    )
    return loss


class _TiledClipLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (PyTorch passes them by position)
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
            own, group_idx = _pair_weights(text, None if groups is None else ranks.gather_rows(groups), smoothing)
            other_texts = _other_texts(text, own, group_idx, smoothing, here=here)
            pair_logits, rest = scale * (image * text[here]).sum(dim=1), scale * (image * other_texts).sum(dim=1)
            # The shifts are close to the logits of the positives. Subtracting these first avoids a loss of precision.
            shifts = (rows.shift + columns.shift) / 2 - own[here] * pair_logits - rest
            loss = ranks.sum((shifts + (rows.total.log() + columns.total.log()) / 2).sum()) / len(text)
        ctx.save_for_backward(image_emb, text_emb, logit_scale, own, group_idx, other_texts, *softmaxes.to_save())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image_emb, text_emb, logit_scale, own, group_idx, other_texts, *sums, bound = ctx.saved_tensors
        here = ctx.ranks.rows(len(image_emb))
        with torch.autocast(image_emb.device.type, enabled=False):
            image, text, scale = image_emb.float(), text_emb.float(), logit_scale.float()
            softmaxes = Softmaxes.from_saved(sums, bound)
            image_sum, text_sum = _residual_sums(image, text, scale, softmaxes, own=own, here=here)
            other_images = _other_images(image, own, group_idx, ctx.smoothing, here=here)
            image_grad = (image_sum / 2 - other_texts) * (scale * grad / len(text))
            text_grad = ctx.ranks.scatter_sum(text_sum / 2 - other_images) * (scale * grad / len(text))
            scale_grad = (image * image_grad).sum() / scale
        grads = image_grad.to(image_emb.dtype), text_grad.to(text_emb.dtype), scale_grad.to(logit_scale)
        return *grads, None, None, None


def _pair_weights(
    text: Float[Tensor, "M E"], groups: Int64[Tensor, " M"] | None, smoothing: float
) -> tuple[Float[Tensor, " M"], Int64[Tensor, " M"] | None]:
    """The weight of each row's own pair in its target, and the index of each row's positive group (None without groups)."""
    own = text.new_full((len(text),), 1.0 - smoothing)
    if groups is None:
        return own, None
    group_idx, count = group_numbers(groups)
    return own / count, group_idx


def _other_texts(
    text: Float[Tensor, "M E"], own: Float[Tensor, " M"], group_idx: Tensor | None, smoothing: float, *, here: slice
) -> Float[Tensor, "N E"]:
    """For each image of this rank, the sum of all texts except its own, weighted by the image's target."""
    rest = smoothing * text.mean(dim=0).expand_as(text[here])
    if group_idx is None:
        return rest
    others = group_sums(text, group_idx, group_idx[here], len(text)) - text[here]
    return rest + own[here, None] * others


def _other_images(
    image: Float[Tensor, "N E"], own: Float[Tensor, " M"], group_idx: Tensor | None, smoothing: float, *, here: slice
) -> Float[Tensor, "M E"]:
    """For each text of all ranks, the sum of this rank's images except its own, weighted by the text's target."""
    rest = (smoothing / len(own) * image.sum(dim=0)).expand(len(own), -1)
    if group_idx is None:
        return rest
    others = group_sums(image, group_idx[here], group_idx, len(own))
    others[here] -= image
    return rest + own[:, None] * others


def _residual_sums(
    image: Float[Tensor, "N E"],
    text: Float[Tensor, "M E"],
    scale: Float[Tensor, ""],
    softmaxes: Softmaxes,
    *,
    own: Float[Tensor, " M"],
    here: slice,
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "M E"]]:
    """R @ text and R.T @ image for R = P + Q - 2 diag(own), with the softmax P over each row and Q over each column of logits.

    The weights of the pairs are subtracted within the tiles. A later subtraction would lose all precision for pairs with a
    probability near 1.
    """
    image_sum, text_sum = torch.zeros_like(image), torch.zeros_like(text)
    for tile in softmaxes.tiles(image, text, scale):
        weights = softmaxes.on(tile)
        tile.take_off_pairs(2 * own[here], here.start)
        image_sum[tile.rows].addmm_(weights, text[tile.columns])
        text_sum[tile.columns].addmm_(weights.T, image[tile.rows])
    return image_sum, text_sum
