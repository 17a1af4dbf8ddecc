"""The pairwise sigmoid loss of SigLIP, plain and without its matrix of logits.

Shapes: N rows of one rank, which are the batch where there is one rank; E embedding.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

from diptych.core.distributed import ALONE, Ranks, all_ranks
from diptych.losses.positives import group_sums, numbers_among
from diptych.losses.tiles import tiles


def sigmoid_loss(
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    groups: Int64[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """Sum over all pairs of -log sigmoid(z * (scale * cosine + bias)), over N (Zhai et al. 2023, eq. 1).

    z is 1 for positives and -1 for all others. Without `groups` the positives lie on the diagonal; with them, rows of one group
    are positives of each other.

    >>> emb = torch.eye(4)
    >>> round(float(sigmoid_loss(emb, emb, torch.tensor(20.0), torch.tensor(-10.0))), 4)
    0.0002
    """
    logits = logit_scale * image_emb @ text_emb.T + logit_bias
    same = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if groups is not None:
        same = groups[:, None] == groups[None, :]
    return -logsigmoid(torch.where(same, logits, -logits)).sum() / len(logits)


def tiled_sigmoid_loss(
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    groups: Int64[Tensor, " N"] | None = None,
    *,
    across_ranks: bool = False,
) -> Float[Tensor, ""]:
    """What `sigmoid_loss` gives, and the same gradients, without the (N, N) matrix of logits.

    With `across_ranks` the batch is the joint one of all ranks of the default process group. Each rank gives its own rows,
    as many as every other, with `groups` that mean the same on all ranks, and gets the loss of the joint batch and the
    gradients of that loss with respect to its own embeddings. Logit scale and bias get the rank's own part: the sum over
    ranks of any parameter's gradient is the gradient of the joint loss (DistributedDataParallel takes the mean: multiply by
    the number of ranks). Nothing is gathered: the texts travel round the ranks, and backward their gradients with them (Zhai
    et al. 2023, sec. 3.3). Each rank must run both passes.
    """
    loss: Float[Tensor, ""] = _TiledSigmoidLoss.apply(  # type: ignore[no-untyped-call]  # PyTorch's own is not typed.
        image_emb, text_emb, logit_scale, logit_bias, groups, all_ranks() if across_ranks else ALONE
    )
    return loss


class _TiledSigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (as PyTorch calls it)
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
            own = None if groups is None else _Groups.of(groups)
            image_rest = torch.zeros_like(image) if own is None else -partner
            num_positives = torch.full((), len(image) if own is None else 0, device=image.device)
            total = torch.zeros((), dtype=torch.float64, device=image.device)
            for text, their_groups in _round_the_ring(text_emb, groups, ranks):
                # -log sigmoid(x) = softplus(x) - x: as if all were negatives, less the logits of the positives.
                for tile in tiles(image, text, scale):
                    total += softplus(tile.logits.add_(logit_bias)).sum()
                if own is not None and their_groups is not None:
                    image_rest += own.sums_of_texts(text, their_groups)
                    num_positives += own.num_positives(their_groups)
            agreement = scale * (image * (partner + image_rest)).sum() + logit_bias * num_positives
            loss = (ranks.sum(total - agreement) / (ranks.size * len(image))).float()
        ctx.save_for_backward(image_emb, text_emb, logit_scale, logit_bias, groups, image_rest, num_positives)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image_emb, text_emb, logit_scale, logit_bias, groups, image_rest, num_positives = ctx.saved_tensors
        ranks: Ranks = ctx.ranks
        with torch.autocast(image_emb.device.type, enabled=False):
            image, scale = image_emb.float(), logit_scale.float()
            own = None if groups is None else _Groups.of(groups)
            to_text = -image_rest
            to_image = torch.zeros_like(image) if own is None else image.clone()  # The tiles take the partner off.
            bias_grad = len(image) - num_positives.double()
            ones = torch.ones_like(image[:, 0])
            for step, (text, their_groups) in enumerate(_round_the_ring(text_emb, groups, ranks)):
                if step > 0:
                    to_image = ranks.ring_shift(to_image)
                if own is not None and their_groups is not None:
                    to_image -= own.sums_of_images(image, their_groups)
                for tile in tiles(image, text, scale):
                    tile.logits.add_(logit_bias).sigmoid_()
                    if step == 0:
                        tile.take_off_pairs(ones)
                    bias_grad += tile.logits.sum()
                    to_text[tile.rows].addmm_(tile.logits, text[tile.columns])
                    to_image[tile.columns].addmm_(tile.logits.T, image[tile.rows])
            to_image = ranks.ring_shift(to_image)  # Home.
            factor = scale * grad / (ranks.size * len(image))
            image_grad, text_grad = to_text * factor, to_image * factor
            scale_grad = (image * image_grad).sum() / scale
            bias_grad = bias_grad.float() * grad / (ranks.size * len(image))
        grads = image_grad.to(image_emb.dtype), text_grad.to(text_emb.dtype), scale_grad.to(logit_scale)
        return *grads, bias_grad.to(logit_bias), None, None


def _round_the_ring(
    text_emb: Float[Tensor, "N E"], groups: Int64[Tensor, " N"] | None, ranks: Ranks
) -> Iterator[tuple[Float[Tensor, "N E"], Int64[Tensor, " N"] | None]]:
    """Each rank's texts in float32, and their groups: this rank's own first, then those of the ranks before it."""
    for step in range(ranks.size):
        if step > 0:
            text_emb = ranks.ring_shift(text_emb)
            groups = None if groups is None else ranks.ring_shift(groups)
        yield text_emb.float(), groups


class _Groups(NamedTuple):
    """The groups of this rank's images, against which any rank's texts are held."""

    known: Int64[Tensor, " N"]
    """In ascending order, each as often as it has images."""
    number: Int64[Tensor, " N"]
    """Of each image's group: where it first stands there."""

    @classmethod
    def of(cls, groups: Int64[Tensor, " N"]) -> "_Groups":
        known = groups.sort().values
        return cls(known, torch.searchsorted(known, groups))

    def sums_of_texts(self, text: Float[Tensor, "N E"], groups: Int64[Tensor, " N"]) -> Float[Tensor, "N E"]:
        """For each image the sum of these texts that are its positives."""
        return group_sums(text, numbers_among(self.known, groups), self.number, len(self.known) + 1)

    def sums_of_images(self, image: Float[Tensor, "N E"], groups: Int64[Tensor, " N"]) -> Float[Tensor, "N E"]:
        """For each of these texts the sum of the images that are its positives."""
        return group_sums(image, self.number, numbers_among(self.known, groups), len(self.known) + 1)

    def num_positives(self, groups: Int64[Tensor, " N"]) -> Int64[Tensor, ""]:
        """How many pairs of an image and one of these texts are positives."""
        return (torch.searchsorted(self.known, groups, right=True) - torch.searchsorted(self.known, groups)).sum()
