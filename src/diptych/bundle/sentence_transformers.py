"""Find the Hugging Face CLIP model in a sentence-transformers folder (`0_CLIPModel/`)."""

from pathlib import Path

from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json

MODULES = "modules.json"


def sentence_transformers_clip(folder: Path) -> Path:
    """Return the folder of the CLIP model in a sentence-transformers folder; any other folder is returned unchanged.

    Raises:
        BundleError: the list of modules is damaged, or the model has further modules, which Diptych does not support.
    """
    path = folder / MODULES
    if not path.is_file():
        return folder
    try:
        modules = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in read_json(path)]
    except (ConfigError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: is not a list of modules ({error!s:.80})") from None
    kinds = [kind for kind, _ in modules]
    if "CLIPModel" not in kinds:
        return folder
    if kinds != ["CLIPModel"]:
        raise BundleError(f"{path}: has the modules {', '.join(kinds)}; Diptych supports only a single CLIPModel")
    name = Path(modules[0][1])
    if name.is_absolute() or ".." in name.parts:
        raise BundleError(f"{path}: names the folder {name}, which is outside the model folder")
    return folder / name
