"""Find the license of a model by its name: in its bundle, its card or the list of known models.

Needs neither PyTorch nor a network.
"""

from collections.abc import Mapping
from pathlib import Path

from diptych.bundle.hub import BUNDLE, cached_snapshot
from diptych.bundle.known_models import PREFIX, known_model, resolve_name
from diptych.bundle.licenses import LICENSE, card_license
from diptych.core.errors import ConfigError
from diptych.core.settings import read_json


def license_of(name: str) -> str | None:
    """Return the license of a model; None if it is not known.

    The sources in order of precedence are the origin in a bundle's config, the front matter of `README.md` in the folder or in
    the cache of the hub, and the list of known models. The hub is not contacted.

    Args:
        name: a folder, a hub address such as `hf:openai/clip-vit-base-patch32`, or a short name. A weights file has no license.
    """
    address = resolve_name(name)
    if not address.startswith(PREFIX):
        return _in_folder(Path(address))
    snapshot = cached_snapshot(address)
    stated = None if snapshot is None else _in_folder(snapshot / BUNDLE) or _in_folder(snapshot)
    model = known_model(address)
    return stated or (None if model is None else model.family.license)


def _in_folder(folder: Path) -> str | None:
    try:
        content = read_json(folder / "config.json")
    except ConfigError:
        content = None
    origin = content.get("origin") if isinstance(content, Mapping) else None
    stated = origin.get(LICENSE) if isinstance(origin, Mapping) else None
    return stated if isinstance(stated, str) else card_license(folder)
