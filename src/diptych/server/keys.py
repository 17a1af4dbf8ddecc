"""Keys that let programs and browsers in."""

from pathlib import Path

from diptych.core.encodings import decode_text
from diptych.core.errors import ConfigError


def check_key(key: str, where: str) -> str:
    """The key, if an HTTP header can carry it.

    Args:
        key: what is checked.
        where: names it in the error, which does not show it.

    Raises:
        ConfigError: it has a character that is not printable ASCII.
    """
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{where}: a key consists of printable ASCII characters, which HTTP headers can carry; make another"
        )
    return key


def read_keys(path: Path | None) -> list[str]:
    """One key a line; empty lines and those that begin with # are not. A byte order mark is left out.

    Raises:
        ConfigError: the file cannot be read, or has no key, or one that is short or not ASCII.
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
        raise ConfigError(f"{path}: holds no key; write one a line")
    if any(len(key) < 16 for key in keys):
        raise ConfigError(f"{path}: holds a key of less than 16 characters, which can be guessed")
    return keys
