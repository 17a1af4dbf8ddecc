"""Locked towers: weights that stay as they came (LiT, Zhai et al. 2022)."""

from typing import Literal, TypeAlias

from torch import nn

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.models.clip import CLIP
from diptych.models.config import STAGED, CLIPConfig
from diptych.models.depth import LayerLocation, Tower, locate_parameter, num_layers_of
from diptych.training.optim.build import OptimizerConfig

Locked: TypeAlias = int | Literal["all"] | None


@settings
class LockConfig:
    """What of each tower does not learn. `lock.image all` is LiT: a text tower learns to read a ready image tower."""

    image: Locked = None
    """`all` of the image tower, or its first blocks (of convolutions: stages), with stem and embeddings; 0 for those alone."""
    text: Locked = None
    """`all` of the text tower, or its first blocks, with embeddings; 0 for those alone."""

    def __post_init__(self) -> None:
        for tower, locked in (("image", self.image), ("text", self.text)):
            if isinstance(locked, int) and locked < 0:
                raise ConfigError(f"lock.{tower} is {locked}; it must be at least 0, all, or none")
        if self.image == self.text == "all":
            raise ConfigError("lock: both towers are locked, so nothing but the temperature would learn; unlock one")

    def of(self, tower: Tower) -> Locked:
        """What of this tower is locked."""
        return self.image if tower == "image" else self.text

    def holds(self, place: LayerLocation | None) -> bool:
        """Whether what lies there is locked. What lies in neither tower never is.

        >>> LockConfig(image=2).holds(LayerLocation("image", depth=2, num_layers=12))
        True
        """
        locked = None if place is None else self.of(place.tower)
        if place is None or locked is None:
            return False
        return locked == "all" or place.depth <= locked


def apply_lock(model: CLIP, lock: LockConfig) -> None:
    """Ask no gradient for what is locked; called before the optimizers are built.

    Raises:
        ConfigError: a tower has fewer blocks or stages than shall be locked.
    """
    _check_numbers(lock, model.config)
    for name, parameter in model.named_parameters():
        if lock.holds(locate_parameter(name, model.config)):
            parameter.requires_grad_(False)


def set_training_mode(model: CLIP, lock: LockConfig) -> None:
    """`model.train()`, but locked batch norms use and keep their statistics."""
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and lock.holds(locate_parameter(name, model.config)):
            module.eval()


def check_lock(lock: LockConfig, optimizer: OptimizerConfig) -> None:
    """Refuse settings of the optimizer that a lock would leave without effect.

    Raises:
        ConfigError: a weight decay is given for a tower that is wholly locked.
    """
    for tower, locked, decay in (
        ("image", lock.image, optimizer.image_weight_decay),
        ("text", lock.text, optimizer.text_weight_decay),
    ):
        if locked == "all" and decay is not None:
            raise ConfigError(
                f"optimizer.{tower}_weight_decay is {decay}, but lock.{tower} is all: nothing of that tower decays; drop one"
            )


def _check_numbers(lock: LockConfig, config: CLIPConfig) -> None:
    towers: tuple[Tower, Tower] = ("image", "text")
    for tower in towers:
        locked, num_layers = lock.of(tower), num_layers_of(tower, config)
        if isinstance(locked, int) and locked > num_layers:
            layers = "stages" if tower == "image" and isinstance(config.image, STAGED) else "blocks"
            raise ConfigError(f"lock.{tower} is {locked}, but the {tower} tower has {num_layers} {layers}")
