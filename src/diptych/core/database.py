"""Addresses of PostgreSQL, in the forms in which people have them."""

import re

from diptych.core.address import password_is_plain, shown_address
from diptych.core.errors import ConfigError

_POSTGRESQL = re.compile(r"(?P<scheme>postgres(?:ql)?)(?:\+\w+)?://", re.IGNORECASE)


def is_postgres_address(text: str) -> bool:
    """Whether a text is an address of PostgreSQL: `postgresql://` or `postgres://`.

    Letters may be large, spaces may stand around it, and a driver may be named as SQLAlchemy does.

    >>> [is_postgres_address(text) for text in (" POSTGRESQL://host/db", "postgresql+psycopg://host/db", "photos.index")]
    [True, True, False]
    """
    return _POSTGRESQL.match(text.strip()) is not None


def postgres_address(text: str) -> str:
    """The address as libpq reads it: without spaces around it and without a driver, its scheme in small letters.

    Raises:
        ConfigError: it is none, or the password is not written as an address needs it.

    >>> postgres_address(" PostgreSQL+psycopg://ann@Host/db")
    'postgresql://ann@Host/db'
    """
    text = text.strip()
    found = _POSTGRESQL.match(text)
    if found is None:
        raise ConfigError("no address of PostgreSQL: write postgresql://USER@HOST/DATABASE")
    address = f"{found['scheme'].lower()}://{text[found.end() :]}"
    if not password_is_plain(address):
        raise ConfigError(f"{shown_address(address)}: write @ in the password as %40, / as %2F, ? as %3F, # as %23")
    return address
