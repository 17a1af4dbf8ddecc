"""One image with its captions, and the accepted types of images. This module does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageInput: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path, the bytes of an encoded image file, a PIL image, or pixels as a uint8 array of shape (height, width, 3)."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with all its captions."""

    key: str
    """Unique name of the sample, the same on every machine. All randomness that concerns the sample is keyed by it."""
    image: ImageInput
    captions: tuple[str, ...]
    label: int | None = None
    """Index into the source's `classes`; None if the source has no labels."""
