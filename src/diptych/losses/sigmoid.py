"""The pairwise sigmoid loss of SigLIP: a reference version, and a tiled version that does not store the matrix of logits.

Shapes: N rows of one rank, E embedding.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

from diptych.device.distributed import ALONE, Ranks, accepts_across_ranks
from diptych.losses.positives import group_sums, numbers_among
from diptych.losses.tiles import tiles


def sigmoid_loss(
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    groups: Int64[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """Sum over all pairs of -log sigmoid(z * (logit_scale * cosine + logit_bias)), divided by N (Zhai et al. 2023, eq. 1).

    z is 1 for positive pairs and -1 for negative pairs. Both embeddings have unit length. Rows of one positive group in
    `groups` are positives of each other; if it is None, row i is the only positive of row i.

    >>> emb = torch.eye(4)
    >>> round(float(sigmoid_loss(emb, emb, torch.tensor(20.0), torch.tensor(-10.0))), 4)
    0.0002
    """
    logits = logit_scale * image_emb @ text_emb.T + logit_bias  # N N
    is_positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if groups is not None:
        is_positive = groups[:, None] == groups[None, :]
    return -logsigmoid(torch.where(is_positive, logits, -logits)).sum() / len(logits)


@accepts_across_ranks
def tiled_sigmoid_loss(
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    groups: Int64[Tensor, " N"] | None = None,
    *,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """The value and gradients of `sigmoid_loss`, without storing the (N, N) matrix of logits.

    With several `ranks`, the batch is the joint batch of all of them (`all_ranks()`). All ranks must have the same
    number of rows and use the same ids in `groups`, and each must run the forward and the backward pass. Each rank returns the
    loss of the joint batch and gets the gradients with respect to its own embeddings and its own share of the gradients of
    logit scale and bias. Summed over the ranks, the gradient of any parameter is that of the joint loss.
    DistributedDataParallel averages gradients, so multiply the loss by the number of ranks. The texts are passed around a ring
    of ranks instead of being gathered; in the backward pass their gradients are passed with them (Zhai et al. 2023, sec. 3.3).

    >>> emb = torch.eye(4)
    >>> round(float(tiled_sigmoid_loss(emb, emb, torch.tensor(20.0), torch.tensor(-10.0))), 4)
    0.0002
    """
    loss: Float[Tensor, ""] = _TiledSigmoidLoss.apply(  # type: ignore[no-untyped-call]  # PyTorch's own is not typed.
        image_emb, text_emb, logit_scale, logit_bias, groups, ranks
    )
    return loss


class _TiledSigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (PyTorch passes them by position)
        ctx: Any,
        image_emb: Tensor,
        text_emb: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        groups: Tensor | None,
        ranks: Ranks,
    ) -> Tensor:
        ctx.ranks = ranks
        with torch.autocast(image_emb.device.type, enabled=False):
            image, partner, scale = image_emb.float(), text_emb.float(), logit_scale.float()
            own = None if groups is None else _PositiveGroups.of(groups)
            # Sum of the positive texts of each image except its own, which the tiles subtract in the backward pass.
            other_texts = torch.zeros_like(image) if own is None else -partner
            num_positives = torch.full((), len(image) if own is None else 0, device=image.device)
            total = torch.zeros((), dtype=torch.float64, device=image.device)
            for text, text_groups in _around_ring(text_emb, groups, ranks):
                # -log sigmoid(x) = softplus(x) - x: treat all pairs as negatives, then subtract the logits of the positives.
                for tile in tiles(image, text, scale):
                    total += softplus(tile.logits.add_(logit_bias)).sum()
                if own is not None and text_groups is not None:
                    other_texts += own.sums_of_texts(text, text_groups)
                    num_positives += own.num_positives(text_groups)
            positive_logits = scale * (image * (partner + other_texts)).sum() + logit_bias * num_positives
            loss = (ranks.sum(total - positive_logits) / (ranks.size * len(image))).float()
        ctx.save_for_backward(image_emb, text_emb, logit_scale, logit_bias, groups, other_texts, num_positives)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image_emb, text_emb, logit_scale, logit_bias, groups, other_texts, num_positives = ctx.saved_tensors
        ranks: Ranks = ctx.ranks
        with torch.autocast(image_emb.device.type, enabled=False):
            image, scale = image_emb.float(), logit_scale.float()
            own = None if groups is None else _PositiveGroups.of(groups)
            image_sum = -other_texts
            # The tiles subtract the diagonal pairs, so these must not be subtracted a second time.
            text_sum = torch.zeros_like(image) if own is None else image.clone()
            bias_grad = len(image) - num_positives.double()
            ones = torch.ones_like(image[:, 0])
            for step, (text, text_groups) in enumerate(_around_ring(text_emb, groups, ranks)):
                if step > 0:
                    text_sum = ranks.ring_shift(text_sum)
                if own is not None and text_groups is not None:
                    text_sum -= own.sums_of_images(image, text_groups)
                for tile in tiles(image, text, scale):
                    tile.logits.add_(logit_bias).sigmoid_()
                    if step == 0:
                        tile.take_off_pairs(ones)
                    bias_grad += tile.logits.sum()
                    image_sum[tile.rows].addmm_(tile.logits, text[tile.columns])
                    text_sum[tile.columns].addmm_(tile.logits.T, image[tile.rows])
            text_sum = ranks.ring_shift(text_sum)  # Back to the rank of these texts.
            factor = scale * grad / (ranks.size * len(image))
            image_grad, text_grad = image_sum * factor, text_sum * factor
            scale_grad = (image * image_grad).sum() / scale
            bias_grad = bias_grad.float() * grad / (ranks.size * len(image))
        grads = image_grad.to(image_emb.dtype), text_grad.to(text_emb.dtype), scale_grad.to(logit_scale)
        return *grads, bias_grad.to(logit_bias), None, None


def _around_ring(
    text_emb: Float[Tensor, "N E"], groups: Int64[Tensor, " N"] | None, ranks: Ranks
) -> Iterator[tuple[Float[Tensor, "N E"], Int64[Tensor, " N"] | None]]:
    """Yield the texts of each rank in float32 and their groups: this rank's first, then those of the preceding ranks."""
    for step in range(ranks.size):
        if step > 0:
            text_emb = ranks.ring_shift(text_emb)
            groups = None if groups is None else ranks.ring_shift(groups)
        yield text_emb.float(), groups


class _PositiveGroups(NamedTuple):
    """The positive groups of this rank's images, for sums over the positives among any rank's texts."""

    known: Int64[Tensor, " N"]
    """The sorted groups, each repeated once per image."""
    group_idx: Int64[Tensor, " N"]
    """For each image the first index of its group in `known`."""

    @classmethod
    def of(cls, groups: Int64[Tensor, " N"]) -> "_PositiveGroups":
        known = groups.sort().values
        return cls(known, torch.searchsorted(known, groups))

    def sums_of_texts(self, text: Float[Tensor, "N E"], groups: Int64[Tensor, " N"]) -> Float[Tensor, "N E"]:
        """For each image the sum of the texts that are its positives."""
        return group_sums(text, numbers_among(self.known, groups), self.group_idx, len(self.known) + 1)

    def sums_of_images(self, image: Float[Tensor, "N E"], groups: Int64[Tensor, " N"]) -> Float[Tensor, "N E"]:
        """For each text the sum of the images that are its positives."""
        return group_sums(image, self.group_idx, numbers_among(self.known, groups), len(self.known) + 1)

    def num_positives(self, groups: Int64[Tensor, " N"]) -> Int64[Tensor, ""]:
        """The number of positive pairs of an image and a text."""
        return (torch.searchsorted(self.known, groups, right=True) - torch.searchsorted(self.known, groups)).sum()
