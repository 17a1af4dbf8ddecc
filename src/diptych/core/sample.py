"""One image with its captions, and what counts as an image. This module does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageInput: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path, an encoded file's bytes, a PIL image, or pixels as a uint8 array (height, width, 3)."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with all its captions."""

    key: str
    """Names the sample, the same on every machine; all randomness about it is keyed by it."""
    image: ImageInput
    captions: tuple[str, ...]
    label: int | None = None
    """Index into the source's `classes`, if it has any."""
