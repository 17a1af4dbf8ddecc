"""Where an index in PostgreSQL lies: `postgresql://ann@db.example/pictures?index=photos`."""

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
"""Matches other kinds of addresses, paths that were made from an address, and keywords of libpq."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """An index among those of a database."""

    database: str = field(repr=False)
    """What a driver connects to; it may hold a password."""
    schema: str
    """The index's name, in which its tables lie."""
    shown: str
    """For people: without a password."""


def is_address(place: Any) -> bool:
    """Whether it names a database, not a folder."""
    return isinstance(place, str) and is_postgres_address(place)


def folder_of(place: str | Path) -> Path:
    """The folder of an index, from a text that is not the address of a database.

    Raises:
        ConfigError: the text looks like an address. The name of the folder would show the password.
    """
    if _LIKE_ADDRESS.match(str(place)):
        raise ConfigError(
            "an index is a folder or postgresql://USER@HOST/DATABASE?index=NAME (a str, not a Path); the given value looks "
            "like another kind of address and is not shown, because it may contain a password"
        )
    return Path(place)


def parse_address(text: str) -> Address:
    """The database, and the index that the parameter `index` names in it.

    Raises:
        ConfigError: the name is none, or the password is not written as an address needs it.

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
            f"{shown}: index={'&index='.join(names)} is no name of an index; small letters, digits and _, no digit first, "
            "at most 63, not pg_ first"
        )
    return Address(database=f"{path}?{rest}" if rest else path, schema=name, shown=shown)
