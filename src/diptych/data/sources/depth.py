"""Detect 16-bit grayscale files with 12-bit values, as cameras and scanners write them; scaled as 16 bits, they look black."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from diptych.core.errors import ImageError
from diptych.core.sample import ImageInput, Sample
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import Subset
from diptych.data.storage.oddities import Oddity
from diptych.images.decode import IMAGE_SUFFIXES, decode
from diptych.images.opener import open_image

_DEEP_SUFFIXES = frozenset({".png", ".tif", ".tiff"})
_DEEP_MAGIC = (b"\x89PNG", b"II*\0", b"MM\0*")
_NUM_SAMPLED = 64
_BITS = 12


class TwelveBits(Subset):
    """A source whose 16-bit grayscale images are scaled as 12-bit values. Everything else is as in the wrapped source."""

    def __init__(self, source: Source, oddity: Oddity) -> None:
        super().__init__(source, range(len(source)))
        self.oddities = (*source.oddities, oddity)
        self._oddity = oddity

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        if not _is_deep(sample.image):
            return sample
        return replace(sample, image=np.asarray(decode(sample.image, gray_bits=_BITS)))

    def under_first_rule(self) -> "TwelveBits":
        """Return the same wrapper around the source under split rule 1."""
        return TwelveBits(self.source.under_first_rule(), self._oddity)


def with_depth(source: Source) -> Source:
    """Return the source, or a wrapper (`TwelveBits`) if none of its 16-bit grayscale images has a value above 4095.

    Only the PNG and TIFF files among up to 64 evenly spaced samples are checked.
    """
    if not (source.can_be_sampled and len(source)):
        return source
    deepest, examples = 0, list[str]()
    for index in np.unique(np.linspace(0, len(source) - 1, _NUM_SAMPLED, dtype=np.int64)).tolist():
        image = _image(source, index)
        if image is not None and _is_deep(image):
            deepest = max(deepest, _highest(image))
            examples.append(source.key(index))
    if not 0 < deepest < 1 << _BITS:
        return source
    oddity = Oddity("16-bit grays without a value above 4095", "read as 12 bits", len(examples), tuple(examples[:3]))
    return TwelveBits(source, oddity)


def _image(source: Source, index: int) -> ImageInput | None:
    """Return the image of a sample; None if its key has the suffix of a format other than PNG and TIFF."""
    suffix = PurePosixPath(source.key(index)).suffix.lower()
    if suffix in IMAGE_SUFFIXES and suffix not in _DEEP_SUFFIXES:
        return None
    try:
        return source[index].image
    except ImageError:  # The zip or tar is damaged.
        return None


def _is_deep(image: ImageInput) -> bool:
    if isinstance(image, bytes):
        is_candidate = image.startswith(_DEEP_MAGIC)
    else:
        is_candidate = isinstance(image, Path) and image.suffix.lower() in _DEEP_SUFFIXES
    if not is_candidate:
        return False
    assert isinstance(image, bytes | Path)
    try:
        with open_image(image) as opened:
            return opened.mode.startswith("I;16")
    except Exception:  # Pillow raises almost anything; decoding reports the error.
        return False


def _highest(image: ImageInput) -> int:
    assert isinstance(image, bytes | Path)
    try:
        with open_image(image) as opened:
            return int(np.asarray(opened).max())
    except Exception:  # As in `_is_deep`.
        return 0
