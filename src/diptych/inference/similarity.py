"""How alike each image and each text are. Shapes: I images, X texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.sample import ImageInput
from diptych.images.decode import describe
from diptych.inference.embedder import Embedder, check_not_empty


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Every image against every text."""

    images: tuple[str, ...]
    texts: tuple[str, ...]
    cosine: Float32[ndarray, "I X"]
    """Cosines of the embeddings, within [-1, 1]."""
    probability: Float32[ndarray, "I X"]
    """Softmax over the texts at the model's temperature: each row adds up to 1."""


def similarity(embedder: Embedder, images: Sequence[ImageInput], texts: Sequence[str]) -> Similarity:
    """Cosines and probabilities of the texts for each image.

    Raises:
        DiptychError: there are no images or no texts.
        ImageError: an image cannot be read.
    """
    check_not_empty(images, "image")
    check_not_empty(texts, "text")
    cosine = embedder.encode_images(images) @ embedder.encode_texts(texts).T
    return Similarity(
        images=tuple(describe(image) for image in images),
        texts=tuple(texts),
        cosine=cosine,
        probability=softmax(cosine * np.float32(embedder.logit_scale)),
    )


def softmax(logits: Float32[ndarray, "I X"]) -> Float32[ndarray, "I X"]:
    """Probabilities along the last axis.

    >>> softmax(np.zeros((1, 2), dtype=np.float32)).tolist()
    [[0.5, 0.5]]
    """
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
