"""Decode JPEG files to arrays with libjpeg-turbo into a reused buffer. The pixels are the same as Pillow's."""

import threading

import simplejpeg
from jaxtyping import UInt8
from numpy import ndarray

from diptych.images.opener import check_scans, check_size, open_image, orientation_of, read_jpeg_header

_MAX_REUSED = 64 * 2**20
"""Maximum size in bytes of the buffer that is reused."""

_buffers = threading.local()


def is_jpeg(content: bytes) -> bool:
    """Return whether the content begins with the signature of a JPEG file."""
    return content[:3] == b"\xff\xd8\xff"


def decode_jpeg(content: bytes) -> UInt8[ndarray, "H W 3"] | None:
    """Return the image in RGB, rotated according to its EXIF orientation; None if Pillow must decode it instead.

    None is returned for files that are damaged, too large, or neither gray nor YCbCr. The memory of the array is reused when
    this thread decodes its next image.
    """
    try:
        header = read_jpeg_header(content)
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(content)
        if color_space not in ("Gray", "YCbCr"):
            return None
        check_size(width, height)
        if header.has_scans:
            check_scans(content, width * height)
        pixels = simplejpeg.decode_jpeg(content, "RGB", buffer=_buffer_of(height * width * 3))
        return _upright(pixels, content) if header.has_metadata else pixels
    except Exception:  # Either Pillow can decode the image, or `decode` reports the error.
        return None


def _buffer_of(size: int) -> bytearray:
    buffer: bytearray = getattr(_buffers, "buffer", bytearray())
    if len(buffer) < size:
        buffer = bytearray(size)
        if size <= _MAX_REUSED:
            _buffers.buffer = buffer
    return buffer


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
