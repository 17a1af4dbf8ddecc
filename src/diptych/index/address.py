"""Addresses of indexes in PostgreSQL, such as `postgresql://ann@db.example/pictures?index=photos`."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.core.address import shown_address
from diptych.core.database import is_postgres_address, postgres_address
from diptych.core.errors import ConfigError

_DEFAULT = "diptych"
_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
_LIKE_ADDRESS = re.compile(
    r".*://|\s*[\w+.-]{2,}:/.*@|\s*['\"]?(?:jdbc:)?postgres(?:ql)?(?:\+\w+)?:|.*\b(?:password|passwd|pwd)\s*=",
    re.IGNORECASE | re.DOTALL,
)
"""Matches addresses of other kinds, paths made from an address, and libpq connection keywords."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """The address of one of the indexes of a database."""

    database: str = field(repr=False)
    """The address that the database driver connects to. It may contain a password."""
    schema: str
    """The name of the index, which is also the schema of its tables."""
    shown: str
    """The address without a password, for messages."""


def is_address(place: Any) -> bool:
    """Whether a value is the address of a database rather than a folder."""
    return isinstance(place, str) and is_postgres_address(place)


def folder_of(place: str | Path) -> Path:
    """The folder of an index as a path.

    Raises:
        ConfigError: the text looks like an address. As the name of a folder, it could show a password.
    """
    if _LIKE_ADDRESS.match(str(place)):
        raise ConfigError(
            "an index is a folder or postgresql://USER@HOST/DATABASE?index=NAME (a str, not a Path); the given value looks "
            "like another kind of address and is not shown, because it may contain a password"
        )
    return Path(place)


def parse_address(text: str) -> Address:
    """The parts of an address: the database, and the index that the parameter `index` names (default: `diptych`).

    Raises:
        ConfigError: the name of the index is invalid, or the password is not written as an address requires.

    >>> parse_address("postgresql://ann:secret@host/pictures?index=photos&sslmode=require")
    Address(schema='photos', shown='postgresql://ann@host/pictures?index=photos&sslmode=require')
    """
    text = postgres_address(text)
    shown = shown_address(text)
    path, _, query = text.partition("?")
    settings = query.split("&") if query else []
    names = [setting.removeprefix("index=") for setting in settings if setting.startswith("index=")]
    rest = "&".join(setting for setting in settings if not setting.startswith("index="))
    name = names[-1] if names else _DEFAULT
    if len(names) > 1 or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{shown}: index={'&index='.join(names)} is no name of an index; use at most 63 lowercase letters, digits and _, "
            "without a digit or pg_ at the start"
        )
    return Address(database=f"{path}?{rest}" if rest else path, schema=name, shown=shown)
