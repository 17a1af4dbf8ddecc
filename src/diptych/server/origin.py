"""Checks of the `Host` header and of the site whose page sent a request."""

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import Scope

from diptych.server.problems import Problem

_HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_APIS = ("/v1/", "/api/")
"""Paths under which even reads use the model or return data. Pages of other sites may not request them."""


def header(scope: Scope, name: bytes) -> bytes:
    """The first value of a request header, or an empty string if the request does not have the header."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def check_host(scope: Scope, hosts: Collection[str]) -> None:
    """Check that the `Host` header is valid and that its host is allowed.

    Args:
        scope: the ASGI scope of the request.
        hosts: the allowed host names, in lower case; empty to allow every host.

    Raises:
        Problem: the header cannot be parsed (400), or the host is not allowed (421).
    """
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    host = given[0] if given else ""
    name = _host_and_port(f"//{host}")[0] if host else ""
    if len(given) > 1 or name is None or (host and not _HOST.fullmatch(host)):
        raise Problem(400, "the Host header cannot be read", headers={"Connection": "close"})
    if hosts and name not in hosts:
        raise Problem(
            421,
            f"this server does not answer for the host {host[:100]!r}; start it with --allowed-host NAME to allow one",
        )


def check_site(scope: Scope, hosts: Collection[str]) -> None:
    """Check that a request does not come from a page of another site. Links to the pages of this server are allowed.

    Only browsers send `Origin` and `Sec-Fetch-Site`, so requests from programs always pass.

    Args:
        scope: the ASGI scope of the request.
        hosts: host names of this server, in lower case.

    Raises:
        Problem: a page of another site sent the request (403).
    """
    origin = header(scope, b"origin").decode("latin-1")
    site = header(scope, b"sec-fetch-site").decode("latin-1").strip().lower()
    is_foreign = site == "cross-site" or (site == "same-site" and not origin)
    if origin and not _is_own(origin, scope, hosts, is_same=site == "same-origin"):
        is_foreign = True
    only_reads = scope["method"] in {"GET", "HEAD"} and not scope["path"].startswith(_APIS)
    if is_foreign and not only_reads:
        raise Problem(403, "a page of another site sent this request; open the page of this server instead")


def _is_own(origin: str, scope: Scope, hosts: Collection[str], *, is_same: bool) -> bool:
    """Whether an origin belongs to this server.

    A proxy may change the host name or the port. For a request that the browser marks as same-origin (`is_same`), an equal
    host name is therefore enough.
    """
    if origin == "null":
        return is_same
    scheme = origin.partition("://")[0].lower()
    own = _host_and_port(f"{scheme}://{header(scope, b'host').decode('latin-1')}")
    sender = _host_and_port(origin)
    if sender[0] is None:
        return False
    return sender == own or (is_same and sender[0] in {own[0], *hosts})


def _host_and_port(url: str) -> tuple[str | None, int | None]:
    """Host name and port of a URL; (None, None) if the URL cannot be parsed."""
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None, None
