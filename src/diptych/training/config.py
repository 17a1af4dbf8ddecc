"""Everything that decides a run, in one tree of settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from diptych.core.address import redacted, without_secrets
from diptych.core.errors import ConfigError
from diptych.core.files import write_text
from diptych.core.settings import from_plain, read_yaml, settings, to_plain
from diptych.data.batches.loader import DataConfig
from diptych.data.sources.splits import FIRST_SPLIT_RULE
from diptych.images.augment import AugmentConfig
from diptych.images.transforms import height_width
from diptych.models.config import STAGED, CLIPConfig, ConvNetConfig, reads
from diptych.training.distillation import DistillConfig
from diptych.training.loss import LossConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.freeze import LockConfig, check_lock
from diptych.training.optim.schedule import ScheduleConfig
from diptych.training.parallel.wrap import Parallel
from diptych.training.precision import Precision
from diptych.training.validation import ValidationConfig

CUSTOM = "custom"
"""Value of `recipe` for a run without a recipe."""
_ALWAYS_NAMED = (
    *(
        "recipe",
        "model.image.image_px",
        "model.text.vocab_size",
        "model.pixels.mean",
        "data.source",
        "data.max_samples",
    ),
    *(
        "augment.flip",
        "optimizer.lr",
        "optimizer.max_grad_norm",
        "schedule.epochs",
        "schedule.steps",
        "schedule.minutes",
    ),
    *("batch_size", "seed", "device"),
)
"""Settings that the run configs of all versions contain. A config that a user writes lacks most of them."""
SECRETS = "secrets.yaml"
"""What was left out of the addresses in `config.yaml`; only its owner may read it."""


@settings
class CheckpointConfig:
    """How often a run is saved: whichever comes first."""

    steps: int | None = None
    """Save every so many steps; None: not by steps."""
    minutes: float | None = 5.0
    """Save every so many minutes; None: not by the clock."""
    epochs: float | None = None
    """Save every so many epochs, or parts of one; None: not by epochs."""
    keep: int = 2
    """So many of the newest are kept; beside them, the one of the best validation."""

    def __post_init__(self) -> None:
        given = {name: value for name in ("steps", "minutes", "epochs") if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            if not value > 0:  # Not a number is refused, too.
                raise ConfigError(f"checkpoint.{name} is {value}; it must be above 0, or none")
        if not given:
            raise ConfigError(
                "checkpoint.steps, checkpoint.minutes and checkpoint.epochs are all none; a run that is never saved loses "
                "everything when it dies: set one"
            )
        if self.keep < 1:
            raise ConfigError(f"checkpoint.keep is {self.keep}; it must be at least 1")

    def is_due(self, *, steps: int, minutes: float, epochs: float) -> bool:
        """Whether so much since the last one calls for the next.

        >>> CheckpointConfig(steps=100, minutes=5.0).is_due(steps=100, minutes=1.0, epochs=0.1)
        True
        """
        limits = ((self.steps, steps), (self.minutes, minutes), (self.epochs, epochs))
        return any(limit is not None and since >= limit for limit, since in limits)


@settings
class LogsConfig:
    """Who else is told of the run, beside its folder."""

    trackers: tuple[Literal["wandb", "trackio"], ...] = ()
    """`wandb` and `trackio`, each an extra: pip install 'diptych[wandb]'. They find keys and servers as they always do."""
    project: str = "diptych"
    """Their project."""


@settings
class TrainConfig:
    """A run. Written to its folder as `config.yaml`, from which it runs again as it stands."""

    recipe: str = CUSTOM
    """Name of the recipe of this run. A config file that lacks settings takes them from this recipe; with `custom`, it takes
    the defaults below."""
    model: CLIPConfig = CLIPConfig()
    """Both towers, tokenizer and image transform."""
    init: str | None = None
    """Weights to start from: a bundle, or whatever else `diptych import` reads. They bring their model, whatever `model` says;
    None for random weights."""
    data: DataConfig = DataConfig()
    """What it trains and validates on."""
    augment: AugmentConfig = AugmentConfig()
    """What happens to training pictures."""
    loss: LossConfig = LossConfig()
    """What it minimises."""
    distill: DistillConfig = DistillConfig()
    """Whose view of the data it learns beside."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How weights move."""
    lock: LockConfig = LockConfig()
    """Which weights do not."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How long, and how fast when."""
    validation: ValidationConfig = ValidationConfig()
    """How it is measured as it goes."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """How often it is saved."""
    logs: LogsConfig = LogsConfig()
    """Who else is told of it."""
    batch_size: int = 64
    """Pairs a step; every other pair of the batch is a negative."""
    seed: int = 0
    """Decides initial weights, order, augmentation and captions."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`."""
    precision: Precision = "fp32"
    """What the towers compute in: `fp32`, `bf16` or `fp16`. Weights stay in fp32."""
    parallel: Parallel = "ddp"
    """Where several processes train together (`torchrun`): each holds the whole model (`ddp`), or a part of it (`fsdp`), for
    models that do not fit otherwise."""
    micro_batch: int | None = None
    """Pairs that go through the towers at once, where a batch's activations do not fit; the gradients are the whole batch's.
    Divides `batch_size`; None for all at once."""
    gradient_checkpointing: bool = False
    """Compute activations again backward instead of keeping them: much less memory, about a third more time."""
    compile: bool = False
    """Compile the image tower (`torch.compile`): the first step takes a minute, the others less. Texts are packed by length,
    another layout each step, and stay as they are."""
    ema: float | None = None
    """Measure and keep an exponential moving average of the weights, which keeps so much of itself in a step (0.999, say);
    None for the weights themselves."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(f"batch_size is {self.batch_size}; a contrast needs at least 2")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise ConfigError(
                f"micro_batch is {self.micro_batch}; it must divide batch_size, which is {self.batch_size}"
            )
        if self.parallel == "fsdp" and self.optimizer.name == "muon":
            raise ConfigError(
                "optimizer.name is 'muon', which needs whole matrices; parallel 'fsdp' cuts them: use 'ddp'"
            )
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ConfigError("precision is 'fp16', which parallel 'fsdp' does not scale; use 'bf16', or 'ddp'")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema is {self.ema}; it must lie between 0 and 1")
        if self.loss.name == "sigmoid" and self.init is None and self.model.init_logit_bias is None:
            raise ConfigError("loss.name is 'sigmoid', which needs a logit bias: set model.init_logit_bias to -10")
        if self.gradient_checkpointing and isinstance(self.model.image, STAGED) and self.init is None:
            raise ConfigError("gradient_checkpointing needs transformers; model.image is convolutions with batch norms")
        self._check_small_first()
        check_lock(self.lock, self.optimizer)

    def _check_small_first(self) -> None:
        """Pictures that the run begins on must be such as the model reads, and smaller than its own."""
        image = self.model.image
        for _, px in self.schedule.small_first if self.init is None else ():
            if not isinstance(image, ConvNetConfig):
                raise ConfigError(
                    f"schedule.small_first needs a tower that reads any size, 'convnet'; this is '{image.kind}': "
                    "leave it empty, []"
                )
            if not reads(image, px, px) or px >= min(height_width(image.image_px)):
                raise ConfigError(
                    f"schedule.small_first has {px} px; the model reads multiples of {image.stride}, in the end "
                    f"{image.image_px}"
                )


def read_config(path: Path) -> TrainConfig:
    """Read a complete config, with the secrets of its addresses from where `write_config` stored them.

    Settings that a later version added have their defaults. `diptych.recipes.config_file` also reads files that start from a
    recipe.

    Raises:
        ConfigError: the file is missing or is not YAML, a setting is unknown or invalid, or the file starts from a recipe.
    """
    plain = read_plain_config(path)
    if starts_from(plain) != CUSTOM:
        raise ConfigError(
            f"{path}: starts from a recipe, because it lacks {_first_missing(plain)}; read it with "
            "diptych.recipes.config_file.read_config_file"
        )
    return from_plain(TrainConfig, plain, what=str(path))


def read_run_config(path: Path) -> TrainConfig:
    """The `config.yaml` of a run folder. Settings that it lacks have the values of the version that wrote it.

    Raises:
        ConfigError: the file is missing or is not YAML, or a setting is unknown or invalid.
    """
    return from_plain(TrainConfig, _completed(read_plain_config(path)), what=str(path))


def read_plain_config(path: Path) -> Any:
    """The unchecked content of a YAML file, with the secrets of its addresses from where `write_config` stored them.

    Raises:
        ConfigError: the file is missing or is not YAML.
    """
    secrets = path.with_name(SECRETS)
    whole = read_yaml(secrets) if secrets.is_file() else {}
    return _restored(read_yaml(path), whole if isinstance(whole, dict) else {})


def starts_from(plain: Any) -> str:
    """The name of the recipe that a config file starts from; `custom` for the defaults of `TrainConfig`.

    A run writes every setting, so its config does not depend on later changes of the recipe. A config that contains all
    settings of `_ALWAYS_NAMED` is complete and does not start from a recipe.
    """
    name = plain.get("recipe", CUSTOM) if isinstance(plain, dict) and _first_missing(plain) else CUSTOM
    return name if isinstance(name, str) else CUSTOM


def _first_missing(plain: dict[str, Any]) -> str | None:
    return next((path for path in _ALWAYS_NAMED if not _names(plain, path.split("."))), None)


def _names(plain: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(plain, dict) or name not in plain:
            return False
        plain = plain[name]
    return True


def _completed(plain: Any) -> Any:
    """A run's settings with those that earlier versions did not have."""
    data = plain.get("data") if isinstance(plain, dict) else None
    return {**plain, "data": {"split_rule": FIRST_SPLIT_RULE, **data}} if isinstance(data, dict) else plain


def write_config(config: TrainConfig, path: Path) -> None:
    """Write what `read_config` reads. Addresses with secrets go into a file of their own next to it, with mode 600."""
    plain = to_plain(config)
    shown = without_secrets(plain)
    secrets = dict(_differing(plain, shown))
    if secrets:
        write_text(path.with_name(SECRETS), yaml.safe_dump(secrets, sort_keys=False), mode=0o600)
    write_text(path, yaml.safe_dump(shown, sort_keys=False))


def hide_secrets(path: Path) -> None:
    """Move secrets out of a run's `config.yaml` that an older version wrote; any other file stays as it is."""
    plain = read_yaml(path)
    if without_secrets(plain) != plain:
        write_config(from_plain(TrainConfig, _completed(plain), what=str(path)), path)


def _differing(plain: Any, shown: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, whole text) of each setting that `without_secrets` changed."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from _differing(value, shown[key], f"{path}.{key}" if path else key)
    elif isinstance(plain, str) and plain != shown:
        yield path, plain


def _restored(plain: Any, secrets: dict[str, str], path: str = "") -> Any:
    """The settings with whole addresses; one that was changed by hand since stays as it is."""
    if isinstance(plain, dict):
        return {key: _restored(value, secrets, f"{path}.{key}" if path else str(key)) for key, value in plain.items()}
    whole = secrets.get(path)
    return whole if isinstance(whole, str) and redacted(whole) == plain else plain
