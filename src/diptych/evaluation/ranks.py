"""How many strangers stand before each partner, without the matrix of scores: memory is that of a tile.

Every tile has one shape, the last ones filled up, and is computed in one way, so that a score is the same number whenever it
is computed, and ties are ties. Shapes: I images, X texts, E embedding, M most texts of an image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from diptych.core.progress import Track, silently

TILE_IMAGES, TILE_TEXTS = 1024, 4096


@dataclass(frozen=True)
class Strangers:
    """Of each pair of a text and its image, how many others score as high or higher."""

    images: Int64[ndarray, " X"]
    """Other images for the text."""
    texts: Int64[ndarray, " X"]
    """Texts of other images for the image."""
    place: Int64[ndarray, " X"]
    """Of the text among its image's texts, the best 1."""


def count_strangers(
    image_emb: Float32[ndarray, "I E"],
    text_emb: Float32[ndarray, "X E"],
    image_of_text: Int64[ndarray, " X"],
    *,
    device: torch.device | None = None,
    track: Track = silently,
) -> Strangers:
    """Compare every text with every image once. Each image has at least one text, and texts of an image are neighbours."""
    tiles = _Tiles(image_emb, text_emb, device or torch.device("cpu"))
    owner = torch.from_numpy(image_of_text)
    score = _own_scores(tiles, owner)
    thresholds, place = _by_image(score, owner, len(image_emb))
    of_images = torch.zeros(thresholds.shape, dtype=torch.int64)
    of_texts = torch.zeros(len(owner), dtype=torch.int64)
    with track("comparing", len(tiles.places)) as advance:
        for rows, columns in tiles.places:
            scores = tiles.scores(rows, columns)
            own = score[columns].to(scores.device)
            of_texts[columns] += (scores >= own[None, :]).sum(dim=0).cpu()
            for m in range(thresholds.shape[1]):
                of_images[rows, m] += (scores >= thresholds[rows, m, None].to(scores.device)).sum(dim=1).cpu()
            advance()
    as_high = of_images[owner, place - 1] - place_with_ties(score, owner, thresholds)
    return Strangers(images=(of_texts - 1).numpy(), texts=as_high.numpy(), place=place.numpy())


class _Tiles:
    """The matrix of scores, tile by tile."""

    def __init__(self, image_emb: ndarray, text_emb: ndarray, device: torch.device) -> None:
        self.images, self.texts = torch.from_numpy(image_emb).to(device), torch.from_numpy(text_emb).to(device)
        self.height, self.width = min(TILE_IMAGES, len(image_emb)), min(TILE_TEXTS, len(text_emb))
        self.places = [
            (slice(top, min(top + self.height, len(image_emb))), slice(left, min(left + self.width, len(text_emb))))
            for top in range(0, len(image_emb), self.height)
            for left in range(0, len(text_emb), self.width)
        ]

    def scores(self, rows: slice, columns: slice) -> Tensor:
        """Of images and texts there."""
        images, texts = _filled(self.images[rows], self.height), _filled(self.texts[columns], self.width)
        return (images @ texts.T)[: rows.stop - rows.start, : columns.stop - columns.start]


def _filled(emb: Tensor, num: int) -> Tensor:
    return emb if len(emb) == num else functional.pad(emb, (0, 0, 0, num - len(emb)))


def _own_scores(tiles: _Tiles, owner: Tensor) -> Tensor:
    """Of each text with its image; only tiles in which there are such pairs are computed."""
    score = torch.empty(len(owner))
    for rows, columns in tiles.places:
        inside = (owner[columns] >= rows.start) & (owner[columns] < rows.stop)
        if inside.any():
            chosen = torch.nonzero(inside)[:, 0]
            found = tiles.scores(rows, columns).cpu()[owner[columns][chosen] - rows.start, chosen]
            score[columns.start + chosen] = found
    return score


def _by_image(score: Tensor, owner: Tensor, num_images: int) -> tuple[Float32[Tensor, "I M"], Int64[Tensor, " X"]]:
    """The scores of each image's texts, the best first, filled up with what nothing reaches; and each text's place there."""
    order = np.lexsort((-score.numpy(), owner.numpy()))
    counts = torch.bincount(owner, minlength=num_images)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(owner)
    place[torch.from_numpy(order)] = torch.arange(len(owner)) - first[owner[torch.from_numpy(order)]] + 1
    thresholds = torch.full((num_images, int(counts.max())), float("inf"))
    thresholds[owner, place - 1] = score
    return thresholds, place


def place_with_ties(score: Tensor, owner: Tensor, thresholds: Float32[Tensor, "I M"]) -> Int64[Tensor, " X"]:
    """Of each text, how many texts of its own image score as high or higher, itself among them."""
    counted = torch.zeros_like(owner)
    for m in range(thresholds.shape[1]):
        other = thresholds[owner, m]
        counted += (other >= score) & (other != float("inf"))
    return counted
