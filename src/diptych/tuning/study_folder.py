"""The folder of a study, and what is checked before its first trial."""

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

_ABOUT = "tune.yaml"


def prepare_space(base: TrainConfig, dimensions: Sequence[Dimension], say: Callable[[str], None]) -> Space:
    """The space around a run, without what its data does not allow.

    Raises:
        ConfigError: the run cannot be, or the space names no setting, has an empty range, or no choice that would do.
        DataError: the data cannot be read.
    """
    train_source, _ = open_data(base)
    num = len(train_source)

    def check(config: TrainConfig) -> None:
        if config.batch_size > num:
            raise ConfigError(f"batch_size {config.batch_size} is larger than the training data ({num} samples)")

    return reduced(Space(base, tuple(dimensions), check), say)


def create_study_folder(folder: Path, *, storage: str | None) -> None:
    """A folder that says where its study is kept, without the password.

    Raises:
        ConfigError: it cannot be made, or holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and _read_about(folder) is None:
        raise ConfigError(f"{folder}: is not empty and holds no study; choose another folder with --out")
    about = {"study": folder.name, "storage": None if storage is None else shown_address(storage)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _ABOUT, yaml.safe_dump(about))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from None


def read_study(folder: Path, *, storage: str | None = None) -> tuple[Space, list[Row]]:
    """What is tried in the folder's study, and how its trials stand.

    Args:
        folder: that of the study.
        storage: instead of the address that the folder has, which lacks its password.

    Raises:
        ConfigError: the folder holds no study, or it cannot be reached.
    """
    if not (folder / _ABOUT).exists():
        raise ConfigError(f"{folder}: holds no study")
    about = _read_about(folder)
    if about is None:
        raise ConfigError(f"{folder / _ABOUT}: does not name a study and its storage")
    with quiet_optuna(), opened_storage(storage or about["storage"] or sqlite_url(folder)) as place:
        try:
            study = optuna.load_study(study_name=about["study"], storage=place)
        except KeyError:
            raise ConfigError(f"{folder}: its study has not begun") from None
        setup = study.user_attrs.get("setup")
        if setup is None:
            raise ConfigError(f"{folder}: its study has not begun")
        dimensions = [from_plain(Dimension, plain, what="space") for plain in setup["space"].values()]
        return Space(from_plain(TrainConfig, setup["run"]), tuple(dimensions)), Standing(study).refresh()


def _read_about(folder: Path) -> dict[str, Any] | None:
    """What a study's folder says of it; None where there is no such file, or another tool's of the same name."""
    try:
        about = read_yaml(folder / _ABOUT)
    except ConfigError:
        return None
    return about if isinstance(about, dict) and {"study", "storage"} <= about.keys() else None
