"""Retrieval between images and texts, any number of texts an image.

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
from diptych.evaluation.ranks import count_strangers

_CAPTIONS: dict[Captions, str] = {
    "all": "all of each image",
    "first": "the first of each image (one-caption protocol)",
}

_STRANGERS = 20
"""Images of others that each text is held against."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """One direction. Recalls are shares within [0, 1], ranks count from 1."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    mean_average_precision: float
    """Within [0, 1]; where a query has one right answer, the mean of 1 / rank."""
    num_queries: int
    num_candidates: int


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Cosines of texts with their own image, and with images that are not theirs."""

    own: float
    """Median."""
    others: float
    """Median."""
    threshold: float
    """Between the two kinds: as large a share of the one lies below it as of the other above."""
    wrong: float
    """That share, within [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Both directions and how they were measured."""

    image_to_text: Recall
    """An image counts as found at k when any of its texts is among the k best."""
    text_to_image: Recall
    """A text counts as found at k when its image is among the k best."""
    pairs: PairScores
    """What a cosine of this model says; "none of these" is calibrated by it."""
    protocol: dict[str, str | int]

    @property
    def mean_r1(self) -> float:
        """Mean of both directions' R@1."""
        return (self.image_to_text.r1 + self.text_to_image.r1) / 2

    @property
    def mean_average_precision(self) -> float:
        """Mean of both directions'."""
        return (self.image_to_text.mean_average_precision + self.text_to_image.mean_average_precision) / 2


@dataclass(frozen=True)
class Ranks:
    """Where each query finds its first right answer, from 1, and its average precision."""

    rank: Int64[ndarray, " Q"]
    average_precision: Float[ndarray, " Q"]
    num_candidates: int

    def found_at(self, k: int) -> Bool[ndarray, " Q"]:
        """Whether it is among the k best."""
        return self.rank <= k

    def recall(self) -> Recall:
        """The figures of it."""
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
    """A retrieval query by query, and what follows from it."""

    report: RetrievalReport
    pairs: EncodedPairs
    image_to_text: Ranks
    text_to_image: Ranks


def evaluate_retrieval(encoder: SourceEncoder, source: Source, *, split: str, captions: Captions = "all") -> Retrieval:
    """Encode a source and measure both directions. Unreadable images are left out and counted.

    Args:
        encoder: the model.
        source: images and captions.
        split: its name, for the protocol.
        captions: all of each image, or its first alone.

    Raises:
        DataError: no image of the source can be read, or one has no caption.
    """
    return rank_pairs(encoder, encoder.encode_pairs(source, captions=captions), split=split)


def rank_pairs(encoder: SourceEncoder, pairs: EncodedPairs, *, split: str) -> Retrieval:
    """Measure both directions on a source that is encoded already."""
    image_to_text, text_to_image = retrieval_ranks(
        pairs.image_emb,
        pairs.text_emb,
        pairs.image_of_text,
        device=encoder.embedder.device,
        track=encoder.track,
    )
    report = RetrievalReport(
        image_to_text=image_to_text.recall(),
        text_to_image=text_to_image.recall(),
        pairs=pair_scores(pairs.image_emb, pairs.text_emb, pairs.image_of_text),
        protocol={
            **encoder.protocol(pairs.images, split=split),
            "texts": len(pairs.captions),
            "captions": f"{_CAPTIONS[pairs.chosen]}; ties count against the model",
        },
    )
    return Retrieval(report=report, pairs=pairs, image_to_text=image_to_text, text_to_image=text_to_image)


def pair_scores(
    image_emb: Float32[ndarray, "I E"], text_emb: Float32[ndarray, "X E"], image_of_text: Int64[ndarray, " X"]
) -> PairScores:
    """What tells a text's own image from others, of which each text is held against a few."""
    own = np.einsum("xe,xe->x", text_emb, image_emb[image_of_text])
    steps = np.unique(np.linspace(1, max(1, len(image_emb) - 1), _STRANGERS, dtype=np.int64))
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
    """Image to text, and text to image. A stranger of the same score stands before a partner.

    Args:
        image_emb: unit embeddings.
        text_emb: unit embeddings.
        image_of_text: for each text the row of its image; every image has at least one text.
        device: where they are compared.
        track: told how far it is.

    Raises:
        DataError: an embedding is not a number.
    """
    for name, emb in (("image", image_emb), ("text", text_emb)):
        bad = np.flatnonzero(~np.isfinite(emb).all(axis=1))
        if len(bad):
            raise DataError(f"{len(bad)} of {len(emb)} {name} embeddings are not numbers; the first is number {bad[0]}")
    strangers = count_strangers(image_emb, text_emb, image_of_text, device=device, track=track)
    # Of an image's k-th best text, k of the k + strangers that stand there or before are right.
    precision = strangers.place / (strangers.place + strangers.texts)
    count = np.bincount(image_of_text, minlength=len(image_emb))
    best = np.full(len(image_emb), np.iinfo(np.int64).max)
    np.minimum.at(best, image_of_text, strangers.texts)
    average = np.bincount(image_of_text, weights=precision, minlength=len(image_emb)) / count
    text_rank = 1 + strangers.images
    return Ranks(1 + best, average, len(text_emb)), Ranks(text_rank, 1 / text_rank, len(image_emb))
