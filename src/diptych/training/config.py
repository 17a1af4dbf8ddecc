"""The config of a run: one tree of settings, read from and written to YAML."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from diptych.core.address import redacted, without_secrets
from diptych.core.errors import ConfigError
from diptych.core.files import write_text
from diptych.core.precision import PrecisionSetting
from diptych.core.settings import from_plain, read_yaml, settings, to_plain
from diptych.data.batches.loader import DataConfig
from diptych.data.sources.splits import FIRST_SPLIT_RULE
from diptych.images.augment import AugmentConfig
from diptych.images.transforms import height_width
from diptych.models.config import STAGED, CLIPConfig, ConvNetConfig, reads
from diptych.training.compilation import CompileSetting
from diptych.training.distillation import DistillConfig
from diptych.training.loss import LossConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.freeze import LockConfig, check_freeze
from diptych.training.optim.schedule import ScheduleConfig
from diptych.training.parallel.wrap import Parallel
from diptych.training.validation import ValidationConfig

CUSTOM = "custom"
"""Value of `recipe` for a run without a recipe."""
_ALWAYS_NAMED = (
    *("recipe", "model.image.image_px", "model.text.vocab_size", "model.pixels.mean", "data.source"),
    *("data.max_samples", "augment.flip", "optimizer.lr", "optimizer.max_grad_norm", "schedule.epochs"),
    *("schedule.steps", "schedule.minutes", "batch_size", "seed", "device"),
)
"""Settings that the run configs of all versions contain. A config written by a user usually lacks most of them."""
_MISSING = object()
SECRETS = "secrets.yaml"
"""File for the secrets of the addresses in `config.yaml`, readable only by its owner."""


@settings
class CheckpointConfig:
    """Checkpoint intervals. A checkpoint is saved when any of them has passed since the last checkpoint."""

    steps: int | None = None
    """Interval in steps; None to ignore steps."""
    minutes: float | None = 5.0
    """Interval in minutes; None to ignore time."""
    epochs: float | None = None
    """Interval in epochs, which may be a fraction; None to ignore epochs."""
    keep: int = 2
    """Number of newest checkpoints to keep. The checkpoint of the best validation is kept as well."""

    def __post_init__(self) -> None:
        given = {name: value for name in ("steps", "minutes", "epochs") if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            if not value > 0:  # Also rejects NaN.
                raise ConfigError(f"checkpoint.{name} is {value}; it must be above 0, or none")
        if not given:
            raise ConfigError(
                "checkpoint.steps, checkpoint.minutes and checkpoint.epochs are all none; a run that is never saved loses "
                "everything when it dies: set one"
            )
        if self.keep < 1:
            raise ConfigError(f"checkpoint.keep is {self.keep}; it must be at least 1")

    def is_due(self, *, steps: int, minutes: float, epochs: float) -> bool:
        """Whether a checkpoint is due, given the steps, minutes and epochs since the last one.

        >>> CheckpointConfig(steps=100, minutes=5.0).is_due(steps=100, minutes=1.0, epochs=0.1)
        True
        """
        limits = ((self.steps, steps), (self.minutes, minutes), (self.epochs, epochs))
        return any(limit is not None and since >= limit for limit, since in limits)


@settings
class LogsConfig:
    """How often steps are logged, and the experiment trackers that receive the metrics of the run."""

    every_steps: int = 5
    """Interval of logged steps. On a GPU, the metrics of all steps since the last logged one are copied to the host together.
    Several ranks exchange the elapsed time, stop signals and unreadable samples at least this often."""
    trackers: tuple[Literal["wandb", "trackio"], ...] = ()
    """`wandb` or `trackio`. Each is an extra (pip install 'diptych[wandb]') and uses its own settings for keys and servers."""
    project: str = "diptych"
    """Name of the project in the trackers."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ConfigError(f"logs.every_steps is {self.every_steps}; it must be at least 1")


@settings
class TrainConfig:
    """All settings of a run. `train` writes them to `config.yaml` in the run folder, which can be run again unchanged.

    >>> config = TrainConfig(batch_size=128, seed=1)
    >>> config.batch_size, config.optimizer.lr
    (128, 0.0005)
    """

    recipe: str = CUSTOM
    """Name of the recipe of this run. A config file that lacks settings takes them from this recipe; with `custom`, it takes
    the defaults below."""
    model: CLIPConfig = CLIPConfig()
    """Both towers, tokenizer and image transform."""
    init: str | None = None
    """Weights to start from: a bundle, or any model that `diptych import` reads. Its architecture replaces `model`. None for
    random weights."""
    data: DataConfig = DataConfig()
    """Training and validation data."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of training images and captions."""
    loss: LossConfig = LossConfig()
    """Contrastive loss."""
    distill: DistillConfig = DistillConfig()
    """Distillation from a teacher model."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer, peak learning rate and weight decay."""
    lock: LockConfig = LockConfig()
    """Weights that are frozen."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Length of the run and learning rate schedule."""
    validation: ValidationConfig = ValidationConfig()
    """Validation during the run."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoint intervals."""
    logs: LogsConfig = LogsConfig()
    """Experiment trackers."""
    batch_size: int = 64
    """Pairs per step, over all processes. The other pairs of the batch are the negatives."""
    seed: int = 0
    """Seed for initial weights, order, augmentation and choice of captions."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`."""
    precision: PrecisionSetting = "auto"
    """Dtype of matrix products in the towers: `fp32`, `bf16`, `fp16`, or `auto`: bf16 on GPUs that support it, fp16 on older
    ones with tensor cores, and fp32 otherwise. The run folder stores the selected precision. Weights are always fp32. With bf16
    and fp16, a GPU that supports TF32 uses it for the remaining fp32 products; with `fp32` it does not."""
    deterministic: bool = False
    """Use deterministic algorithms only, so that two runs on one GPU, and a resumed run, end with the same weights, bit for
    bit: slower on a GPU. Runs on a CPU are always deterministic."""
    parallel: Parallel = "ddp"
    """How several processes (`torchrun`) train together: each has the whole model (`ddp`), or a shard of it (`fsdp`), for
    models that do not fit on one device."""
    micro_batch: int | None = None
    """Pairs per process that are encoded at once, for batches whose activations do not fit into memory. The gradients are those
    of the whole batch. It must divide `batch_size`; None encodes the whole batch at once."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: much less memory, about a third more time."""
    compile: CompileSetting = "auto"
    """Compile both towers, block by block (`torch.compile`): the first step takes up to a minute, later steps are faster. On a
    CPU only the image tower is compiled. `auto` compiles on CUDA GPUs if the run has at least 1,000 steps or 10 minutes."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, between 0 and 1, such as 0.999. If set, the average is validated
    and saved in bundles; None uses the weights themselves."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 2")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise ConfigError(
                f"micro_batch is {self.micro_batch}; it must divide batch_size, which is {self.batch_size}"
            )
        if self.parallel == "fsdp" and self.optimizer.name == "muon":
            raise ConfigError(
                "optimizer.name is 'muon', which needs whole matrices, but parallel 'fsdp' shards them: use 'ddp'"
            )
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ConfigError("precision is 'fp16', which parallel 'fsdp' does not support; use 'bf16', or 'ddp'")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema is {self.ema}; it must lie between 0 and 1")
        if self.loss.name == "sigmoid" and self.init is None and self.model.init_logit_bias is None:
            raise ConfigError("loss.name is 'sigmoid', which needs a logit bias: set model.init_logit_bias to -10")
        if self.gradient_checkpointing and isinstance(self.model.image, STAGED) and self.init is None:
            raise ConfigError("gradient_checkpointing needs transformers; model.image is convolutions with batch norms")
        self._check_small_first()
        check_freeze(self.lock, self.optimizer)

    def _check_small_first(self) -> None:
        """Check that the model accepts the image sizes of `small_first`, and that they are smaller than its own."""
        image = self.model.image
        for _, px in self.schedule.small_first if self.init is None else ():
            if not isinstance(image, ConvNetConfig):
                raise ConfigError(
                    f"schedule.small_first needs a tower that reads any size, 'convnet'; this is '{image.kind}': "
                    "leave it empty, []"
                )
            if not reads(image, px, px) or px >= min(height_width(image.image_px)):
                raise ConfigError(
                    f"schedule.small_first has {px} px; it must be a multiple of {image.stride} below the model's own size, "
                    f"{image.image_px}"
                )


def read_config(path: Path) -> TrainConfig:
    """Read a complete config, including the secrets of its addresses, which `write_config` stores in `secrets.yaml`.

    Settings that a later version added get their defaults. `diptych.recipes.config_file` also reads files that start from a
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
    """Read the `config.yaml` of a run folder. Missing settings get the values that the version that wrote it used.

    Raises:
        ConfigError: the file is missing or is not YAML, or a setting is unknown or invalid.
    """
    return from_plain(TrainConfig, _completed(read_plain_config(path)), what=str(path))


def read_plain_config(path: Path) -> Any:
    """The unchecked content of a YAML file, including the secrets of its addresses from `secrets.yaml` next to it.

    Raises:
        ConfigError: the file is missing or is not YAML.
    """
    secrets = path.with_name(SECRETS)
    whole = read_yaml(secrets) if secrets.is_file() else {}
    return _restored(_with_kinds(read_yaml(path), path), whole if isinstance(whole, dict) else {})


def _with_kinds(plain: Any, path: Path) -> Any:
    """Return the settings of a file with `tower` renamed to `kind`, as in `image: {tower: timm}`.

    Raises:
        ConfigError: the settings of a tower contain both names.
    """
    model = plain.get("model") if isinstance(plain, dict) else None
    if not isinstance(model, dict):
        return plain
    renamed = {}
    for name in ("image", "text"):
        tower = model.get(name)
        if isinstance(tower, dict) and "tower" in tower:
            if "kind" in tower:
                raise ConfigError(
                    f"{path}: model.{name} has 'tower' and 'kind', which mean the same; remove one of them"
                )
            renamed[name] = {"kind": tower["tower"], **{key: value for key, value in tower.items() if key != "tower"}}
    return {**plain, "model": {**model, **renamed}} if renamed else plain


def starts_from(plain: Any) -> str:
    """The name of the recipe that a config file starts from; `custom` for the defaults of `TrainConfig`.

    A run writes every setting, so its config does not depend on later changes of the recipe. A config that contains all
    settings of `_ALWAYS_NAMED` is complete and does not start from a recipe.
    """
    name = plain.get("recipe", CUSTOM) if isinstance(plain, dict) and _first_missing(plain) else CUSTOM
    return name if isinstance(name, str) else CUSTOM


def _first_missing(plain: dict[str, Any]) -> str | None:
    return next((path for path in _ALWAYS_NAMED if look_up(plain, path, default=_MISSING) is _MISSING), None)


def look_up(plain: Mapping[str, Any], path: str, *, default: Any = None) -> Any:
    """The value at a dotted path of plain settings; `default` if there is none.

    >>> look_up({"optimizer": {"lr": 0.1}}, "optimizer.lr")
    0.1
    """
    node: Any = plain
    for part in path.split("."):
        node = node.get(part, default) if isinstance(node, Mapping) else default
    return node


def _completed(plain: Any) -> Any:
    """The settings of a run, completed by the values that earlier versions used for settings that they did not have."""
    data = plain.get("data") if isinstance(plain, dict) else None
    if not isinstance(data, dict):
        return plain
    return {"precision": "fp32", **plain, "data": {"split_rule": FIRST_SPLIT_RULE, **data}}


def write_config(config: TrainConfig, path: Path) -> None:
    """Write a config that `read_config` reads. Addresses with secrets are stored in `secrets.yaml` next to it (mode 600)."""
    plain = to_plain(config)
    public = without_secrets(plain)
    shown = dict(flat(public))
    secrets = {path: value for path, value in flat(plain) if isinstance(value, str) and value != shown[path]}
    if secrets:
        write_text(path.with_name(SECRETS), yaml.safe_dump(secrets, sort_keys=False), mode=0o600)
    write_text(path, yaml.safe_dump(public, sort_keys=False))


def hide_secrets(path: Path) -> None:
    """Move the secrets in a `config.yaml` of an older version to `secrets.yaml`. A file without secrets is not changed."""
    plain = read_yaml(path)
    if without_secrets(plain) != plain:
        write_config(from_plain(TrainConfig, _completed(plain), what=str(path)), path)


def flat(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of each setting in nested settings.

    >>> list(flat({"seed": 0, "optimizer": {"lr": 0.1}}))
    [('seed', 0), ('optimizer.lr', 0.1)]
    """
    for key, value in plain.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _restored(plain: Any, secrets: dict[str, str], path: str = "") -> Any:
    """The settings with the secrets of their addresses. An address that was edited since then is left unchanged."""
    if isinstance(plain, dict):
        return {key: _restored(value, secrets, f"{path}.{key}" if path else str(key)) for key, value in plain.items()}
    whole = secrets.get(path)
    return whole if isinstance(whole, str) and redacted(whole) == plain else plain
