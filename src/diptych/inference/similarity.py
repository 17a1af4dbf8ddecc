"""Similarity of all pairs of an image and a text. Shapes: I images, X texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.core.lists import check_not_empty
from diptych.core.progress import Track, silently
from diptych.images.fonts import plot_text
from diptych.inference.encoder import Encoder
from diptych.inference.inputs import Images, OnError, encode_all
from diptych.inference.query import Query, query_embeddings


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Similarity of all pairs of an image and a text."""

    images: tuple[str, ...]
    """Names of the images (rows)."""
    texts: tuple[str, ...]
    """The texts (columns)."""
    cosine: Float32[ndarray, "I X"]
    """Cosine similarities of the embeddings, within [-1, 1]."""
    probability: Float32[ndarray, "I X"]
    """Softmax over the texts at the model's temperature; each row sums to 1."""

    def plot(self, path: str | Path) -> None:
        """Save the matrix of cosine similarities as a PNG, PDF or SVG image.

        Raises:
            ConfigError: the file cannot be written.
        """
        from matplotlib.figure import Figure  # noqa: PLC0415  (slow to import, and only this method uses it)

        num_images, num_texts = self.cosine.shape
        figure = Figure(figsize=(3.5 + 0.55 * num_texts, 2.5 + 0.32 * num_images), layout="constrained", dpi=150)
        axes = figure.add_subplot()
        drawn = axes.imshow(self.cosine, cmap="viridis", aspect="auto")
        texts, style = plot_text(self.texts, most=40)
        axes.set_xticks(range(num_texts), texts, rotation=40, ha="right", **style)
        images, style = plot_text((Path(image).name for image in self.images), most=30)
        axes.set_yticks(range(num_images), images, **style)
        if self.cosine.size <= 400:
            middle = float(self.cosine.min() + self.cosine.max()) / 2
            for row, column in np.ndindex(self.cosine.shape):
                value = float(self.cosine[row, column])
                ink = "white" if value < middle else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
        figure.colorbar(drawn, label="cosine")
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def similarity(
    embedder: Encoder,
    images: Images,
    texts: Sequence[str | Query],
    *,
    on_error: OnError | None = None,
    track: Track = silently,
) -> Similarity:
    """Cosine similarities and probabilities of all pairs of an image and a text.

    Args:
        embedder: the encoder.
        images: a folder, or an iterable of images.
        texts: texts, or queries of several texts and images.
        on_error: called with (name, error) for each image that cannot be read; the image is then skipped.
        track: reports progress.

    Raises:
        DiptychError: there are no images or no texts.
        ImageError: an image cannot be read and `on_error` is None, or no image can be read.
    """
    check_not_empty(texts, "text")
    encoded = encode_all(embedder, images, on_error=on_error, track=track)
    cosine = encoded.emb @ query_embeddings(embedder, texts).T
    return Similarity(
        images=encoded.names,
        texts=tuple(map(str, texts)),
        cosine=cosine,
        probability=softmax(cosine * np.float32(embedder.logit_scale)),
    )


def softmax(logits: Float32[ndarray, "I X"]) -> Float32[ndarray, "I X"]:
    """Softmax over the last axis.

    >>> softmax(np.zeros((1, 2), dtype=np.float32)).tolist()
    [[0.5, 0.5]]
    """
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
