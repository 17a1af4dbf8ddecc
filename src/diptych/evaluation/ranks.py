"""Count the negatives that score at least as high as each positive pair, one tile of the score matrix at a time.

All tiles have the same shape (the last ones are padded) and are computed by the same operation. A score is therefore bitwise
equal whenever it is computed again, and ties are exact. Shapes: I images, X texts, E embedding, M most texts of an image.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from diptych.core.deprecation import RenamedAttribute, renamed_names
from diptych.core.lists import chunks
from diptych.core.progress import Track, silently

TILE_IMAGES, TILE_TEXTS = 1024, 4096

__getattr__ = renamed_names(
    __name__,
    {
        "Strangers": "NegativeCounts",
        "count_strangers": "count_negatives",
        "place_with_ties": "own_rank_with_ties",
    },
)


@dataclass(frozen=True)
class NegativeCounts:
    """For each pair of a text and its image, the number of negatives that score at least as high as the pair."""

    images: Int64[ndarray, " X"]
    """Number of other images that score at least as high for the text."""
    texts: Int64[ndarray, " X"]
    """Number of texts of other images that score at least as high for the image."""
    own_rank: Int64[ndarray, " X"]
    """Rank of the text among the texts of its image, from 1."""

    place = RenamedAttribute("own_rank")


def count_negatives(
    image_emb: Float32[ndarray, "I E"],
    text_emb: Float32[ndarray, "X E"],
    image_of_text: Int64[ndarray, " X"],
    *,
    device: torch.device | None = None,
    track: Track = silently,
) -> NegativeCounts:
    """Count, for every positive pair, the negatives that score at least as high.

    Args:
        image_emb: unit embeddings.
        text_emb: unit embeddings. Fewer tiles are computed twice if the texts of an image are consecutive.
        image_of_text: for each text the row of its image; every image must have at least one text.
        device: the device on which scores are computed; by default the CPU.
        track: reports progress.
    """
    tiles = _Tiles(image_emb, text_emb, device or torch.device("cpu"))
    owner = torch.from_numpy(image_of_text)
    score = _own_scores(tiles, owner)
    thresholds, own_rank = _by_image(score, owner, len(image_emb))
    of_images = torch.zeros(thresholds.shape, dtype=torch.int64)
    of_texts = torch.zeros(len(owner), dtype=torch.int64)
    with track("comparing", len(tiles.slices)) as advance:
        for rows, columns in tiles.slices:
            scores = tiles.scores(rows, columns)
            own = score[columns].to(scores.device)
            of_texts[columns] += (scores >= own[None, :]).sum(dim=0).cpu()
            for m in range(thresholds.shape[1]):
                of_images[rows, m] += (scores >= thresholds[rows, m, None].to(scores.device)).sum(dim=1).cpu()
            advance()
    # Both counts include the image's own texts; the difference leaves the texts of other images.
    texts = of_images[owner, own_rank - 1] - own_rank_with_ties(score, owner, thresholds)
    return NegativeCounts(images=(of_texts - 1).numpy(), texts=texts.numpy(), own_rank=own_rank.numpy())


class _Tiles:
    """The score matrix (I, X), computed one tile at a time."""

    def __init__(self, image_emb: ndarray, text_emb: ndarray, device: torch.device) -> None:
        self.images, self.texts = torch.from_numpy(image_emb).to(device), torch.from_numpy(text_emb).to(device)
        self.height, self.width = min(TILE_IMAGES, len(image_emb)), min(TILE_TEXTS, len(text_emb))
        self.slices = [*product(chunks(len(image_emb), self.height), chunks(len(text_emb), self.width))]

    def scores(self, rows: slice, columns: slice) -> Tensor:
        """Return the scores of a slice of images with a slice of texts."""
        images, texts = _padded(self.images[rows], self.height), _padded(self.texts[columns], self.width)
        return (images @ texts.T)[: rows.stop - rows.start, : columns.stop - columns.start]


def _padded(emb: Tensor, num: int) -> Tensor:
    return emb if len(emb) == num else functional.pad(emb, (0, 0, 0, num - len(emb)))


def _own_scores(tiles: _Tiles, owner: Tensor) -> Tensor:
    """Return the score of each text with its image, shape (X,). Only tiles that contain such pairs are computed."""
    score = torch.empty(len(owner))
    for rows, columns in tiles.slices:
        inside = (owner[columns] >= rows.start) & (owner[columns] < rows.stop)
        if inside.any():
            selected = torch.nonzero(inside)[:, 0]
            own = tiles.scores(rows, columns).cpu()[owner[columns][selected] - rows.start, selected]
            score[columns.start + selected] = own
    return score


def _by_image(score: Tensor, owner: Tensor, num_images: int) -> tuple[Float32[Tensor, "I M"], Int64[Tensor, " X"]]:
    """Return the scores of each image's texts in descending order, padded with infinity, and each text's rank there, from 1."""
    order = np.lexsort((-score.numpy(), owner.numpy()))
    counts = torch.bincount(owner, minlength=num_images)
    start_idx = counts.cumsum(0) - counts
    own_rank = torch.empty_like(owner)
    own_rank[torch.from_numpy(order)] = torch.arange(len(owner)) - start_idx[owner[torch.from_numpy(order)]] + 1
    thresholds = torch.full((num_images, int(counts.max())), float("inf"))
    thresholds[owner, own_rank - 1] = score
    return thresholds, own_rank


def own_rank_with_ties(score: Tensor, owner: Tensor, thresholds: Float32[Tensor, "I M"]) -> Int64[Tensor, " X"]:
    """Return for each text the number of texts of its own image that score at least as high, itself included.

    Args:
        score: the score of each text with its image, shape (X,).
        owner: the image of each text, shape (X,).
        thresholds: the scores of each image's texts in descending order, padded with infinity.
    """
    num_as_high = torch.zeros_like(owner)
    for m in range(thresholds.shape[1]):
        other = thresholds[owner, m]
        num_as_high += (other >= score) & (other != float("inf"))
    return num_as_high
