"""Remove secrets from addresses: passwords, tokens and signatures in a URL are replaced by `...`.

All addresses in messages, reports and files of the project pass through `redacted`, `shown_address` or `without_secrets`.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

GAP = "..."
"""Replaces a secret."""

_USERS_PASSWORD = re.compile(r"^([\w+.-]+://[^:/@?#]*):(.*)@", re.DOTALL)
_OPTION = re.compile(r"(?<=[?&;])(?P<name>[^=&;]*)(?P<value>=[^&]*)?")
# A number before a slash is a port. A password that contains a slash is not valid in a URL, but occurs.
_USER = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,20}|)://"
    r"(?P<user>[^/?#\s@:\[\]'\"]{0,256})"
    r"(?P<password>:(?!\d{1,5}[/?#\s])(?:[^/\s]{0,256}|(?:(?!::)\S){0,256}))?@",
    re.IGNORECASE,
)
_PARAMETER = re.compile(
    r"(?P<name>[?&;#][^=?&;#\s\"'<>/]{1,100})=(?P<value>(?:(?!::)[^&?\s\"'<>])+?)(?=[:,;)]{0,3}(?:[&?\s\"'<>]|::|$))"
)
_SECRET_NAME = re.compile(
    r"token(?!i)|signature|passw|secret|credential|api[_-]?key|access[_-]?(?:key|id)|jwt|key-pair|auth(?!or)|session"
    r"|^(?:sig|key|pwd|pw|pass|sas|code|hmac|policy)$",
    re.IGNORECASE,
)
_BARE_TOKEN = re.compile(r"\b(?:hf_|ghp_|github_pat_|glpat-)\w{16,255}|(?<=Bearer )[\w.~+/=-]{8,4096}")


def redacted(text: str) -> str:
    """Return the text without the secrets of any URLs in it; all other characters are unchanged.

    Removes passwords (`user:password@`; for http also the user, which may be a token), parameters with the name of a secret
    (`token`, `sig`, `X-Amz-Signature`, `password`, `key`, ...), and tokens of well-known forms. The function is idempotent.

    >>> redacted("cannot open https://ann:pw@host/a.tar?part=1&X-Amz-Signature=0123abc (403)")
    'cannot open https://...@host/a.tar?part=1&X-Amz-Signature=... (403)'
    """
    if "://" in text:
        text = _USER.sub(_without_password, text)
    if "=" in text:
        text = _PARAMETER.sub(_without_value, text)
    return _BARE_TOKEN.sub(GAP, text)


def is_redacted(address: str) -> bool:
    """Whether `redacted` removed a secret from an address.

    >>> is_redacted("https://host/a.tar?token=..."), is_redacted("https://host/a.tar?part=...")
    (True, False)
    """
    return f"://{GAP}@" in address or any(
        found["value"] == GAP and _is_secret(found["name"]) for found in _PARAMETER.finditer(address)
    )


def without_secrets(plain: Any) -> Any:
    """Return plain data (dicts, lists, scalars) in which every text is `redacted`.

    >>> without_secrets({"source": "shards:https://host/a.tar?token=abc", "steps": [1]})
    {'source': 'shards:https://host/a.tar?token=...', 'steps': [1]}
    """
    if isinstance(plain, str):
        return redacted(plain)
    if isinstance(plain, Mapping):
        return {name: without_secrets(value) for name, value in plain.items()}
    return [without_secrets(value) for value in plain] if isinstance(plain, list | tuple) else plain


def shown_address(address: str) -> str:
    """Return the address of a database without its password.

    >>> shown_address("postgresql://ann:secret@host:5432/tune")
    'postgresql://ann@host:5432/tune'
    >>> shown_address("postgresql://host/tune?user=ann&password=secret")
    'postgresql://host/tune?user=ann&password=...'
    >>> shown_address("postgresql://ann:se@cret@host/tune")
    'postgresql://ann@...'
    """
    address = address.strip()
    match = _USERS_PASSWORD.match(address)
    if match and not password_is_plain(address):  # The end of the password is ambiguous.
        return f"{match[1]}@{GAP}"
    base, separator, options = _USERS_PASSWORD.sub(r"\1@", address).partition("?")
    return redacted(base + _OPTION.sub(_shown_option, separator + options))


def _shown_option(found: re.Match[str]) -> str:
    """Return a parameter of a database address without secrets.

    A parameter without a value is replaced, too: it is probably part of a password that contains `&`.
    """
    if found["value"] is None:
        return GAP if found["name"] else ""
    return f"{found['name']}={GAP}" if _is_secret(f"&{found['name']}") else found[0]


def password_is_plain(address: str) -> bool:
    """Whether the password contains no `@`, `/`, `?` or `#`, which would end it early and expose its rest as the host.

    >>> password_is_plain("postgresql://ann:se@cret@host/tune")
    False
    """
    match = _USERS_PASSWORD.match(address)
    return match is None or not re.search(r"[@/?#]", match[2])


def _without_password(found: re.Match[str]) -> str:
    scheme, user = found["scheme"].lower(), found["user"]
    if scheme.startswith("postgres"):
        return f"{found['scheme']}://{user}@"
    hides_user = found["password"] is not None or scheme in {"http", "https"}
    return f"{found['scheme']}://{GAP if hides_user else user}@"


def _without_value(found: re.Match[str]) -> str:
    return f"{found['name']}={GAP}" if _is_secret(found["name"]) else found[0]


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(unquote(name[1:])) is not None
