"""Retrieval between images and texts, with any number of texts per image.

Shapes: I images, X texts, E embedding, Q queries.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from numpy import ndarray

from diptych.core.errors import DataError
from diptych.core.progress import Track, silently
from diptych.data.sources.protocol import Source
from diptych.evaluation.encoded import Captions, EncodedPairs, SourceEncoder
from diptych.evaluation.ranks import count_negatives

_CAPTIONS: dict[Captions, str] = {
    "all": "all of each image",
    "first": "the first of each image (one-caption protocol)",
}

_NUM_NEGATIVES = 20
"""Number of other images with which each text is compared in `pair_scores`."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """The metrics of one direction. Recalls are in [0, 1]; ranks start at 1."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    mean_average_precision: float
    """In [0, 1]. If each query has one correct answer, this is the mean of 1 / rank."""
    num_queries: int
    num_candidates: int


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Cosine similarities of texts with their own image (positives) and with other images (negatives)."""

    own: float
    """Median cosine of positives."""
    others: float
    """Median cosine of negatives."""
    threshold: float
    """Cosine at which the share of positives below it equals the share of negatives above it (equal error rate)."""
    wrong: float
    """That share, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """The metrics of both directions."""

    image_to_text: Recall
    """An image counts as found at k if any of its texts is among the k best."""
    text_to_image: Recall
    """A text counts as found at k if its image is among the k best."""
    pairs: PairScores
    """Cosine similarities of pairs; `classify --threshold auto` uses their threshold."""
    protocol: dict[str, str | int]
    """How the metrics were measured."""

    @property
    def mean_r1(self) -> float:
        """Mean R@1 of both directions."""
        return (self.image_to_text.r1 + self.text_to_image.r1) / 2

    @property
    def mean_average_precision(self) -> float:
        """Mean of the mean average precisions of both directions."""
        return (self.image_to_text.mean_average_precision + self.text_to_image.mean_average_precision) / 2


@dataclass(frozen=True)
class Ranks:
    """The ranks of the correct answers of each query.

    >>> ranks = Ranks(np.array([1, 3]), np.array([1, 1 / 3]), num_candidates=3)
    >>> ranks.found_at(1).tolist(), ranks.recall().mean_rank
    ([True, False], 2.0)
    """

    rank: Int64[ndarray, " Q"]
    """Rank of the first correct answer, from 1."""
    average_precision: Float[ndarray, " Q"]
    """In [0, 1]."""
    num_candidates: int

    def found_at(self, k: int) -> Bool[ndarray, " Q"]:
        """Return whether a correct answer is among the k best."""
        return self.rank <= k

    def recall(self) -> Recall:
        """Return the metrics over all queries."""
        r1, r5, r10 = (float(self.found_at(k).mean()) for k in (1, 5, 10))
        return Recall(
            r1=r1,
            r5=r5,
            r10=r10,
            median_rank=float(np.median(self.rank)),
            mean_rank=float(self.rank.mean()),
            mean_average_precision=float(self.average_precision.mean()),
            num_queries=len(self.rank),
            num_candidates=self.num_candidates,
        )


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """The results of retrieval for each query, and the metrics."""

    report: RetrievalReport
    pairs: EncodedPairs
    image_to_text: Ranks
    text_to_image: Ranks


def evaluate_retrieval(encoder: SourceEncoder, source: Source, *, split: str, captions: Captions = "all") -> Retrieval:
    """Encode a source and measure retrieval in both directions. Unreadable images are skipped and counted in the protocol.

    Args:
        encoder: the model.
        source: images with captions.
        split: name of the split, for the protocol.
        captions: use all captions of each image, or only the first.

    Raises:
        DataError: no image of the source can be read, or one has no caption.
    """
    return rank_pairs(encoder, encoder.encode_pairs(source, captions=captions), split=split)


def rank_pairs(encoder: SourceEncoder, pairs: EncodedPairs, *, split: str) -> Retrieval:
    """Measure retrieval in both directions on encoded pairs.

    Args:
        encoder: the model that encoded the pairs.
        pairs: the encoded pairs.
        split: name of the split, for the protocol.
    """
    image_to_text, text_to_image = retrieval_ranks(
        pairs.image_emb,
        pairs.text_emb,
        pairs.image_of_text,
        device=torch.device(str(encoder.embedder.device)),
        track=encoder.track,
    )
    report = RetrievalReport(
        image_to_text=image_to_text.recall(),
        text_to_image=text_to_image.recall(),
        pairs=pair_scores(pairs.image_emb, pairs.text_emb, pairs.image_of_text),
        protocol={
            **encoder.protocol(pairs.images, split=split),
            "texts": len(pairs.captions),
            "captions": f"{_CAPTIONS[pairs.selected]}; ties count against the model",
        },
    )
    return Retrieval(report=report, pairs=pairs, image_to_text=image_to_text, text_to_image=text_to_image)


def pair_scores(
    image_emb: Float32[ndarray, "I E"], text_emb: Float32[ndarray, "X E"], image_of_text: Int64[ndarray, " X"]
) -> PairScores:
    """Return the cosines of texts with their own image and with up to 20 other images, and the threshold between them.

    Args:
        image_emb: unit embeddings.
        text_emb: unit embeddings.
        image_of_text: for each text the row of its image.
    """
    own = np.einsum("xe,xe->x", text_emb, image_emb[image_of_text])
    steps = np.unique(np.linspace(1, max(1, len(image_emb) - 1), _NUM_NEGATIVES, dtype=np.int64))
    others = np.concatenate(
        [np.einsum("xe,xe->x", text_emb, image_emb[(image_of_text + step) % len(image_emb)]) for step in steps]
    )
    own, others = np.sort(own), np.sort(others)
    candidates = np.sort(np.concatenate([own, others]))
    below = np.searchsorted(own, candidates) / len(own)
    above = 1 - np.searchsorted(others, candidates) / len(others)
    best = int(np.argmin(np.abs(below - above)))
    return PairScores(
        own=float(np.median(own)),
        others=float(np.median(others)),
        threshold=float(candidates[best]),
        wrong=float(max(below[best], above[best])),
    )


def retrieval_ranks(
    image_emb: Float32[ndarray, "I E"],
    text_emb: Float32[ndarray, "X E"],
    image_of_text: Int64[ndarray, " X"],
    *,
    device: torch.device | None = None,
    track: Track = silently,
) -> tuple[Ranks, Ranks]:
    """Return the ranks of image-to-text and of text-to-image retrieval. A negative with the same score ranks before a positive.

    Args:
        image_emb: unit embeddings.
        text_emb: unit embeddings.
        image_of_text: for each text the row of its image; every image must have at least one text.
        device: the device on which scores are computed; by default the CPU.
        track: reports progress.

    Raises:
        DataError: an embedding is NaN or infinite.
    """
    for name, emb in (("image", image_emb), ("text", text_emb)):
        bad = np.flatnonzero(~np.isfinite(emb).all(axis=1))
        if len(bad):
            raise DataError(f"{len(bad)} of {len(emb)} {name} embeddings are not numbers; the first is number {bad[0]}")
    negatives = count_negatives(image_emb, text_emb, image_of_text, device=device, track=track)
    # At an image's k-th best text, precision is k / (k + number of negatives ranked before it).
    precision = negatives.own_rank / (negatives.own_rank + negatives.texts)
    count = np.bincount(image_of_text, minlength=len(image_emb))
    best = np.full(len(image_emb), np.iinfo(np.int64).max)
    np.minimum.at(best, image_of_text, negatives.texts)
    average = np.bincount(image_of_text, weights=precision, minlength=len(image_emb)) / count
    text_rank = 1 + negatives.images
    return Ranks(1 + best, average, len(text_emb)), Ranks(text_rank, 1 / text_rank, len(image_emb))
