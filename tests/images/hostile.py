"""Small files that cost much: pictures as an attacker writes them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n%%EOF\n"


def encoded(form: str, width: int = 16, height: int = 12, **more: object) -> bytes:
    """A picture of noise in a format."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    if form == "HEIF":
        from pillow_heif import from_pillow

        from_pillow(Image.fromarray(pixels)).save(buffer, **more)
    else:
        Image.fromarray(pixels).save(buffer, form, **more)
    return buffer.getvalue()


def jp2_with_boxes(num: int, *, inside: bool = False) -> bytes:
    """A picture with empty boxes in front of its header, or at the header's end."""
    plain, boxes = encoded("JPEG2000"), struct.pack(">L4s", 8, b"free") * num
    start = plain.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">L", plain, start)
    if not inside:
        return plain[:start] + boxes + plain[start:]
    header = struct.pack(">L", size + len(boxes)) + plain[start + 4 : start + size] + boxes
    return plain[:start] + header + plain[start + size :]


def codestream_with_segments(num: int) -> bytes:
    """A picture with empty segments before its first comment."""
    plain = encoded("JPEG2000", no_jp2=True)
    start = 4 + struct.unpack_from(">H", plain, 4)[0]
    return plain[:start] + b"\xff\x52\x00\x02" * num + plain[start:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png(width: int, height: int, *, extra: bytes = b"") -> bytes:
    """A black picture; `extra` are chunks before its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(1 + width)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def jpeg_with_segments(num: int, content: bytes = b"") -> bytes:
    """A picture with comments in front."""
    plain = encoded("JPEG")
    return plain[:2] + (b"\xff\xfe" + struct.pack(">H", 2 + len(content)) + content) * num + plain[2:]


def progressive_with_scans(num: int, width: int = 16, height: int = 12) -> bytes:
    """A progressive picture whose last scan is repeated."""
    plain = encoded("JPEG", width, height, progressive=True)
    start = plain.rindex(b"\xff\xda")
    return plain[:start] + plain[start:-2] * num + plain[-2:]


def gif_with_comments(num: int) -> bytes:
    """A picture with comment blocks in front."""
    plain = encoded("GIF")
    start = 13 + (3 * 2 ** ((plain[10] & 7) + 1) if plain[10] & 0x80 else 0)
    return plain[:start] + b"\x21\xfe" + (b"\xff" + b"c" * 255) * num + b"\0" + plain[start:]


def tiff_directory(num: int, count: int, *, exif: bool = False) -> bytes:
    """A directory of which each entry claims `count` bytes."""
    entries = b"".join(struct.pack("<HHLL", 40_000 + i, 7, count, 8) for i in range(num))
    directory = struct.pack("<H", num) + entries + bytes(4)
    content = b"II*\0" + struct.pack("<L", 8) + directory
    return (b"Exif\0\0" + content if exif else content) + bytes(count)


def ppm_with_comment(size: int) -> bytes:
    return b"P6\n#" + b"c" * size + b"\n1 1\n255\nabc"
