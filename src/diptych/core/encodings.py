"""Decode text of unknown encoding, such as caption files from different systems."""

import codecs
from pathlib import Path

from diptych.core.errors import DataError

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_text(content: bytes) -> tuple[str, str]:
    """Return the text without its byte order mark, and the name of its encoding.

    Tries UTF-8, then UTF-16 if there is a byte order mark, then Windows-1252. Content with bytes that Windows-1252 does not
    define is decoded as Latin-1, so decoding never fails.

    >>> decode_text("grün".encode("utf-8-sig")), decode_text("grün".encode("utf-16")), decode_text("grün".encode("latin-1"))
    (('grün', 'UTF-8'), ('grün', 'UTF-16'), ('grün', 'Windows-1252'))
    """
    tries = (("utf-16", "UTF-16"),) if content.startswith(_UTF_16) else ()
    for encoding, name in (("utf-8-sig", "UTF-8"), *tries, ("cp1252", "Windows-1252")):
        try:
            return content.decode(encoding), name
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1"), "Latin-1"


def read_lines(path: Path, *, what: str) -> list[str]:
    """Return the nonempty lines of a text file, without surrounding white space.

    Args:
        path: a UTF-8 file.
        what: what the lines contain, for messages.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has no nonempty lines.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"{path}: holds no {what}")
    return found
