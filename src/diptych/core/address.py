"""Addresses of databases, fit to be shown."""

import re

_USERS_PASSWORD = re.compile(r"^([\w+]+://[^:/@?#]*):(.*)@", re.DOTALL)
_PASSWORD_SETTING = re.compile(r"([?&](?:ssl)?password)=[^&]*")


def shown_address(address: str) -> str:
    """Without its password.

    >>> shown_address("postgresql://ann:secret@host:5432/tune")
    'postgresql://ann@host:5432/tune'
    >>> shown_address("postgresql://host/tune?user=ann&password=secret")
    'postgresql://host/tune?user=ann&password=...'
    """
    return _PASSWORD_SETTING.sub(r"\1=...", _USERS_PASSWORD.sub(r"\1@", address))


def password_is_plain(address: str) -> bool:
    """Whether no sign in the password ends it too early, so that its rest were taken for a host and shown.

    >>> password_is_plain("postgresql://ann:se@cret@host/tune")
    False
    """
    match = _USERS_PASSWORD.match(address)
    return match is None or not re.search(r"[@/?#]", match[2])
