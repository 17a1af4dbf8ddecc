"""Images for a text, texts for an image, most similar first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.core.errors import DiptychError, ImageError
from diptych.core.sample import ImageInput
from diptych.images.decode import describe, list_images
from diptych.inference.embedder import Embedder, check_not_empty, encode_readable


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One result."""

    item: str
    """The image's path, or the text."""
    score: float
    """Its cosine with the query, within [-1, 1]."""
    position: int
    """Where it stood in the list that was ranked."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A query's results, the most similar first."""

    query: str
    results: tuple[Ranked, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """(image, reason) of those that could not be read."""


def rank_images(
    embedder: Embedder, text: str, images: str | Path | Sequence[ImageInput], *, top: int | None = None
) -> Ranking:
    """The images that fit a text best.

    Args:
        text: what is looked for.
        images: a folder, which is searched through with its subfolders, or a list of images.
        top: how many to return; None returns all.

    Raises:
        DiptychError: the text is empty, there are no images, or none can be read.
    """
    return rank_images_for_texts(embedder, [text], images, top=top)[0]


def rank_images_for_texts(
    embedder: Embedder, texts: Sequence[str], images: str | Path | Sequence[ImageInput], *, top: int | None = None
) -> list[Ranking]:
    """One ranking a text; the images are encoded once."""
    check_not_empty(texts, "text")
    if not all(text.strip() for text in texts):
        raise DiptychError("the text to search for is empty")
    listed: Sequence[ImageInput] = list_images(Path(images)) if isinstance(images, str | Path) else images
    check_not_empty(listed, "image")
    image_emb, positions, skipped = encode_readable(embedder, listed)
    if not positions:
        raise ImageError(f"none of {len(listed)} images can be read; the first: {skipped[0][1]}")
    names = [describe(listed[position]) for position in positions]
    cosine = embedder.encode_texts(texts) @ image_emb.T
    return [
        Ranking(query=text, results=_ranked(cosine[row], names, positions, top), skipped=tuple(skipped))
        for row, text in enumerate(texts)
    ]


def rank_texts(embedder: Embedder, image: ImageInput, texts: Sequence[str], *, top: int | None = None) -> Ranking:
    """The texts that fit an image best.

    Raises:
        DiptychError: there are no texts.
        ImageError: the image cannot be read.
    """
    check_not_empty(texts, "text")
    cosine = embedder.encode_texts(texts) @ embedder.encode_images([image])[0]
    return Ranking(query=describe(image), results=_ranked(cosine, texts, range(len(texts)), top))


def _ranked(
    scores: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    names: Sequence[str],
    positions: Sequence[int],
    top: int | None,
) -> tuple[Ranked, ...]:
    if top is not None and top < 1:
        raise DiptychError(f"top is {top}; it must be at least 1")
    order = np.argsort(-scores, kind="stable")[:top]
    return tuple(Ranked(item=names[i], score=float(scores[i]), position=positions[i]) for i in order)
