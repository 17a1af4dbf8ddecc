"""Ranking of images for a text, and of texts for an image, by cosine similarity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diptych.core.deprecation import renamed_names
from diptych.core.errors import DiptychError
from diptych.core.lists import check_not_empty
from diptych.core.progress import Track, silently
from diptych.core.sample import ImageInput
from diptych.images.formats import LeftOut
from diptych.inference.encoder import Encoder
from diptych.inference.inputs import Images, encode_all
from diptych.inference.query import Query, Term, query_embeddings


@dataclass(frozen=True, kw_only=True)
class RankedItem:
    """One image or text of a ranking."""

    item: str
    """The image's path, or the text."""
    score: float
    """Cosine similarity with the query, within [-1, 1]."""
    position: int
    """Its index in the input."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The ranking for one query."""

    query: str
    """The text, or the query as a string."""
    results: tuple[RankedItem, ...]
    """The results, most similar first."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(image, reason) for each image that could not be read."""
    left_out: tuple[LeftOut, ...] = ()
    """Images of unsupported formats in the folder, by suffix."""


def rank_images(
    embedder: Encoder, text: str | Query, images: Images, *, top: int | None = None, track: Track = silently
) -> Ranking:
    """Rank images by their similarity to a text.

    Args:
        embedder: the encoder.
        text: a text, or a query of several texts and images.
        images: a folder, or an iterable of images. Images that cannot be read are listed in `Ranking.skipped`.
        top: number of results; None returns all.
        track: reports progress.

    Returns:
        The images, most similar first.

    Raises:
        DiptychError: `text` is empty or not a text, there are no images, or no image can be read.
    """
    if not isinstance(text, str | Query):
        raise DiptychError(f"text must be a single text or query; it is a {type(text).__name__}: {text!r:.60}")
    return rank_images_for_texts(embedder, [text], images, top=top, track=track)[0]


def rank_images_for_texts(
    embedder: Encoder, texts: Sequence[str | Query], images: Images, *, top: int | None = None, track: Track = silently
) -> list[Ranking]:
    """One ranking per text; see `rank_images`. The images are encoded once."""
    check_not_empty(texts, "text")
    if not all(isinstance(text, Query) or text.strip() for text in texts):
        raise DiptychError("the text to search for is empty")
    skipped: list[tuple[str, str]] = []
    encoded = encode_all(embedder, images, on_error=lambda name, error: skipped.append((name, str(error))), track=track)
    cosine = query_embeddings(embedder, texts) @ encoded.emb.T
    return [
        Ranking(
            query=str(text),
            results=_rank(cosine[row], encoded.names, encoded.positions, top),
            skipped=tuple(skipped),
            left_out=encoded.left_out,
        )
        for row, text in enumerate(texts)
    ]


def rank_texts(
    embedder: Encoder,
    image: ImageInput | Query,
    texts: Sequence[str],
    *,
    top: int | None = None,
    track: Track = silently,
) -> Ranking:
    """Rank texts by their similarity to an image.

    Args:
        embedder: the encoder.
        image: an image, or a query of several texts and images.
        texts: the texts.
        top: number of results; None returns all.
        track: reports progress.

    Returns:
        The texts, most similar first.

    Raises:
        DiptychError: there are no texts.
        ImageError: the image cannot be read.
    """
    check_not_empty(texts, "text")
    query = image if isinstance(image, Query) else Query((Term(kind="image", value=image),))
    query_emb = query_embeddings(embedder, [query])[0]
    with track("texts", len(texts)) as advance:
        cosine = embedder.encode_texts(texts, advance=advance) @ query_emb
    return Ranking(query=str(query), results=_rank(cosine, texts, range(len(texts)), top))


def _rank(
    scores: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    names: Sequence[str],
    positions: Sequence[int],
    top: int | None,
) -> tuple[RankedItem, ...]:
    if top is not None and top < 1:
        raise DiptychError(f"top is {top}; it must be at least 1")
    order = np.argsort(-scores, kind="stable")[:top]
    return tuple(RankedItem(item=names[i], score=float(scores[i]), position=positions[i]) for i in order)


if not TYPE_CHECKING:
    __getattr__ = renamed_names(__name__, {"Ranked": "RankedItem"})
