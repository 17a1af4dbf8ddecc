"""Parse PostgreSQL addresses in their common forms."""

import re

from diptych.core.address import password_is_plain, shown_address
from diptych.core.errors import ConfigError

_POSTGRESQL = re.compile(r"(?P<scheme>postgres(?:ql)?)(?:\+\w+)?://", re.IGNORECASE)


def is_postgres_address(text: str) -> bool:
    """Whether a text is a PostgreSQL address: `postgresql://` or `postgres://`.

    Upper case, surrounding white space and a driver name in SQLAlchemy's form are accepted.

    >>> [is_postgres_address(text) for text in (" POSTGRESQL://host/db", "postgresql+psycopg://host/db", "photos.index")]
    [True, True, False]
    """
    return _POSTGRESQL.match(text.strip()) is not None


def postgres_address(text: str) -> str:
    """Return the address in the form that libpq accepts: a lowercase scheme, no surrounding white space and no driver.

    Raises:
        ConfigError: the text is not a PostgreSQL address, or the password needs percent-encoding.

    >>> postgres_address(" PostgreSQL+psycopg://ann@Host/db")
    'postgresql://ann@Host/db'
    """
    text = text.strip()
    found = _POSTGRESQL.match(text)
    if found is None:
        raise ConfigError("not an address of PostgreSQL: write postgresql://USER@HOST/DATABASE")
    address = f"{found['scheme'].lower()}://{text[found.end() :]}"
    if not password_is_plain(address):
        raise ConfigError(f"{shown_address(address)}: write @ in the password as %40, / as %2F, ? as %3F, # as %23")
    return address
