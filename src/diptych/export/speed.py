"""Measure the time per image and per text of a model in PyTorch or ONNX Runtime. Shapes: H W height, width in pixels."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from jaxtyping import UInt8
from numpy import ndarray

from diptych.inference.embedder import Embedder

LARGE_BATCH = 32
_MIN_S, _MIN_REPEATS, _MAX_S = 0.4, 5, 15.0
"""Minimum time in seconds and minimum number of repetitions; few slow repetitions stop after `_MAX_S` seconds."""
_MEDIAN_OF, _MAX_MEDIAN_S = 8, 6.0
_TEXT = "two dogs run over the grass"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Milliseconds on the CPU of this machine; each value is the fastest of several measurements."""

    image_ms: float
    """Per image, one image at a time."""
    batch_image_ms: float
    """Per image, in a batch of 32."""
    text_ms: float
    """Per text, one text at a time, including the tokenizer."""


def measure_speed(embedder: Embedder, pixels: Sequence[UInt8[ndarray, "3 H W"]]) -> Speed:
    """Return the speed of a model.

    Args:
        embedder: the embedder of the model.
        pixels: decoded and transformed images, at least one. The measured times do not include decoding.
    """
    batch = [pixels[i % len(pixels)] for i in range(LARGE_BATCH)]
    return Speed(
        image_ms=_fastest_ms(lambda: embedder.encode_pixels(batch[:1])),
        batch_image_ms=_fastest_ms(lambda: embedder.encode_pixels(batch)) / LARGE_BATCH,
        text_ms=_fastest_ms(lambda: embedder.encode_texts([_TEXT])),
    )


def _fastest_ms(work: Callable[[], object]) -> float:
    """Milliseconds of the fastest call."""
    found, total = list[float](), 0.0
    while total < _MIN_S or (len(found) < _MIN_REPEATS and total < _MAX_S):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
        total += found[-1]
    return 1000 * min(found)


@dataclass(frozen=True, kw_only=True)
class MedianSpeed:
    """Median milliseconds per input on the CPU of this machine."""

    image_ms: float
    """Per image, one image at a time, without decoding and resizing."""
    batch_image_ms: float
    """Per image, in a batch of 32."""
    text_ms: float
    """Per text, one text at a time, including the tokenizer."""
    batch_text_ms: float
    """Per text, in a batch of 32."""


def median_speed(embedder: Embedder, pixels: UInt8[ndarray, "3 H W"]) -> MedianSpeed:
    """Return the speed of a model. Slow models are measured fewer times, to limit the total time to about half a minute.

    Args:
        embedder: the embedder of the model, with a batch size of at least 32.
        pixels: a decoded and transformed image.
    """
    images, texts = [pixels] * LARGE_BATCH, [_TEXT] * LARGE_BATCH
    return MedianSpeed(
        image_ms=_median_ms(lambda: embedder.encode_pixels(images[:1])),
        batch_image_ms=_median_ms(lambda: embedder.encode_pixels(images)) / LARGE_BATCH,
        text_ms=_median_ms(lambda: embedder.encode_texts(texts[:1])),
        batch_text_ms=_median_ms(lambda: embedder.encode_texts(texts)) / LARGE_BATCH,
    )


def _median_ms(work: Callable[[], object]) -> float:
    """Return the median milliseconds of up to seven calls, without the first; fewer if they exceed `_MAX_MEDIAN_S` seconds."""
    found = list[float]()
    while len(found) < _MEDIAN_OF and sum(found) < _MAX_MEDIAN_S:
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return 1000 * median(found[1:] or found)  # The first call also allocates memory.
