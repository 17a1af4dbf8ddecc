"""Inspect files before Pillow opens them: boxes of HEIC, AVIF and JPEG 2000, and signatures of RAW photos."""

import struct
from collections.abc import Iterator

_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_CODESTREAM = b"\xff\x4f\xff\x51"
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
_RAW_STARTS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"\0MRM", b"FOVb")
"""First bytes of RAW files by Olympus, Panasonic, Fujifilm, Minolta and Sigma."""
_SUBFILE_TYPE, _DNG_VERSION = 254, 50706


def is_heif(content: bytes) -> bool:
    """Return whether a file is HEIC or another kind of HEIF. A file of brand `mif1` may also be AVIF."""
    return content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS


def has_boxes(content: bytes) -> bool:
    """Return whether a file consists of boxes, like HEIC, AVIF and JPEG 2000, or is a bare JPEG 2000 codestream."""
    return content[4:8] == b"ftyp" or content.startswith((_JP2, _CODESTREAM))


def is_raw(content: bytes) -> bool:
    """Return whether a file is a RAW photo, of which Pillow opens at most a thumbnail.

    Most RAW files are TIFFs whose first image is marked as reduced resolution.
    """
    if content.startswith(_RAW_STARTS) or content[4:12] == b"ftypcrx " or content[6:14] == b"HEAPCCDR":
        return True
    if content[:4] not in {b"II*\0", b"MM\0*"}:
        return False
    tags = _first_tags(content)
    return content[8:10] == b"CR" or bool(tags.get(_SUBFILE_TYPE, 0) & 1) or _DNG_VERSION in tags


def _first_tags(content: bytes) -> dict[int, int]:
    """Return the tags of a TIFF's first directory, with the values that are stored in the directory itself."""
    order = "<" if content.startswith(b"II") else ">"
    tags = dict[int, int]()
    try:
        (offset,) = struct.unpack_from(f"{order}L", content, 4)
        (num,) = struct.unpack_from(f"{order}H", content, offset)
        for at in range(offset + 2, offset + 2 + 12 * num, 12):
            tag, kind = struct.unpack_from(f"{order}HH", content, at)
            (tags[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'L'}", content, at + 8)
    except struct.error:  # The file is truncated.
        pass
    return tags


def box_blocks(content: bytes) -> Iterator[int]:
    """Yield the sizes in bytes of the boxes and segments that Pillow reads in Python, without the image data."""
    if content.startswith(_CODESTREAM):
        yield from _segments(content, 2)
        return
    for kind, offset, end in _boxes(content, 0, len(content)):
        yield 8 if kind in {b"mdat", b"jp2c"} else end - offset
        if kind == b"jp2h":
            for _, inner, inner_end in _boxes(content, offset, end):
                yield inner_end - inner
        elif kind == b"jp2c":
            yield from _segments(content, offset + 2)


def _boxes(content: bytes, offset: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of each box; the offsets enclose its content."""
    while offset + 8 <= end:
        size, kind = struct.unpack_from(">L4s", content, offset)
        head = 8
        if size == 1 and offset + 16 <= end:
            (size,) = struct.unpack_from(">Q", content, offset + 8)
            head = 16
        elif size == 0:
            size = end - offset
        if size < head:
            return
        yield kind, offset + head, min(end, offset + size)
        offset += size


def _segments(content: bytes, offset: int) -> Iterator[int]:
    """Yield the sizes in bytes of the segments in a codestream's header."""
    while offset + 4 <= len(content) and content[offset + 1] not in {0x90, 0xD9}:
        size = 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
        yield size
        offset += max(4, size)
