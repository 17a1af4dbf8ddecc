"""Frozen towers: weights that training does not change (LiT, Zhai et al. 2022)."""

from typing import Literal, TypeAlias, get_args

from torch import nn

from diptych.core.deprecation import RenamedAttribute, renamed_names
from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.models.clip import CLIP
from diptych.models.config import STAGED, CLIPConfig
from diptych.models.depth import LayerLocation, Tower, locate_parameter, num_layers_of
from diptych.training.optim.build import OptimizerConfig

_OLD_NAMES = {"apply_lock": "apply_freeze", "check_lock": "check_freeze"}
Locked: TypeAlias = int | Literal["all"] | None


__getattr__ = renamed_names(__name__, _OLD_NAMES)


@settings
class LockConfig:
    """Which weights of each tower are frozen. `lock.image all` is LiT: a text tower is trained against a frozen image tower."""

    image: Locked = None
    """`all`, or the number of first blocks (stages, for a convolutional tower) that are frozen together with stem and
    embeddings; 0 freezes only stem and embeddings, None nothing."""
    text: Locked = None
    """`all`, or the number of first blocks that are frozen together with the embeddings; 0 freezes only the embeddings, None
    nothing."""

    def __post_init__(self) -> None:
        for tower, locked in (("image", self.image), ("text", self.text)):
            if isinstance(locked, int) and locked < 0:
                raise ConfigError(f"lock.{tower} is {locked}; it must be at least 0, all, or none")
        if self.image == self.text == "all":
            raise ConfigError("lock: both towers are locked, so only the temperature would be trained; unlock one")

    def of(self, tower: Tower) -> Locked:
        """The setting of one tower."""
        return self.image if tower == "image" else self.text

    def covers(self, location: LayerLocation | None) -> bool:
        """Whether the parameters at a location are frozen. Parameters outside of both towers (None) never are.

        >>> LockConfig(image=2).covers(LayerLocation("image", depth=2, num_layers=12))
        True
        """
        locked = None if location is None else self.of(location.tower)
        if location is None or locked is None:
            return False
        return locked == "all" or location.depth <= locked

    holds = RenamedAttribute("covers")


def apply_freeze(model: CLIP, lock: LockConfig) -> None:
    """Set `requires_grad` to False for all frozen parameters. Call it before the optimizers are built.

    Raises:
        ConfigError: the config freezes more blocks or stages than a tower has.
    """
    _check_numbers(lock, model.config)
    for name, parameter in model.named_parameters():
        if lock.covers(locate_parameter(name, model.config)):
            parameter.requires_grad_(False)


def set_training_mode(model: CLIP, lock: LockConfig) -> None:
    """Set the model to training mode, but frozen batch norms to evaluation mode, so that their statistics do not change."""
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and lock.covers(locate_parameter(name, model.config)):
            module.eval()


def check_freeze(lock: LockConfig, optimizer: OptimizerConfig) -> None:
    """Reject optimizer settings that have no effect because their tower is frozen.

    Raises:
        ConfigError: a weight decay is set for a tower that is entirely frozen.
    """
    for tower, locked, decay in (
        ("image", lock.image, optimizer.image_weight_decay),
        ("text", lock.text, optimizer.text_weight_decay),
    ):
        if locked == "all" and decay is not None:
            raise ConfigError(
                f"optimizer.{tower}_weight_decay is {decay}, but lock.{tower} is all, so it has no effect; remove one of them"
            )


def _check_numbers(lock: LockConfig, config: CLIPConfig) -> None:
    for tower in get_args(Tower):
        locked, num_layers = lock.of(tower), num_layers_of(tower, config)
        if isinstance(locked, int) and locked > num_layers:
            layers = "stages" if tower == "image" and isinstance(config.image, STAGED) else "blocks"
            raise ConfigError(f"lock.{tower} is {locked}, but the {tower} tower has {num_layers} {layers}")
