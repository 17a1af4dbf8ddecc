"""Reads indexed images, and makes thumbnails of them. Only files with the indexed content are read."""

import errno
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image

from diptych.core.errors import ImageError
from diptych.core.files import read_regular
from diptych.images.pool import DecodePool
from diptych.index.entry import Entry
from diptych.search.scan import digest_of
from diptych.server.problems import Problem

_CACHE_BYTES = 64 * 2**20
_MAX_FILE_BYTES = 32 * 2**20
_MAX_PX = 4096
_BROWSER_FORMATS = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
}


class PictureReader:
    """Reads indexed images and makes thumbnails. Recently used thumbnails are cached.

    Args:
        decode_pool: decodes and resizes the images.
    """

    def __init__(self, decode_pool: DecodePool) -> None:
        self._decode_pool = decode_pool
        self._cache: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._num_bytes, self._lock = 0, Lock()

    def get(self, entries: Sequence[Entry], width_px: int | None) -> tuple[bytes, str]:
        """The content and the media type of an image or its thumbnail.

        Files that browsers cannot display, and those larger than 32 MiB, are converted to JPEG.

        Args:
            entries: the files of the image, one or more with the same digest.
            width_px: side of the square that the thumbnail fits, in pixels; None for the image itself.

        Raises:
            Problem: every file is missing or has changed since it was indexed (410), or the image cannot be decoded (422).
        """
        digest = entries[0].digest
        if width_px is not None:
            with self._lock:
                content = self._cache.get((digest, width_px))
                if content is not None:
                    self._cache.move_to_end((digest, width_px))
                    return content, "image/webp"
        content = read_original(entries)
        if width_px is None:
            media_type = _media_type(content)
            if media_type is not None and len(content) <= _MAX_FILE_BYTES:
                return content, media_type
            return self._thumbnail(content, _MAX_PX, "JPEG"), "image/jpeg"
        thumbnail = self._thumbnail(content, width_px, "WEBP")
        self._add_to_cache((digest, width_px), thumbnail)
        return thumbnail, "image/webp"

    def _thumbnail(self, content: bytes, width_px: int, form: Literal["JPEG", "WEBP"]) -> bytes:
        try:
            return self._decode_pool.preview(content, width_px=width_px, form=form)
        except ImageError:
            raise Problem(422, "the picture cannot be shown") from None

    def _add_to_cache(self, key: tuple[str, int], content: bytes) -> None:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = content
                self._num_bytes += len(content)
            while self._num_bytes > _CACHE_BYTES:
                _, oldest = self._cache.popitem(last=False)
                self._num_bytes -= len(oldest)


def render_heat_map(picture: UInt8[ndarray, "H W 3"], heat: Float32[ndarray, "H W"]) -> bytes:
    """A PNG of an image with a heat map over it: red where the image matches the text. `heat` has values within [0, 1]."""
    layer = np.zeros((*heat.shape, 4), dtype=np.uint8)
    layer[..., 0], layer[..., 1] = 255, (110 * (1 - heat)).astype(np.uint8)
    layer[..., 3] = (190 * heat).astype(np.uint8)
    base = Image.fromarray(picture).convert("RGBA")
    png = io.BytesIO()
    Image.alpha_composite(base, Image.fromarray(layer, "RGBA")).convert("RGB").save(png, "PNG")
    return png.getvalue()


def read_original(entries: Sequence[Entry]) -> bytes:
    """The content of the first file that is unchanged since it was indexed.

    Args:
        entries: the files of an image, one or more with the same digest.

    Raises:
        Problem: every file is missing or has changed since it was indexed (410).
    """
    for entry in entries[:-1]:
        with suppress(Problem):
            return _read(entry)
    return _read(entries[-1])


def _read(entry: Entry) -> bytes:
    """The content of an indexed file. The digest is compared, and only symbolic links that were indexed are followed.

    Raises:
        Problem: the file is missing or has changed since it was indexed (410).
    """
    path = entry.target or entry.key
    try:
        content = read_regular(path, max_bytes=entry.stamp.size, follow_links=False)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _changed() from None
        raise Problem(410, "the picture's file no longer exists; update the index") from None
    if os.path.realpath(entry.key) != path:
        raise Problem(410, "the picture's path is now a symbolic link, or its link has changed; update the index")
    if digest_of(content) != entry.digest:
        raise _changed()
    return content


def _changed() -> Problem:
    return Problem(410, "the picture's file has changed since it was indexed; update the index")


def _media_type(content: bytes) -> str | None:
    """The media type, if browsers can display the format."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((media_type for magic, media_type in _BROWSER_FORMATS.items() if content.startswith(magic)), None)
