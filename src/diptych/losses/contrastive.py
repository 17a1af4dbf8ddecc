"""Contrastive losses. Shapes: B batch, E embedding."""

from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from diptych.core.distributed import ALONE, all_ranks


def clip_loss(
    image_emb: Float[Tensor, "B E"],
    text_emb: Float[Tensor, "B E"],
    logit_scale: Float[Tensor, ""],
    groups: Int64[Tensor, " B"] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of the image-to-text and text-to-image cross-entropies (Radford et al. 2021, fig. 3), with several positives a row.

    Without `groups` the positives lie on the diagonal. With them, rows of one group are positives of each other, and a row's
    target is spread evenly over its positives (the outer sum of Khosla et al. 2020, eq. 2); groups of one member give the
    paper's loss. Both embeddings are of unit length. `label_smoothing` is the share of each target, within [0, 1), that is
    spread over the whole batch (Szegedy et al. 2016). `tiled_clip_loss` gives the same without the matrix of logits.

    >>> emb = torch.eye(4)
    >>> bool(clip_loss(emb, emb, torch.tensor(100.0)) < 1e-6)
    True
    """
    logits = logit_scale * image_emb @ text_emb.T
    cross_entropy = partial(functional.cross_entropy, label_smoothing=label_smoothing)
    target = torch.arange(len(logits), device=logits.device)
    if groups is not None:
        positive = groups[:, None] == groups[None, :]
        target = positive / positive.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def batch_accuracy(
    image_emb: Float[Tensor, "B E"],
    text_emb: Float[Tensor, "B E"],
    groups: Int64[Tensor, " B"],
    *,
    max_rows: int = 1024,
    across_ranks: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Share of images whose most similar text of the batch is a positive, and share of texts whose image is; both in [0, 1].

    Measured on the first `max_rows` images and texts, each against the whole batch, so that memory is linear in the batch.
    With `across_ranks` the batch is the joint one of all ranks, of each of which the first rows are measured.
    """
    ranks = all_ranks() if across_ranks else ALONE
    images, texts, own = image_emb[:max_rows], text_emb[:max_rows], groups[:max_rows]
    all_images, all_texts, all_groups = (ranks.gather_rows(each) for each in (image_emb, text_emb, groups))
    image_to_text = all_groups[(images @ all_texts.T).argmax(dim=1)] == own
    text_to_image = all_groups[(texts @ all_images.T).argmax(dim=1)] == own
    shares = ranks.sum(torch.stack([image_to_text.float().mean(), text_to_image.float().mean()])) / ranks.size
    return shares[0], shares[1]
