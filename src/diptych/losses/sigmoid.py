"""The pairwise sigmoid loss of SigLIP, plain and without its matrix of logits. Shapes: N batch, E embedding."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

from diptych.losses.tiled import tiles


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
) -> Float[Tensor, ""]:
    """What `sigmoid_loss` gives, and the same gradients, without the (N, N) matrix of logits."""
    loss: Float[Tensor, ""] = _TiledSigmoidLoss.apply(  # type: ignore[no-untyped-call]  # PyTorch's own is not typed.
        image_emb, text_emb, logit_scale, logit_bias, groups
    )
    return loss


class _TiledSigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (as PyTorch calls it)
        ctx: Any, image_emb: Tensor, text_emb: Tensor, logit_scale: Tensor, logit_bias: Tensor, groups: Tensor | None
    ) -> Tensor:
        with torch.autocast(image_emb.device.type, enabled=False):
            image, text, scale = image_emb.float(), text_emb.float(), logit_scale.float()
            image_rest, text_rest, num_positives = _other_positives(image, text, groups)
            # -log sigmoid(x) = softplus(x) - x: as if all were negatives, less the logits of the positives.
            total = torch.zeros((), dtype=torch.float64, device=image.device)
            for tile in tiles(image, text, scale):
                total += softplus(tile.logits.add_(logit_bias)).sum()
            agreement = scale * (image * (text + image_rest)).sum() + logit_bias * num_positives
            loss = ((total - agreement) / len(image)).float()
        ctx.save_for_backward(image_emb, text_emb, logit_scale, logit_bias, image_rest, text_rest, num_positives)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image_emb, text_emb, logit_scale, logit_bias, image_rest, text_rest, num_positives = ctx.saved_tensors
        with torch.autocast(image_emb.device.type, enabled=False):
            image, text, scale = image_emb.float(), text_emb.float(), logit_scale.float()
            to_text, to_image = -image_rest, -text_rest
            bias_grad = len(image) - num_positives.double()
            ones = torch.ones_like(image[:, 0])
            for tile in tiles(image, text, scale):
                tile.logits.add_(logit_bias).sigmoid_()
                tile.take_off_pairs(ones)
                bias_grad += tile.logits.sum()
                to_text[tile.rows].addmm_(tile.logits, text[tile.columns])
                to_image[tile.columns].addmm_(tile.logits.T, image[tile.rows])
            image_grad, text_grad = (emb * (scale * grad / len(image)) for emb in (to_text, to_image))
            scale_grad = (image * image_grad).sum() / scale
            bias_grad = bias_grad.float() * grad / len(image)
        return (
            image_grad.to(image_emb.dtype),
            text_grad.to(text_emb.dtype),
            scale_grad.to(logit_scale),
            bias_grad.to(logit_bias),
            None,
        )


def _other_positives(
    image: Float[Tensor, "N E"], text: Float[Tensor, "N E"], groups: Tensor | None
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N E"], Int64[Tensor, ""]]:
    """For each row the sum of its positives but its own partner, of texts and of images; and how many positives there are."""
    if groups is None:
        return torch.zeros_like(text), torch.zeros_like(image), torch.tensor(len(image), device=image.device)
    _, number, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    sums = [emb.new_zeros(len(counts), emb.shape[1]).index_add_(0, number, emb) for emb in (text, image)]
    return sums[0][number] - text, sums[1][number] - image, counts.square().sum()
