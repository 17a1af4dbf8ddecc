"""The image tower as a timm model. Shapes: B batch, H W pixels, F features, E embedding."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.core.errors import ConfigError, unknown_name
from diptych.images.transforms import height_width, size_name
from diptych.models.projection import projection_of
from diptych.models.third_party import import_timm
from diptych.models.third_party_buffers import fill_buffers, limited_parameters
from diptych.models.third_party_config import TimmConfig

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class TimmTower(nn.Module):
    """A timm image model without its classifier, and a projection."""

    def __init__(self, config: TimmConfig, embed_dim: int) -> None:
        """Build the tower with random weights.

        Raises:
            ConfigError: timm is missing, has no such model or rejects an option, or the features are not one vector per image.
        """
        super().__init__()
        self.config = config
        self.embed_dim = embed_dim
        self.model: nn.Module = timm_model(config, embed_dim)
        num_features = timm_facts(config, embed_dim).num_features
        self.projection = projection_of(config, num_features, embed_dim, where="model.image")
        self.gradient_checkpointing = False

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Return embeddings of normalized pixels, not scaled to unit length."""
        features: Tensor = self.model(pixels.to(next(self.model.parameters()).dtype))
        return self.projection(features)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Enable or disable recomputation of activations in the backward pass.

        Raises:
            ConfigError: the model has batch norms, whose running statistics would include every batch twice, or timm does not
                support it.
        """
        if enabled and any(isinstance(module, BATCH_NORMS) for module in self.model.modules()):
            raise ConfigError(
                f"gradient checkpointing needs an image tower without batch norms, and {self.config.name} has batch norms"
            )
        switch = getattr(self.model, "set_grad_checkpointing", None)
        try:
            if switch is None:
                raise AssertionError
            switch(enabled)
        except AssertionError:  # timm's way to refuse.
            if enabled:
                raise ConfigError(f"timm does not support gradient checkpointing in {self.config.name}") from None
        self.gradient_checkpointing = enabled

    def fill_buffers(self) -> None:
        """Compute the buffers that weights files do not contain, for a tower that was built on the `meta` device."""
        fill_buffers(self.model, lambda: timm_model(self.config, self.embed_dim))


class TimmFacts(NamedTuple):
    """Facts about a timm model that its config does not contain."""

    num_features: int
    depths: dict[str, int]
    """Depth of each parameter, as in `depth.py`."""
    num_layers: int


@lru_cache(maxsize=16)
def timm_facts(config: TimmConfig, embed_dim: int) -> TimmFacts:
    """Return facts about a model, from an instance that is built on the `meta` device.

    Raises:
        ConfigError: see `TimmTower`.
    """
    timm = import_timm()
    with torch.device("meta"):
        model = timm_model(config, embed_dim).eval()
        pixels = torch.empty(1, 3, *height_width(config.image_px))
    shape = _shape(config, model, pixels)
    if len(shape) != 2:
        raise ConfigError(
            f"model.image: the features of {config.name} with pooling {config.pooling!r} are not one vector per image, but "
            f"{'x'.join(map(str, shape)) or 'several outputs'}; set pooling to 'avg', 'token' or 'map'"
        )
    groups: dict[str, int] = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    return TimmFacts(shape[1], *_depths(groups, [name for name, _ in model.named_parameters()]))


def _shape(config: TimmConfig, model: nn.Module, pixels: Tensor) -> tuple[int, ...]:
    try:
        with torch.no_grad():
            features = model(pixels)
    except Exception as error:  # The exception class for an unsupported size depends on the model.
        raise ConfigError(
            f"model.image: {config.name} does not support {size_name(config.image_px)} px ({_line(error)})"
        ) from None
    return tuple(features.shape) if isinstance(features, Tensor) else ()


def _depths(groups: dict[str, int], names: Iterable[str]) -> tuple[dict[str, int], int]:
    """Return depths from timm's groups. The first group is everything before the first layer; other names follow the last."""
    numbers = sorted(set(groups.values()))
    layers = {number: depth for depth, number in enumerate(numbers)}
    num_layers = max(len(numbers) - 1, 1)
    return {
        name: min(layers[groups[name]], num_layers) if name in groups else num_layers + 1 for name in names
    }, num_layers


def timm_model(config: TimmConfig, embed_dim: int) -> Any:
    """Build a timm model with random weights, without its classifier unless that is the projection.

    Raises:
        ConfigError: timm is missing, has no such model, or rejects an option.
    """
    timm = import_timm()
    num_classes = embed_dim if config.projection == "classifier" else 0
    options = model_options(config)
    try:
        with limited_parameters():
            return timm.create_model(config.name, pretrained=False, num_classes=num_classes, **options)
    except Exception as error:  # The exception class for an unsupported option depends on the model.
        raise ConfigError(f"model.image: timm cannot build {config.name} with these options ({_line(error)})") from None


def model_options(config: TimmConfig) -> dict[str, Any]:
    """Return the arguments for building the timm model of a config, without the number of classes.

    Raises:
        ConfigError: timm is missing or has no such model, or the config is not resolved.
    """
    size = height_width(config.image_px)
    if min(size) < 1:
        raise ConfigError("model.image.image_px is 0; a model is built from a resolved config (resolve_towers)")
    facts = pretrained_cfg(config.name)
    options: dict[str, Any] = dict(config.options)
    if config.pooling is not None:
        options["global_pool"] = config.pooling
    if facts.get("fixed_input_size") and tuple(facts["input_size"][1:]) != size:
        options["img_size"] = size
    return options


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return timm's facts about a model: `input_size`, `mean`, `std`, `interpolation`, `fixed_input_size` and more.

    Raises:
        ConfigError: timm is missing or has no such model; the message names similar ones.
    """
    timm = import_timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ConfigError(f"model.image.name: {unknown_name('timm model', name, timm.list_models())}")
    try:
        found = timm.models.get_pretrained_cfg(name if tag else architecture)
    except RuntimeError:  # There are no weights with this tag.
        tags = list(timm.list_models(f"{architecture}.*", pretrained=True))
        raise ConfigError(f"model.image.name: {unknown_name('timm weights', name, tags)}") from None
    return {} if found is None else dict(found.to_dict())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.160}"
