"""Everything that decides a run, in one tree of settings."""

from pathlib import Path

import yaml

from diptych.core.errors import ConfigError
from diptych.core.settings import from_plain, settings, to_plain
from diptych.data.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.models.config import CLIPConfig
from diptych.training.optimizer import OptimizerConfig
from diptych.training.schedule import ScheduleConfig


@settings
class TrainConfig:
    """A run. Written to its folder as `config.yaml`, from which it runs again as it stands."""

    recipe: str = "custom"
    """Name of the recipe it came from."""
    model: CLIPConfig = CLIPConfig()
    """Both towers, tokenizer and image transform."""
    init: str | None = None
    """Weights to start from: a bundle, or whatever else `diptych import` reads. They bring their model, whatever `model` says;
    None for random weights."""
    data: DataConfig = DataConfig()
    """What it trains and validates on."""
    augment: AugmentConfig = AugmentConfig()
    """What happens to training pictures."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How weights move."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How long, and how fast when."""
    batch_size: int = 64
    """Pairs a step; every other pair of the batch is a negative."""
    seed: int = 0
    """Decides initial weights, order, augmentation and captions."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`."""
    gradient_checkpointing: bool = False
    """Compute activations again backward instead of keeping them: much less memory, about a third more time."""
    validations: int = 8
    """How often the run is measured on its validation split, spread evenly; the best is kept as `bundle-best`."""
    val_samples: int = 512
    """At most so many validation images during the run; a stable subset. The end is measured on all."""
    checkpoint_minutes: float = 5.0
    """A run that dies loses no more than this much work."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(f"batch_size is {self.batch_size}; a contrast needs at least 2")
        if self.validations < 1 or self.val_samples < 2 or self.checkpoint_minutes <= 0:
            raise ConfigError("validations must be at least 1, val_samples at least 2, checkpoint_minutes above 0")


def read_config(path: Path) -> TrainConfig:
    """The run that a YAML file describes.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds a setting that does not exist or does not fit.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    return from_plain(TrainConfig, plain, what=str(path))


def write_config(config: TrainConfig, path: Path) -> None:
    """Write what `read_config` reads."""
    path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False), encoding="utf-8")
