"""The only code in the project that opens image files. It allows few formats and checks limits before decoding.

By default, Pillow opens every format it supports; some of them start other programs (EPS) or decode without a limit. A file of
a few kilobytes can also declare more pixels, scans or metadata than fit into memory or can be decoded within a minute.
"""

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from threading import Lock
from typing import NamedTuple, cast

from PIL import ExifTags, Image, UnidentifiedImageError

from diptych.core.errors import ImageError
from diptych.core.files import MAX_IMAGE_BYTES, read_regular
from diptych.images.containers import box_blocks, has_boxes, is_heif, is_raw
from diptych.images.formats import FORMATS, HAS_HEIC, HEIC_REMEDY, RAW_REMEDY, RAW_SUFFIXES

_PILLOW_FORMATS = tuple(sorted({*FORMATS.values()} - {"HEIF"}))

MAX_PIXELS = 200_000_000
"""Maximum number of pixels in an image; larger images are refused before they are decoded."""
MAX_SCANS = 64
"""Maximum number of scans in a progressive JPEG. Encoders write about ten; decoding makes one pass per scan."""
MAX_METADATA_BYTES = 32 * 2**20
"""Maximum size of the metadata (EXIF, ICC, XMP, text) in bytes."""
MAX_METADATA_BLOCKS = 4096
"""Maximum number of metadata blocks; Pillow reads each block in Python."""
_OVER_METADATA = f"its metadata is over the limit of {MAX_METADATA_BYTES // 2**20} MiB or {MAX_METADATA_BLOCKS} blocks"
_TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PPM_HEADER = re.compile(rb"P[1-6](?:\s|#[^\r\n]*[\r\n])+\d{1,9}(?:\s|#[^\r\n]*[\r\n])+\d{1,9}(?:\s|#)")
_PPM_HEADER_BYTES = 4096
_TIFF_TYPES = {1: (1, 2, 6, 7), 2: (3, 8), 4: (4, 9, 11, 13), 8: (5, 10, 12, 16, 17, 18)}
"""The types of values in a TIFF by their size in bytes."""
_TIFF_TYPE_BYTES = {kind: size for size, kinds in _TIFF_TYPES.items() for kind in kinds}


def open_image(source: bytes | Path | str, *, max_pixels: int | None = None) -> Image.Image:
    """Open an image without decoding it. Close it after use, or use it as a context manager.

    Args:
        source: the content of an image file, or its path.
        max_pixels: maximum width times height; `MAX_PIXELS` by default.

    Raises:
        ImageError: the image exceeds a limit, is a RAW photo, or needs an extra. The message does not name the image.
        PIL.UnidentifiedImageError: the file has none of the formats in `FORMATS`.
        OSError: the file cannot be read.
    """
    content = source if isinstance(source, bytes) else read_regular(source, max_bytes=MAX_IMAGE_BYTES)
    is_raw_name = not isinstance(source, bytes) and PurePath(source).suffix.lower() in RAW_SUFFIXES
    if not is_raw_name:
        check_structure(content)
    if is_raw_name or is_raw(content):
        raise ImageError(f"is a RAW photo, of which Pillow reads at most a thumbnail; {RAW_REMEDY}")
    opened = _opened(content)
    try:
        check_size(opened.width, opened.height, max_pixels=max_pixels)
        if content.startswith(b"\xff\xd8") and read_jpeg_header(content).has_scans:
            check_scans(content, opened.width * opened.height, max_pixels=max_pixels)
    except ImageError:
        opened.close()
        raise
    exif = opened.info.get("exif") or b""
    if _is_over(_tiff_blocks(exif.removeprefix(b"Exif\0\0"))):
        del opened.info["exif"]  # Each entry may refer to the whole block, so reading it can take quadratic time.
    return opened


def _opened(content: bytes) -> Image.Image:
    """Open an image with Pillow; a JPEG that Pillow refuses is opened without its metadata, which may be the damaged part."""
    try:
        return _opened_whole(content)
    except Exception:  # Pillow does not catch the exceptions of its metadata parsers.
        if not content.startswith(b"\xff\xd8"):
            raise
    return _opened_whole(_without_metadata(content))


def _opened_whole(content: bytes) -> Image.Image:
    try:
        with _pillow_limit.lifted():
            return Image.open(io.BytesIO(content), formats=_PILLOW_FORMATS)
    except UnidentifiedImageError:
        if not is_heif(content):
            raise
    return _opened_heif(content)


def _opened_heif(content: bytes) -> Image.Image:
    """Open a HEIC image with the plugin of the extra `heic`, which is not registered with Pillow."""
    if not HAS_HEIC:
        raise ImageError(f"is HEIC, which needs an extra: {HEIC_REMEDY}")
    from pillow_heif import HeifImageFile  # noqa: PLC0415  (an extra)

    try:
        return cast(Image.Image, HeifImageFile(io.BytesIO(content)))  # type: ignore[no-untyped-call]
    except SyntaxError as error:  # Pillow's plugins raise SyntaxError for files they do not recognize.
        raise UnidentifiedImageError(str(error)) from None


def _without_metadata(content: bytes) -> bytes:
    """Return a JPEG without comments and application segments, except a complete Adobe segment, which defines the colors."""
    kept, offset = [content[:2]], 2
    while offset + 4 <= len(content):
        marker = content[offset + 1]
        if content[offset] != 0xFF or marker in (0x00, 0xFF):  # Bytes between two segments are ignored.
            offset += 1
            continue
        if marker == 0xDA:
            return b"".join([*kept, content[offset:]])
        end = offset + 2
        if not (0xD0 <= marker <= 0xD9 or marker == 0x01):
            end += max(2, int.from_bytes(content[offset + 2 : offset + 4], "big"))
        is_adobe = marker == 0xEE and content[offset + 4 : offset + 9] == b"Adobe" and end - offset >= 16
        if is_adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(content[offset:end])
        offset = end
    return content


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, from 1 to 8; 1 (upright) if there is none or the metadata cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Damaged metadata must not make the image unreadable.
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of an opened image after its EXIF orientation is applied, without decoding the image.

    The stored size of a TIFF is read from its tags, because newer versions of Pillow report the upright size.
    """
    tags = getattr(image, "tag_v2", None)
    width, height = image.size
    if tags is not None:
        width, height = int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
    return (height, width) if orientation_of(image) in _TURNED else (width, height)


def check_size(width: int, height: int, *, max_pixels: int | None = None) -> None:
    """Refuse an image with too many pixels.

    Raises:
        ImageError: the image has more than `max_pixels` pixels (`MAX_PIXELS` by default).
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    if width * height > most:
        raise ImageError(f"{width}x{height} is over the limit of {most} pixels")


class _PillowLimit:
    """Disables Pillow's global pixel limit, which is below `MAX_PIXELS`, while images are opened."""

    def __init__(self) -> None:
        self._lock, self._num, self._before = Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Disable the limit while any thread is inside this context."""
        with self._lock:
            if self._num == 0:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._num += 1
        try:
            yield
        finally:
            with self._lock:
                self._num -= 1
                if self._num == 0:
                    Image.MAX_IMAGE_PIXELS = self._before


_pillow_limit = _PillowLimit()


class JpegHeader(NamedTuple):
    """Information from the segments before the first scan of a JPEG."""

    has_metadata: bool
    """Whether there is a segment for EXIF or XMP; True if the file ends before its first scan."""
    has_scans: bool
    """Whether more scans may follow the first; True if the file ends before its first scan."""


def read_jpeg_header(content: bytes) -> JpegHeader:
    """Return the header of a JPEG file. This takes a few microseconds.

    Raises:
        ImageError: the metadata exceeds a limit. Each byte between two segments counts as a block.
    """
    has_metadata = is_progressive = False
    offset, num_components = 2, 0
    for _ in range(MAX_METADATA_BLOCKS + 1):
        if offset + 10 > len(content):
            return JpegHeader(has_metadata=True, has_scans=True)
        marker = content[offset + 1]
        if content[offset] != 0xFF or marker in (0x00, 0xFF):
            offset += 1
            continue
        if marker == 0xDA:  # A scan of all components is the only one, unless the image is progressive.
            return JpegHeader(has_metadata, is_progressive or content[offset + 4] < num_components)
        if 0xD0 <= marker <= 0xD9 or marker == 0x01:  # These markers have no length.
            offset += 2
            continue
        if marker == 0xE1:
            has_metadata = True
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            is_progressive, num_components = marker & 3 == 2, content[offset + 9]
        offset += 2 + max(2, int.from_bytes(content[offset + 2 : offset + 4], "big"))
        if offset > MAX_METADATA_BYTES:
            break
    raise ImageError(_OVER_METADATA)


def check_scans(content: bytes, num_pixels: int, *, max_pixels: int | None = None) -> None:
    """Refuse a JPEG whose scans would take too long to decode: more than `MAX_SCANS`, or too many for its size.

    Raises:
        ImageError: the file has too many scans. Marker bytes within metadata are counted as well.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    num_scans = content.count(b"\xff\xda")
    if num_scans > MAX_SCANS or num_scans * num_pixels > most * MAX_SCANS // 4:
        raise ImageError(f"{num_scans} scans of {num_pixels} pixels are over the limit")


def check_structure(content: bytes) -> None:
    """Refuse a file whose metadata would take too much time or memory to read.

    Raises:
        ImageError: the metadata exceeds `MAX_METADATA_BYTES` or `MAX_METADATA_BLOCKS`.
    """
    if content.startswith(b"\xff\xd8"):
        read_jpeg_header(content)
        return
    if content.startswith(_PNG):
        blocks = _png_blocks(content)
    elif content.startswith(b"GIF8"):
        blocks = _gif_blocks(content)
    elif has_boxes(content):
        blocks = box_blocks(content)
    elif content[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
        blocks = _tiff_blocks(content)
    else:
        if re.match(rb"P[1-6]", content) and not _PPM_HEADER.match(content[:_PPM_HEADER_BYTES]):
            raise ImageError("is not a picture")
        return
    if _is_over(blocks):
        raise ImageError(_OVER_METADATA)


def _is_over(blocks: Iterator[int]) -> bool:
    total = 0
    for number, size in enumerate(blocks):
        total += size
        if number == MAX_METADATA_BLOCKS or total > MAX_METADATA_BYTES:
            return True
    return False


def _png_blocks(content: bytes) -> Iterator[int]:
    """Yield the sizes of all chunks; chunks of image data are only counted beyond one per KiB of the file."""
    offset, num_free = len(_PNG), len(content) // 1024
    while offset + 8 <= len(content):
        size = 12 + int.from_bytes(content[offset : offset + 4], "big")
        if content[offset + 4 : offset + 8] not in {b"IDAT", b"fdAT"}:
            yield size
        elif num_free:
            num_free -= 1
        else:
            yield 12
        offset += size


def _gif_blocks(content: bytes) -> Iterator[int]:
    """Yield the sizes of the sub-blocks before the first image."""
    offset = 13
    if len(content) > 10 and content[10] & 0x80:
        offset += 3 * 2 ** ((content[10] & 7) + 1)
    while offset < len(content) and content[offset] != 0x2C:
        is_extension = content[offset] == 0x21
        offset += 2 if is_extension else 1
        yield 1
        while is_extension and offset < len(content):
            size = content[offset]
            offset += 1 + size
            if not size:
                break
            yield size


def _tiff_blocks(content: bytes) -> Iterator[int]:
    """Yield the declared sizes of the values in the first, EXIF and GPS directories, each limited to the size of the file."""
    if len(content) < 8:
        return
    order = "<" if content.startswith(b"II") else ">"
    is_big = 43 in content[2:4]
    offsets = list(struct.unpack_from(order + ("8xQ" if is_big else "4xL"), content + bytes(8)))
    count_format, entry_format = (order + "Q", order + "HHQQ") if is_big else (order + "H", order + "HHLL")
    entry_bytes = struct.calcsize(entry_format)
    try:
        for number, offset in enumerate(offsets):  # The list grows by the directories that the first one names.
            (num,) = struct.unpack_from(count_format, content, offset)
            for at in range(offset + struct.calcsize(count_format), offset + num * entry_bytes, entry_bytes):
                tag, kind, count, value = struct.unpack_from(entry_format, content, at)
                yield min(len(content), count * _TIFF_TYPE_BYTES.get(kind, 1))
                if number == 0 and tag in {ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}:
                    offsets.append(value)
    except (struct.error, OverflowError):
        return  # The file is truncated; Pillow reports it.
