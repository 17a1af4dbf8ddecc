"""Grays of 12 bits in files of 16: cameras and scanners write them, and divided by 256 they are nearly black."""

from pathlib import Path

import numpy as np

from diptych.core.errors import ImageError
from diptych.core.sample import Sample
from diptych.data.oddities import Oddity
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import Subset
from diptych.images.decode import decode
from diptych.images.opener import open_image

_DEEP_SUFFIXES = frozenset({".png", ".tif", ".tiff"})
_NUM_SAMPLED = 64
_BITS = 12


class TwelveBits(Subset):
    """A source whose 16-bit grays hold 12 bits: they are scaled as such. All else is as in the source."""

    def __init__(self, source: Source, oddity: Oddity) -> None:
        super().__init__(source, range(len(source)))
        self.oddities = (*source.oddities, oddity)
        self._oddity = oddity

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        image = sample.image
        if not (isinstance(image, Path) and _is_deep(image)):
            return sample
        return Sample(
            key=sample.key,
            image=np.asarray(decode(image, gray_bits=_BITS)),
            captions=sample.captions,
            label=sample.label,
        )

    def under_rule(self, rule: int) -> "TwelveBits":
        """The same under this version of the split rule."""
        return TwelveBits(self.source.under_rule(rule), self._oddity)


def with_depth(source: Source) -> Source:
    """The source, or one that scales its 16-bit grays by 12 bits if none of those looked at needs more.

    Looked at are up to 64 samples, evenly spread, and of these the PNG and TIFF files on disk.
    """
    deepest, examples = 0, list[str]()
    for index in (
        np.unique(np.linspace(0, len(source) - 1, _NUM_SAMPLED, dtype=np.int64)).tolist() if len(source) else []
    ):
        path = _path(source, index)
        if path is not None and _is_deep(path):
            deepest = max(deepest, _highest(path))
            examples.append(source.key(index))
    if not 0 < deepest < 1 << _BITS:
        return source
    oddity = Oddity("16-bit grays without a value above 4095", "read as 12 bits", len(examples), tuple(examples[:3]))
    return TwelveBits(source, oddity)


def _path(source: Source, index: int) -> Path | None:
    try:
        image = source[index].image
    except ImageError:  # Of a damaged zip.
        return None
    return image if isinstance(image, Path) else None


def _is_deep(path: Path) -> bool:
    if path.suffix.lower() not in _DEEP_SUFFIXES:
        return False
    try:
        with open_image(path) as image:
            return image.mode.startswith("I;16")
    except Exception:  # Pillow raises almost anything; decoding says what it is.
        return False


def _highest(path: Path) -> int:
    try:
        with open_image(path) as image:
            return int(np.asarray(image).max())
    except Exception:  # As above.
        return 0
