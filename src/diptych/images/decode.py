"""Decode any image input to upright RGB, or raise an error that names the image."""

import errno
import io
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diptych.core.errors import ImageError
from diptych.core.files import MAX_IMAGE_BYTES, read_regular
from diptych.core.paths import path_kind
from diptych.core.sample import ImageInput
from diptych.images.formats import FORMATS
from diptych.images.jpeg import decode_jpeg, is_jpeg
from diptych.images.opener import check_size, open_image, orientation_of

IMAGE_SUFFIXES = frozenset(FORMATS)
"""Suffixes of the files that are read as images from a folder."""

_BROKEN = "_diptych_broken"
"""Attribute that stores why a PIL image could not be decoded."""
_locks = [Lock() for _ in range(64)]
"""Pillow loads an image and its EXIF data lazily. Two threads must not load the same object."""


def _renew_locks() -> None:
    """Replace the locks in a forked process, because threads of the parent may hold some."""
    _locks[:] = [Lock() for _ in _locks]


os.register_at_fork(after_in_child=_renew_locks)


def decode(image: ImageInput, *, max_pixels: int | None = None, gray_bits: int = 16) -> Image.Image:
    """Return the image in RGB, rotated according to its EXIF orientation; for an animation, the first frame.

    Several threads can decode the same PIL image at the same time; each gets a copy.

    >>> decode(np.zeros((2, 3, 3), dtype=np.uint8)).size
    (3, 2)

    Args:
        image: a path, the content of a file, a PIL image, or an array of shape (height, width, 3) and type uint8.
        max_pixels: maximum width times height; `MAX_PIXELS` by default.
        gray_bits: number of bits used by the values of a 16-bit grayscale file; white is `2**gray_bits - 1`.

    Raises:
        ImageError: the image is missing, empty, truncated, not an image, or larger than `max_pixels`.
    """
    try:
        with _lock_of(image):
            return _decoded(image, max_pixels=max_pixels, gray_bits=gray_bits)
    except ImageError as error:
        raise ImageError(f"{describe(image)}: {error}") from None
    except FileNotFoundError:
        is_url = isinstance(image, str) and "://" in image
        reason = "is a URL, and those are read only where you say so (urls)" if is_url else "no such file"
        raise ImageError(f"{describe(image)}: {reason}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{describe(image)}: is not a picture") from None
    except PermissionError:
        raise ImageError(f"{describe(image)}: cannot be read (permission denied)") from None
    except IsADirectoryError:
        raise ImageError(f"{describe(image)}: is a folder, not a picture") from None
    except Exception as error:  # Pillow's plug-ins raise almost anything on hostile bytes.
        raise ImageError(f"{describe(image)}: cannot be decoded ({_reason(error)})") from None


def decode_array(image: ImageInput) -> UInt8[ndarray, "H W 3"]:
    """Return the same pixels as `decode`, faster for JPEG files.

    The array may share memory that is reused when this thread decodes its next image.

    Raises:
        ImageError: as for `decode`.
    """
    if isinstance(image, np.ndarray):
        try:
            _check_array(image)
        except ImageError as error:
            raise ImageError(f"{describe(image)}: {error}") from None
        return image
    content = image
    if isinstance(image, str | Path):
        try:
            content = read_regular(image, max_bytes=MAX_IMAGE_BYTES)
        except (OSError, ValueError):
            content = image  # `decode` raises the error.
    pixels = decode_jpeg(content) if isinstance(content, bytes) and is_jpeg(content) else None
    return np.asarray(decode(image)) if pixels is None else pixels


def describe(image: ImageInput) -> str:
    """Return a name for messages and tables: the path, or the type and size of the input.

    >>> describe("a.jpg"), describe(b"1234")
    ('a.jpg', '<4 bytes>')
    """
    match image:
        case str() | Path():
            return str(image)
        case bytes():
            return f"<{len(image)} bytes>"
        case Image.Image():
            return f"<image {image.width}x{image.height}>"
        case np.ndarray():
            return f"<array {'x'.join(str(size) for size in image.shape)}>"
        case _:
            return f"{image!r:.60}"


def file_content(image: ImageInput) -> bytes:
    """Return the encoded bytes of an image: the content of its file, or a PNG of a decoded image.

    Raises:
        ImageError: the file cannot be read, or the input is not an image.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return read_regular(image, max_bytes=MAX_IMAGE_BYTES)
        except (OSError, ValueError) as error:
            raise ImageError(f"{describe(image)}: cannot be read ({getattr(error, 'strerror', error)})") from None
    written = io.BytesIO()
    decode(image).save(written, "PNG")
    return written.getvalue()


def file_mode(image: ImageInput) -> str:
    """Return the format and color mode of an image file, such as `JPEG RGB`; `pixels` for a decoded image."""
    if not isinstance(image, str | Path | bytes):
        return "pixels"
    with open_image(image) as opened:
        return f"{opened.format} {opened.mode}"


def _lock_of(image: ImageInput) -> AbstractContextManager[object]:
    """Return the lock of a PIL image. Other inputs are opened anew in each call and need none."""
    return _locks[id(image) // 16 % len(_locks)] if isinstance(image, Image.Image) else nullcontext()


def _decoded(image: ImageInput, *, max_pixels: int | None, gray_bits: int) -> Image.Image:
    opened = _open(image, max_pixels)
    try:
        check_size(opened.width, opened.height, max_pixels=max_pixels)
        _check_range(opened)
        _load(opened)
        return _upright_rgb(opened, gray_bits=gray_bits)
    finally:
        if opened is not image:
            opened.close()


def _load(image: Image.Image) -> None:
    """Decode the image, or raise the first error again: Pillow loads a damaged TIFF or GIF without error the second time.

    Raises:
        ImageError: the image cannot be decoded.
    """
    broken: str | None = vars(image).get(_BROKEN)
    if broken is None:
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plug-ins raise almost anything on hostile bytes.
            vars(image)[_BROKEN] = broken = f"cannot be decoded ({_reason(error)})"
    if broken is not None:
        raise ImageError(broken)


def _open(image: ImageInput, max_pixels: int | None) -> Image.Image:
    match image:
        case str() | Path():
            try:
                return open_image(image, max_pixels=max_pixels)
            except OSError as error:
                if error.errno not in {errno.EINVAL, errno.ENXIO, errno.EFBIG}:  # Raised by `read_regular`.
                    raise
                is_folder = path_kind(image) == "folder"
                raise ImageError("is a folder, not a picture" if is_folder else str(error.strerror)) from None
        case bytes():
            return open_image(image, max_pixels=max_pixels)
        case Image.Image():
            return image
        case np.ndarray():
            _check_array(image)
            return Image.fromarray(image)
        case _:
            raise ImageError("not a path, bytes, a PIL image or an array")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that makes an image upright, by EXIF orientation."""


def _check_array(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError("an array must be uint8 with shape (height, width, 3)")
    if 0 in image.shape:
        raise ImageError("has no pixels")


def _check_range(opened: Image.Image) -> None:
    """Refuse a file whose pixels have no defined range, so that the values of black and white are unknown.

    Raises:
        ImageError: the pixels are floats, or integers of a TIFF for which Pillow needs 32 bits.
    """
    is_float = opened.mode == "F"
    if opened.format is not None and (is_float or (opened.mode == "I" and opened.format == "TIFF")):
        kind = "floats" if is_float else "signed or 32-bit integers"
        raise ImageError(
            f"its pixels are {kind}, without a known range; convert it first: magick IN.tif -auto-level -depth 8 OUT.png"
        )


def _upright_rgb(image: Image.Image, *, gray_bits: int) -> Image.Image:
    image.load()
    turn = _TURNS.get(orientation_of(image))  # Read it first: images created from the pixels have no metadata.
    if image.mode.startswith("I;16") or image.mode == "I":
        grays = np.asarray(image).astype(np.int64) >> (gray_bits - 8)
        image = Image.fromarray(grays.clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return (image if turn is None else image.transpose(turn)).convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error).split("\n")[0].split(" <_io")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
