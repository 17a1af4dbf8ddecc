"""The folder of a study, and the checks before its first trial."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml

from diptych.core.address import shown_address
from diptych.core.errors import ConfigError
from diptych.core.files import write_text
from diptych.core.settings import from_plain, read_yaml
from diptych.training.config import TrainConfig
from diptych.training.setup import open_data
from diptych.tuning.space import Dimension, Space, reduced
from diptych.tuning.standing import Standing
from diptych.tuning.storage import opened_storage, sqlite_url
from diptych.tuning.study import Row, quiet_optuna

_META = "tune.yaml"


def prepare_space(base: TrainConfig, dimensions: Sequence[Dimension], on_message: Callable[[str], None]) -> Space:
    """Build the search space around a base config, without choices that are incompatible with the data.

    Args:
        base: the base config.
        dimensions: the dimensions of the space.
        on_message: called with a message for each choice that is removed.

    Raises:
        ConfigError: the base config does not fit its data, a field does not exist or does not accept the values, or a dimension
            has no compatible choice.
        DataError: the data cannot be read.
    """
    train_source, _ = open_data(base)
    num = len(train_source)

    def check(config: TrainConfig) -> None:
        if config.batch_size > num:
            raise ConfigError(f"batch_size {config.batch_size} is larger than the training data ({num} samples)")

    return reduced(Space(base, tuple(dimensions), check), on_message)


def create_study_folder(folder: Path, *, storage: str | None) -> None:
    """Create the folder of a study, with a file that contains the address of its database without the password.

    Raises:
        ConfigError: the folder cannot be created, or contains other files.
    """
    if folder.is_dir() and any(folder.iterdir()) and _read_meta(folder) is None:
        raise ConfigError(f"{folder}: is not empty and holds no study; choose another folder with --out")
    meta = {"study": folder.name, "storage": None if storage is None else shown_address(storage)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _META, yaml.safe_dump(meta))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from None


def read_study(folder: Path, *, storage: str | None = None) -> tuple[Space, list[Row]]:
    """Read the search space and the trials of a study.

    Args:
        folder: the folder of the study.
        storage: address of the database, which replaces the one in the folder; that one has no password.

    Raises:
        ConfigError: the folder contains no study, the database cannot be reached, or no trial has started.
    """
    if not (folder / _META).exists():
        raise ConfigError(f"{folder}: holds no study")
    meta = _read_meta(folder)
    if meta is None:
        raise ConfigError(f"{folder / _META}: does not name a study and its storage")
    with quiet_optuna(), opened_storage(storage or meta["storage"] or sqlite_url(folder)) as database:
        try:
            study = optuna.load_study(study_name=meta["study"], storage=database)
        except KeyError:
            raise ConfigError(f"{folder}: its study has not begun") from None
        setup = study.user_attrs.get("setup")
        if setup is None:
            raise ConfigError(f"{folder}: its study has not begun")
        dimensions = [from_plain(Dimension, plain, what="space") for plain in setup["space"].values()]
        return Space(from_plain(TrainConfig, setup["run"]), tuple(dimensions)), Standing(study).refresh()


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """The content of `tune.yaml` in a folder; None if there is no such file, or it belongs to another tool."""
    try:
        meta = read_yaml(folder / _META)
    except ConfigError:
        return None
    return meta if isinstance(meta, dict) and {"study", "storage"} <= meta.keys() else None
