"""Retrieval between images and texts, any number of texts an image.

Shapes: I images, X texts, E embedding, Q queries, C candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from diptych.core.errors import DataError
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import split_hash
from diptych.evaluation.pairs import EncodedPairs, encode_pairs
from diptych.images.transforms import size_name
from diptych.inference.embedder import Embedder

CHUNK = 1024
"""Queries that are scored at once; the whole matrix is never held."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """One direction. Recalls are shares within [0, 1], ranks count from 1."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    num_queries: int
    num_candidates: int


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Both directions and how they were measured."""

    image_to_text: Recall
    """An image counts as found at k when any of its texts is among the k best."""
    text_to_image: Recall
    """A text counts as found at k when its image is among the k best."""
    protocol: dict[str, str | int]

    @property
    def mean_r1(self) -> float:
        """Mean of both directions' R@1."""
        return (self.image_to_text.r1 + self.text_to_image.r1) / 2


def evaluate_retrieval(embedder: Embedder, source: Source, *, split: str) -> RetrievalReport:
    """Encode a source and measure both directions with all captions. Unreadable images are left out and counted.

    Raises:
        DataError: no image of the source can be read.
    """
    pairs = encode_pairs(embedder, source)
    return report_retrieval(embedder, source, pairs, split=split)


def report_retrieval(embedder: Embedder, source: Source, pairs: EncodedPairs, *, split: str) -> RetrievalReport:
    """Measure both directions on a source that is encoded already."""
    image_to_text, text_to_image = retrieval_recalls(pairs.image_emb, pairs.text_emb, pairs.image_of_text)
    return RetrievalReport(
        image_to_text=image_to_text,
        text_to_image=text_to_image,
        protocol={
            "split": split,
            "split_hash": split_hash(source),
            "images": len(pairs.samples),
            "texts": len(pairs.captions),
            "skipped_images": pairs.num_skipped,
            "captions": "all of each image; ties count against the model",
            "transform": f"{embedder.bundle.config.pixels.interpolation} short side, centre crop",
            "image_px": size_name(embedder.bundle.config.image.image_px),
            "precision": "float32",
        },
    )


def retrieval_recalls(
    image_emb: Float32[ndarray, "I E"], text_emb: Float32[ndarray, "X E"], image_of_text: Int64[ndarray, " X"]
) -> tuple[Recall, Recall]:
    """Image-to-text and text-to-image recall.

    Args:
        image_emb: unit embeddings.
        text_emb: unit embeddings.
        image_of_text: for each text the row of its image; every image has at least one text.

    Raises:
        DataError: an embedding is not a number.
    """
    for name, emb in (("image", image_emb), ("text", text_emb)):
        bad = np.flatnonzero(~np.isfinite(emb).all(axis=1))
        if len(bad):
            raise DataError(f"{len(bad)} of {len(emb)} {name} embeddings are not numbers; the first is number {bad[0]}")
    image_ranks = [
        _ranks(scores, image_of_text[None, :] == np.arange(len(image_emb))[rows, None])
        for rows, scores in _score_chunks(image_emb, text_emb)
    ]
    text_ranks = [
        _ranks(scores, image_of_text[rows, None] == np.arange(len(image_emb))[None, :])
        for rows, scores in _score_chunks(text_emb, image_emb)
    ]
    return _recall(np.concatenate(image_ranks), len(text_emb)), _recall(np.concatenate(text_ranks), len(image_emb))


def _score_chunks(
    queries: Float32[ndarray, "Q E"], candidates: Float32[ndarray, "C E"]
) -> Iterator[tuple[slice, Float32[ndarray, "Q2 C"]]]:
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, start + CHUNK)
        yield rows, queries[rows] @ candidates.T


def _ranks(scores: Float32[ndarray, "Q C"], is_positive: Bool[ndarray, "Q C"]) -> Int64[ndarray, " Q"]:
    """Rank of each query's best positive; a negative of the same score stands before it."""
    best = np.where(is_positive, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best) & ~is_positive).sum(axis=1).astype(np.int64)


def _recall(ranks: Int64[ndarray, " Q"], num_candidates: int) -> Recall:
    r1, r5, r10 = (float((ranks <= k).mean()) for k in (1, 5, 10))
    return Recall(
        r1=r1,
        r5=r5,
        r10=r10,
        median_rank=float(np.median(ranks)),
        num_queries=len(ranks),
        num_candidates=num_candidates,
    )
