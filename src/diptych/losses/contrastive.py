"""Contrastive losses. Shapes: B batch, E embedding."""

from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from diptych.device.distributed import ALONE, Ranks, accepts_across_ranks


def clip_loss(
    image_emb: Float[Tensor, "B E"],
    text_emb: Float[Tensor, "B E"],
    logit_scale: Float[Tensor, ""],
    groups: Int64[Tensor, " B"] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of the image-to-text and text-to-image cross-entropies (Radford et al. 2021, fig. 3).

    `tiled_clip_loss` returns the same value without storing the matrix of logits.

    Args:
        image_emb: image embeddings of unit length.
        text_emb: text embeddings of unit length; row i belongs to image i.
        logit_scale: factor of the cosine similarities.
        groups: positive group of each row. Rows of one group are positives of each other, and the target of a row is uniform
            over its positives (the outer sum of Khosla et al. 2020, eq. 2). If None, row i is the only positive of row i.
        label_smoothing: share of each target that is spread over the whole batch, within [0, 1) (Szegedy et al. 2016).

    Returns:
        The scalar loss.

    >>> emb = torch.eye(4)
    >>> bool(clip_loss(emb, emb, torch.tensor(100.0)) < 1e-6)
    True
    """
    logits = logit_scale * image_emb @ text_emb.T  # B B
    cross_entropy = partial(functional.cross_entropy, label_smoothing=label_smoothing)
    target = torch.arange(len(logits), device=logits.device)
    if groups is not None:
        positive = groups[:, None] == groups[None, :]
        target = positive / positive.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


@accepts_across_ranks
def batch_accuracy(
    image_emb: Float[Tensor, "B E"],
    text_emb: Float[Tensor, "B E"],
    groups: Int64[Tensor, " B"],
    *,
    max_rows: int = 1024,
    ranks: Ranks = ALONE,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Top-1 accuracy within the batch, image to text and text to image.

    The accuracy is measured on the first `max_rows` images and texts, each compared with the whole batch, so that memory is
    linear in the batch size.

    Args:
        image_emb: image embeddings of unit length.
        text_emb: text embeddings of unit length.
        groups: positive group of each row.
        max_rows: maximum number of measured rows per rank.
        ranks: the ranks whose rows together form the batch.

    Returns:
        The share of images whose most similar text is a positive, and the share of texts whose most similar image is a
        positive; both within [0, 1].

    >>> emb = torch.eye(4)
    >>> [share.item() for share in batch_accuracy(emb, emb.roll(1, dims=0), torch.tensor([0, 0, 1, 1]))]
    [0.5, 0.5]
    """
    images, texts, own = image_emb[:max_rows], text_emb[:max_rows], groups[:max_rows]
    all_images, all_texts, all_groups = (ranks.gather_rows(each) for each in (image_emb, text_emb, groups))
    image_to_text = all_groups[(images @ all_texts.T).argmax(dim=1)] == own
    text_to_image = all_groups[(texts @ all_images.T).argmax(dim=1)] == own
    shares = ranks.sum(torch.stack([image_to_text.float().mean(), text_to_image.float().mean()])) / ranks.size
    return shares[0], shares[1]
