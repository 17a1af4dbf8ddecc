"""Image formats by suffix: the supported ones, and advice for the unsupported ones."""

import importlib.util
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import PurePath

from PIL import features

HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None
"""Whether HEIC files can be opened, which requires the extra `heic`."""
HAS_AVIF = importlib.util.find_spec("PIL._avif") is not None
"""Whether this version of Pillow opens AVIF files (11.3 or newer)."""

_ALWAYS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_SOMETIMES = {
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
_AVAILABLE = {"JPEG2000": bool(features.check("jpg_2000")), "AVIF": HAS_AVIF, "HEIF": HAS_HEIC}

FORMATS = {
    suffix: name
    for name, suffixes in (_ALWAYS | {name: _SOMETIMES[name] for name in _SOMETIMES if _AVAILABLE[name]}).items()
    for suffix in suffixes
}
"""Pillow's format name by suffix. Files of other formats are not opened, whatever their suffix."""

_RAW = "3fr arw cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
RAW_SUFFIXES = frozenset(f".{name}" for name in _RAW.split())
"""Suffixes of RAW photos. Pillow opens only a thumbnail of some of them."""
_OTHER = "ai bpg cur dds eps exr flif hdr ico jxl jxr pcx pfm psb psd qoi sgi svg svgz tga wdp xcf"

HEIC_REMEDY = "pip install 'diptych[heic]'"
RAW_REMEDY = "RAW photos are not read; export them as JPEG, with darktable-cli or the camera maker's program"
_REMEDIES = {
    **dict.fromkeys(_SOMETIMES["JPEG2000"], "install a Pillow that was built with OpenJPEG"),
    **dict.fromkeys(_SOMETIMES["AVIF"], "pip install --upgrade Pillow"),
    **dict.fromkeys(_SOMETIMES["HEIF"], HEIC_REMEDY),
    **dict.fromkeys(RAW_SUFFIXES, RAW_REMEDY),
    **{f".{name}": "not read; convert them to PNG or JPEG" for name in _OTHER.split()},
}
"""Advice by suffix, for formats that are not available."""


def remedy(suffix: str) -> str | None:
    """Return advice for images with an unsupported suffix; None if the suffix is supported or not one of an image format.

    >>> remedy(".psd"), remedy(".jpg"), remedy(".txt")
    ('not read; convert them to PNG or JPEG', None, None)
    """
    suffix = suffix.lower()
    return None if suffix in FORMATS else _REMEDIES.get(suffix)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Images with one suffix that were left out because their format is not supported.

    >>> str(LeftOut(suffix=".heic", num=2, examples=("a.heic", "b.HEIC"), remedy="pip install 'diptych[heic]'"))
    "2 .heic (a.heic, b.HEIC): pip install 'diptych[heic]'"
    """

    suffix: str
    """Lowercase, with the dot."""
    num: int
    examples: tuple[str, ...]
    """The first three paths."""
    remedy: str

    def __str__(self) -> str:
        more = ", ..." if self.num > len(self.examples) else ""
        return f"{self.num:,} {self.suffix} ({', '.join(self.examples)}{more}): {self.remedy}"


_MAX_EXAMPLES = 3


class LeftOutCounter:
    """Counts images of unsupported formats by suffix.

    >>> counter = LeftOutCounter()
    >>> [counter.add(name) for name in ("a.PSD", "b.txt", "c.jpg", "c.psd")]
    [True, False, False, True]
    >>> [(left.suffix, left.num, left.examples) for left in counter.left_out()]
    [('.psd', 2, ('a.PSD', 'c.psd'))]
    """

    def __init__(self) -> None:
        self.counts = defaultdict[str, Counter[str]](Counter)
        """Number of files by scanned folder and suffix."""
        self._examples: dict[str, list[str]] = {}

    def add(self, path: str, *, folder: str = "") -> bool:
        """Count a file if it is an image of an unsupported format, and return whether it is one."""
        suffix = PurePath(path).suffix.lower()
        if remedy(suffix) is None:
            return False
        self.counts[folder][suffix] += 1
        examples = self._examples.setdefault(suffix, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(path)
        return True

    def left_out(self) -> list[LeftOut]:
        """Return one item per suffix, sorted by suffix."""
        return [
            LeftOut(suffix=suffix, num=num, examples=tuple(self._examples[suffix]), remedy=remedy(suffix) or "")
            for suffix, num in sorted(sum(self.counts.values(), Counter[str]()).items())
        ]
