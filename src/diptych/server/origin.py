"""From where a request comes: the host that it names, and the site of the page that sends it."""

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import Scope

from diptych.server.problems import Problem

_HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_APIS = ("/v1/", "/api/")
"""Below these, even reading costs time or shows data, so that no page of another site may do it."""


def header(scope: Scope, name: bytes) -> bytes:
    """The first value of a header; empty without one."""
    found: bytes = next((value for key, value in scope["headers"] if key == name), b"")
    return found


def check_host(scope: Scope, hosts: Collection[str]) -> None:
    """Refuse a host that cannot be read or is not among those allowed; none allows any.

    Raises:
        Problem: the host cannot be read (400), or is another's (421).
    """
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    host = given[0] if given else ""
    name = _place(f"//{host}")[0] if host else ""
    if len(given) > 1 or name is None or (host and not _HOST.fullmatch(host)):
        raise Problem(400, "the Host header cannot be read", headers={"Connection": "close"})
    if hosts and name not in hosts:
        raise Problem(
            421,
            f"this server does not answer for the host {host[:100]!r}; start it with --allowed-host NAME to allow one",
        )


def check_site(scope: Scope, hosts: Collection[str]) -> None:
    """Refuse what a page of another site makes a browser send, except to open the page here by a link.

    Programs send neither `Origin` nor `Sec-Fetch-Site`, and are not affected.

    Raises:
        Problem: another site's page sends it (403).
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
    """Whether an origin is this server's; a proxy may have changed name or port, so the browser's word for it counts, too."""
    if origin == "null":
        return is_same
    scheme = origin.partition("://")[0].lower()
    own = _place(f"{scheme}://{header(scope, b'host').decode('latin-1')}")
    asking = _place(origin)
    if asking[0] is None:
        return False
    return asking == own or (is_same and asking[0] in {own[0], *hosts})


def _place(url: str) -> tuple[str | None, int | None]:
    """Host name and port of an address; None for what cannot be read."""
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None, None
