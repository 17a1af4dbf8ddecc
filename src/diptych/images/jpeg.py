"""JPEG files to arrays, fast: with libjpeg-turbo, the same pixels that Pillow gives, into memory that is used again."""

import threading

import simplejpeg
from jaxtyping import UInt8
from numpy import ndarray

from diptych.images.opener import check_scans, check_size, open_image, orientation_of, read_jpeg_header

_MAX_KEPT = 64 * 2**20
"""Bytes of the largest picture whose memory is kept for the next."""

_memory = threading.local()


def is_jpeg(content: bytes) -> bool:
    """Whether a file begins as a JPEG does."""
    return content[:3] == b"\xff\xd8\xff"


def decode_jpeg(content: bytes) -> UInt8[ndarray, "H W 3"] | None:
    """The picture in RGB, turned as its EXIF orientation says; None where that is better left to Pillow.

    That is the case for what is broken, too large, or neither gray nor YCbCr. The array is good until this thread decodes its
    next picture.
    """
    try:
        header = read_jpeg_header(content)
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in ("Gray", "YCbCr"):
            return None
        check_size(width, height)
        if header.has_scans:
            check_scans(content, width * height)
        pixels = simplejpeg.decode_jpeg(content, "RGB", buffer=_memory_for(height * width * 3))
        return _upright(pixels, content) if header.has_metadata else pixels
    except Exception:  # Whatever it is, Pillow decodes the picture, or `decode` says what is wrong.
        return None


def _memory_for(size: int) -> bytearray:
    kept: bytearray = getattr(_memory, "kept", bytearray())
    if len(kept) < size:
        kept = bytearray(size)
        if size <= _MAX_KEPT:
            _memory.kept = kept
    return kept


def _upright(pixels: UInt8[ndarray, "H W 3"], content: bytes) -> UInt8[ndarray, "H2 W2 3"]:
    with open_image(content) as opened:
        orientation = orientation_of(opened)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
