"""Read the licenses of models from model cards, and warn once per model about non-commercial ones. Needs no PyTorch."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.core.bounded import parse_yaml, read_text
from diptych.core.errors import ConfigError, DiptychWarning

LICENSE = "license"
"""Name of the license in the origin of a bundle."""
_README = "README.md"
_MAX_FRONT_MATTER = 64 * 2**10
"""Maximum size of a card's front matter in characters."""
_MAX_LICENSE = 200
"""Maximum length of a license's name in characters."""
_PERMISSIVE = frozenset(
    {
        "apache-2.0",
        "mit",
        "isc",
        "unlicense",
        "cc0-1.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "gpl-3.0",
    }
    | {
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsl-1.0",
        "agpl-3.0",
        "lgpl-3.0",
        "mpl-2.0",
        "zlib",
        "wtfpl",
        "odc-by",
        "pddl",
    }
)
"""License ids of the hub that allow commercial use."""
_NON_COMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non-?commercial|research[- ]only|(?<![a-z-])apple-amlr(?![a-z-])")
"""Matches lowercase names of licenses that exclude commercial use. Apple's `apple-amlr` allows only research."""
_HUB_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_warned: set[tuple[str, str]] = set()
"""Models for which this process has emitted a warning."""


def allows_commercial_use(license_name: str) -> bool | None:
    """Return whether a license allows commercial use; None if its name does not tell.

    Args:
        license_name: an SPDX id, a license id of the hub, or any other name; several are separated by commas.

    >>> [allows_commercial_use(name) for name in ("Apache-2.0", "cc-by-nc-4.0", "apple-amlr", "other")]
    [True, False, False, None]
    """
    name = license_name.strip().lower()
    if _NON_COMMERCIAL.search(name):
        return False
    return True if all(part in _PERMISSIVE for part in name.split(", ")) else None


def card_license(folder: Path) -> str | None:
    """Return the license in the front matter of a folder's `README.md`; None if there is none or the file cannot be read.

    If the license is `other`, the card's `license_name` is returned instead.

    Args:
        folder: a model folder, which may be missing.
    """
    try:
        text = read_text(folder / _README)
    except ConfigError:
        return None
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text[:_MAX_FRONT_MATTER], flags=re.DOTALL)
    if found is None:
        return None
    try:
        content = parse_yaml(found[1], what=str(folder / _README))
    except ConfigError:
        return None
    return _stated(content) if isinstance(content, Mapping) else None


def non_commercial_note(origin: Mapping[str, Any]) -> str | None:
    """Return a note about a license that excludes commercial use; None for other and unknown licenses.

    >>> non_commercial_note({"license": "cc-by-nc-4.0"})
    'its license, cc-by-nc-4.0, does not allow commercial use'
    """
    name = origin.get(LICENSE)
    if not isinstance(name, str) or allows_commercial_use(name) is not False:
        return None
    return f"its license, {name}, does not allow commercial use"


def warn_if_non_commercial(origin: Mapping[str, Any], model: str) -> None:
    """Emit a `DiptychWarning`, once per process and model, if the license of a model excludes commercial use.

    Args:
        origin: the origin of the model.
        model: the name or path of the model, for the message.
    """
    note = non_commercial_note(origin)
    if note is not None and (model, note) not in _warned:
        _warned.add((model, note))
        warnings.warn(f"{model}: {note}", DiptychWarning, stacklevel=2)


def license_metadata(license_name: str | None) -> str:
    r"""Return the lines of a hub card's metadata that state a license; empty if there is none.

    A name that is not a license id of the hub becomes `other` with a `license_name`, as the hub requires.

    >>> license_metadata("apache-2.0"), license_metadata("My terms")
    ('license: apache-2.0\n', 'license: other\nlicense_name: my-terms\n')
    """
    if license_name is None:
        return ""
    name = license_name.strip().lower()
    is_creative_commons = re.fullmatch(r"cc-by(-nc)?(-nd|-sa)?-[234]\.[05]", name) is not None
    if name in _PERMISSIVE or name in {"apple-amlr", "openrail"} or is_creative_commons:
        return f"license: {name}\n"
    slug = re.sub(r"[^a-z0-9.+]+", "-", name).strip("-")
    return f"license: other\nlicense_name: {slug}\n" if _HUB_ID.fullmatch(slug) else "license: other\n"


def _stated(content: Mapping[str, Any]) -> str | None:
    name = content.get("license")
    if isinstance(name, list):  # The hub allows several.
        name = ", ".join(str(one) for one in name) or None
    if name == "other":
        name = content.get("license_name") or name
    if not isinstance(name, str) or not name.strip():
        return None
    return " ".join(name.split())[:_MAX_LICENSE]
