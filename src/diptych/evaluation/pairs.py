"""A source's images and captions as embeddings: what retrieval and validation are both measured on.

Shapes: I images, X texts, E embedding.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.errors import DataError, ImageError
from diptych.core.sample import ImageInput, Sample
from diptych.data.sources.protocol import Source
from diptych.inference.embedder import Embedder, encode_readable


@dataclass(frozen=True, kw_only=True)
class EncodedPairs:
    """The readable samples of a source with all their captions."""

    samples: tuple[Sample, ...]
    captions: tuple[str, ...]
    image_emb: Float32[ndarray, "I E"]
    text_emb: Float32[ndarray, "X E"]
    image_of_text: Int64[ndarray, " X"]
    """For each caption the row of its image."""
    num_skipped: int
    """Samples whose image could not be read."""


def encode_pairs(embedder: Embedder, source: Source) -> EncodedPairs:
    """Encode every readable image of a source and all captions of those.

    Raises:
        DataError: no image can be read.
    """
    samples, image_emb, num_skipped = encode_samples(embedder, source)
    captions = tuple(caption for sample in samples for caption in sample.captions)
    return EncodedPairs(
        samples=samples,
        captions=captions,
        image_emb=image_emb,
        text_emb=embedder.encode_texts(captions),
        image_of_text=np.array([row for row, sample in enumerate(samples) for _ in sample.captions], dtype=np.int64),
        num_skipped=num_skipped,
    )


def encode_samples(embedder: Embedder, source: Source) -> tuple[tuple[Sample, ...], Float32[ndarray, "I E"], int]:
    """The readable samples of a source, the embeddings of their images, and how many could not be read.

    Raises:
        DataError: no image can be read.
    """
    samples, reasons = list[Sample](), list[str]()
    for i in range(len(source)):
        try:
            samples.append(source[i])
        except ImageError as error:  # A tar that has gone, say.
            reasons.append(str(error))
    images: list[ImageInput] = [sample.image for sample in samples]
    image_emb, good, skipped = encode_readable(embedder, images)
    reasons += [reason for _, reason in skipped]
    if not good:
        raise DataError(f"none of {len(source)} images can be read; the first: {reasons[0]}")
    return tuple(samples[position] for position in good), image_emb, len(reasons)
