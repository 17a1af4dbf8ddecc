"""API keys of the server."""

from pathlib import Path

from diptych.core.encodings import decode_text
from diptych.core.errors import ConfigError


def check_key(key: str, where: str) -> str:
    """Check that an HTTP header can contain a key, and return the key.

    Args:
        key: the key to check.
        where: description of the key for the error, which does not show the key itself.

    Raises:
        ConfigError: the key has a character that is not printable ASCII.
    """
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{where}: a key consists of printable ASCII characters, which HTTP headers can carry; make another"
        )
    return key


def read_keys(path: Path | None) -> list[str]:
    """Read a file with one key per line. Empty lines, lines that begin with # and a byte order mark are skipped.

    Raises:
        ConfigError: the file cannot be read, has no key, or has a key that is too short or not printable ASCII.
    """
    if path is None:
        return []
    try:
        text, _ = decode_text(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    keys = [check_key(line, f"{path}, line {number}") for number, line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{path}: holds no key; write one per line")
    if any(len(key) < 16 for key in keys):
        raise ConfigError(f"{path}: holds a key of fewer than 16 characters, which can be guessed")
    return keys
