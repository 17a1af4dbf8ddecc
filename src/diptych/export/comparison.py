"""Compare the embeddings of an ONNX export with those of its model, on images and on texts of several lengths.

Shapes: N images or texts, H W height and width in pixels, E embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

from diptych.core.errors import BundleError
from diptych.inference.embedder import Embedder
from diptych.tokenizers.protocol import Encoded, Tokenizer

NUM_DRAWN = 12
"""Number of images that are drawn for a comparison."""
_BATCH = 8
_CAPTIONS = [
    "",
    "a",
    "a photo of a dog",
    "Two children play in the snow behind a red car, and a third one watches them.",
]
_RANDOM_LENGTHS = (1, 3, 5, 8, 13, 21, 34)


@dataclass(frozen=True, kw_only=True)
class TowerComparison:
    """Embeddings of one exported tower compared with those of the model."""

    num: int
    """Number of images or texts."""
    max_difference: float
    """Maximum absolute difference between two corresponding numbers of the embeddings."""
    min_cosine: float
    """Minimum cosine similarity between the two embeddings of the same image or text."""


def draw_images(num: int = NUM_DRAWN) -> list[Image.Image]:
    """Return drawn images of several sizes with shapes, gradients and noise. Every call returns the same images.

    >>> [image.size for image in draw_images(2)]
    [(320, 240), (240, 320)]
    """
    generator = np.random.default_rng(0)
    sizes = [(320, 240), (240, 320), (256, 256), (500, 200)]
    return [_drawn(sizes[i % len(sizes)], generator) for i in range(num)]


def sample_texts(tokenizer: Tokenizer) -> list[str]:
    """Return captions and random sequences of vocabulary entries, from empty to longer than the context."""
    generator = np.random.default_rng(0)
    room = tokenizer.context_length
    lengths = [*(n for n in _RANDOM_LENGTHS if n < room), room - 2, room - 1, 2 * room]
    random = [tokenizer.decode(generator.integers(tokenizer.vocab_size, size=n).tolist()) for n in lengths]
    return [*_CAPTIONS, " ".join(["a red circle near two blue dogs"] * room), *random]


def compare_images(ours: Embedder, theirs: Embedder, pixels: Sequence[UInt8[ndarray, "3 H W"]]) -> TowerComparison:
    """Compare the image tower of a model with its ONNX graph, on batches of several sizes.

    Args:
        ours: the embedder of the model.
        theirs: the embedder of the graphs.
        pixels: transformed images.
    """
    parts = [pixels[i : i + _BATCH] for i in range(0, len(pixels), _BATCH)]
    shifted = [pixels[:1], *(pixels[i : i + _BATCH] for i in range(1, len(pixels), _BATCH))]
    return _compared(
        np.concatenate([ours.encode_pixels(part) for part in parts]),
        np.concatenate([theirs.encode_pixels(part) for part in shifted]),
    )


def compare_texts(ours: Embedder, theirs: Embedder, texts: Sequence[str]) -> TowerComparison:
    """Compare the text tower of a model with its ONNX graph: all texts in padded batches, then each text alone.

    Args:
        ours: the embedder of the model.
        theirs: the embedder of the graphs.
        texts: the texts, some of which may be longer than the context.
    """
    for embedder in (ours, theirs):
        embedder.on_cut = lambda _: None
    expected = ours.encode_texts(texts)
    alone = np.concatenate([theirs.encode_texts([text]) for text in texts])
    compared = _compared(np.concatenate([expected, expected]), np.concatenate([theirs.encode_texts(texts), alone]))
    return replace(compared, num=len(texts))


def check_ids(theirs: Sequence[Sequence[int]], ours: Encoded, texts: Sequence[str]) -> None:
    """Check that the exported tokenizer returns the same ids as the bundle's tokenizer.

    Args:
        theirs: ids from the exported tokenizer, one sequence per text.
        ours: texts encoded by the bundle's tokenizer.
        texts: the texts.

    Raises:
        BundleError: the ids of a text differ; the message shows the text.
    """
    for row, other, text in zip(ours.ids, theirs, texts, strict=True):
        if row.tolist() != [*other]:
            raise BundleError(f"tokenizer.json gives other ids than the bundle for the text {text!r:.80}")


def _compared(ours: Float32[ndarray, "N E"], theirs: Float32[ndarray, "N E"]) -> TowerComparison:
    return TowerComparison(
        num=len(ours),
        max_difference=float(np.abs(ours - theirs).max()),
        min_cosine=float(np.einsum("ne,ne->n", ours, theirs, dtype=np.float64).min()),
    )


def _drawn(size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    width, height = size
    ramp = np.linspace(generator.integers(256, size=3), generator.integers(256, size=3), width)  # width 3
    noise = generator.normal(scale=generator.uniform(0, 40), size=(height, width, 3))
    image = Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(generator.integers(1, 8))):
        left, top = (int(generator.integers(-20, side)) for side in size)
        right, bottom = left + int(generator.integers(10, width)), top + int(generator.integers(10, height))
        shape = draw.ellipse if generator.random() < 0.5 else draw.rectangle
        shape((left, top, right, bottom), fill=(*(int(c) for c in generator.integers(256, size=3)),))
    return image
