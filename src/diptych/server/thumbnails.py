"""Pictures of the index as a browser shows them: as they are, or small. What is read is what was indexed, and nothing else."""

import errno
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Literal

import numpy as np
from PIL import Image

from diptych.core.errors import ImageError
from diptych.core.files import read_regular
from diptych.images.pool import DecodePool
from diptych.index.entry import Entry
from diptych.inference.explain import Explanation
from diptych.search.scan import digest_of
from diptych.server.problems import Problem

_KEPT_BYTES = 64 * 2**20
_MAX_FILE_BYTES = 32 * 2**20
_LARGEST_PX = 4096
_SHOWN_AS_THEY_ARE = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
}


class ShownPictures:
    """Reads and shrinks; the small ones are kept, up to a number of bytes."""

    def __init__(self, decode_pool: DecodePool) -> None:
        self._decode_pool = decode_pool
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes, self._lock = 0, Lock()

    def get(self, entries: Sequence[Entry], width_px: int | None) -> tuple[bytes, str]:
        """Content and media type of a picture: within a square of so many pixels, or as it is for None.

        Args:
            entries: the picture's files, one or more with the same digest.
            width_px: width of the square, in pixels.

        Raises:
            Problem: every file is gone or has changed since it was indexed (410), or the picture cannot be shown (422).
        """
        digest = entries[0].digest
        if width_px is not None:
            with self._lock:
                content = self._kept.get((digest, width_px))
                if content is not None:
                    self._kept.move_to_end((digest, width_px))
                    return content, "image/webp"
        content = _read_any(entries)
        if width_px is None:
            kind = _kind(content)
            if kind is not None and len(content) <= _MAX_FILE_BYTES:
                return content, kind
            return self._small(content, _LARGEST_PX, "JPEG"), "image/jpeg"
        small = self._small(content, width_px, "WEBP")
        self._keep((digest, width_px), small)
        return small, "image/webp"

    def original(self, entries: Sequence[Entry]) -> bytes:
        """The indexed content of files with the same digest.

        Raises:
            Problem: every file is gone or has changed since it was indexed (410).
        """
        return _read_any(entries)

    def _small(self, content: bytes, width_px: int, form: Literal["JPEG", "WEBP"]) -> bytes:
        try:
            return self._decode_pool.preview(content, width_px=width_px, form=form)
        except ImageError:
            raise Problem(422, "the picture cannot be shown") from None

    def _keep(self, key: tuple[str, int], content: bytes) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = content
                self._bytes += len(content)
            while self._bytes > _KEPT_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest)


def heat_picture(explanation: Explanation) -> bytes:
    """A PNG that is laid over the picture: red and opaque where it speaks for the text, clear where it does not."""
    heat = explanation.heat[0]
    layer = np.zeros((*heat.shape, 4), dtype=np.uint8)
    layer[..., 0], layer[..., 1] = 255, (110 * (1 - heat)).astype(np.uint8)
    layer[..., 3] = (190 * heat).astype(np.uint8)
    base = Image.fromarray(explanation.picture).convert("RGBA")
    written = io.BytesIO()
    Image.alpha_composite(base, Image.fromarray(layer, "RGBA")).convert("RGB").save(written, "PNG")
    return written.getvalue()


def _read_any(entries: Sequence[Entry]) -> bytes:
    """The content of the first file that is unchanged since it was indexed. All files have the same digest."""
    for entry in entries[:-1]:
        with suppress(Problem):
            return _read(entry)
    return _read(entries[-1])


def _read(entry: Entry) -> bytes:
    """The content that was indexed, and nothing else: its digest is compared, and no link is followed that was not indexed."""
    path = entry.target or entry.key
    try:
        content = read_regular(path, max_bytes=entry.stamp.size, follow_links=False)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _changed() from None
        raise Problem(410, "the picture's file is not there any more; bring the index in step") from None
    if os.path.realpath(entry.key) != path:
        raise Problem(410, "the picture's path has become a symbolic link, or leads elsewhere; bring the index in step")
    if digest_of(content) != entry.digest:
        raise _changed()
    return content


def _changed() -> Problem:
    return Problem(410, "the picture's file has changed since it was indexed; bring the index in step")


def _kind(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _SHOWN_AS_THEY_ARE.items() if content.startswith(magic)), None)
