"""The index of weights that are split into several files (`model.safetensors.index.json`). Needs no PyTorch."""

from pathlib import Path

from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json


def indexed_files(path: Path) -> set[str]:
    """Return the names of the files that an index (`model.safetensors.index.json`) lists.

    Raises:
        BundleError: the file is not such an index.
    """
    try:
        return {Path(name).name for name in read_json(path)["weight_map"].values()}
    except ConfigError as error:
        raise BundleError(str(error)) from None
    except (KeyError, TypeError, AttributeError):
        raise BundleError(f"{path}: is not an index of weights") from None
