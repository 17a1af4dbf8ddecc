"""Images for a text, texts for an image, most similar first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.progress import Track, silently
from diptych.core.sample import ImageInput
from diptych.images.formats import LeftOut
from diptych.inference.embedder import check_not_empty
from diptych.inference.encoder import Encoder
from diptych.inference.inputs import Images, encode_all
from diptych.inference.query import Query, Term, query_embeddings


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
    left_out: tuple[LeftOut, ...] = ()
    """Pictures of unsupported formats in the folder, by suffix."""


def rank_images(
    embedder: Encoder, text: str | Query, images: Images, *, top: int | None = None, track: Track = silently
) -> Ranking:
    """The images that fit a text best.

    Args:
        embedder: the model.
        text: what is looked for: a text, or a query of several texts and pictures.
        images: a folder, or images. Those that cannot be read are left out and told.
        top: how many to return; None returns all.
        track: told how far it is.

    Raises:
        DiptychError: the text is empty or none, there are no images, or none can be read.
    """
    if not isinstance(text, str | Query):
        raise DiptychError(f"text must be one text or query, and is a {type(text).__name__}: {text!r:.60}")
    return rank_images_for_texts(embedder, [text], images, top=top, track=track)[0]


def rank_images_for_texts(
    embedder: Encoder,
    texts: Sequence[str | Query],
    images: Images,
    *,
    top: int | None = None,
    track: Track = silently,
) -> list[Ranking]:
    """One ranking a text; the images are encoded once."""
    check_not_empty(texts, "text")
    if not all(isinstance(text, Query) or text.strip() for text in texts):
        raise DiptychError("the text to search for is empty")
    skipped: list[tuple[str, str]] = []
    encoded = encode_all(embedder, images, on_error=lambda name, error: skipped.append((name, str(error))), track=track)
    cosine = query_embeddings(embedder, texts) @ encoded.emb.T
    return [
        Ranking(
            query=str(text),
            results=_ranked(cosine[row], encoded.names, encoded.positions, top),
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
    """The texts that fit an image best.

    Args:
        embedder: the model.
        image: an image, or a query of several texts and pictures.
        texts: what is ranked.
        top: how many to return; None returns all.
        track: told how far it is.

    Raises:
        DiptychError: there are no texts.
        ImageError: the image cannot be read.
    """
    check_not_empty(texts, "text")
    query = image if isinstance(image, Query) else Query((Term(kind="image", value=image),))
    asked = query_embeddings(embedder, [query])[0]
    with track("texts", len(texts)) as advance:
        cosine = embedder.encode_texts(texts, advance=advance) @ asked
    return Ranking(query=str(query), results=_ranked(cosine, texts, range(len(texts)), top))


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
