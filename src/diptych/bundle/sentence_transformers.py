"""Read the list of modules in a sentence-transformers folder, and find the CLIP model in it (`0_CLIPModel/`)."""

from pathlib import Path
from typing import NamedTuple

from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json

MODULES = "modules.json"


class Module(NamedTuple):
    """A module of a sentence-transformers model."""

    kind: str
    """Name of its class, such as `Transformer`, `Pooling` or `CLIPModel`."""
    folder: Path


def modules_of(folder: Path) -> list[Module]:
    """Return the modules of a sentence-transformers folder in order; empty for any other folder.

    Raises:
        BundleError: the list of modules is damaged, or names a folder outside of the model.
    """
    path = folder / MODULES
    if not path.is_file():
        return []
    try:
        listed = [(str(module["type"]).rpartition(".")[2], Path(str(module["path"]))) for module in read_json(path)]
    except (ConfigError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: is not a list of modules ({error!s:.80})") from None
    outside = next((name for _, name in listed if name.is_absolute() or ".." in name.parts), None)
    if outside is not None:
        raise BundleError(f"{path}: names the folder {outside}, which is outside the model folder")
    return [Module(kind, folder / name) for kind, name in listed]


def sentence_transformers_clip(folder: Path) -> Path:
    """Return the folder of the CLIP model in a sentence-transformers folder; any other folder is returned unchanged.

    Raises:
        BundleError: the list of modules is damaged, or the model has further modules, which Diptych does not support.
    """
    modules = modules_of(folder)
    kinds = [module.kind for module in modules]
    if "CLIPModel" not in kinds:
        return folder
    if kinds != ["CLIPModel"]:
        raise BundleError(
            f"{folder / MODULES}: has the modules {', '.join(kinds)}; Diptych supports only a single CLIPModel"
        )
    return modules[0].folder
