"""Tower and depth of a model's parameters.

A layer is a transformer block, or a stage of a ResNet or a convolutional network. Layer i (from 0) has depth i + 1. Depth 0 is
everything before the first layer: stem, class token, position and token embeddings. Pooling, norm and projection follow the
last layer; their depth is the number of layers plus 1. The layers of a timm model are the groups that timm uses for layer-wise
learning rates; the layers of a transformers encoder are its blocks. Temperature and logit bias belong to neither tower.
"""

from typing import Literal, NamedTuple, TypeAlias

from diptych.models.config import STAGED, CLIPConfig, TimmConfig, TransformersConfig
from diptych.models.timm_tower import timm_facts
from diptych.models.transformers_tower import text_facts

Tower: TypeAlias = Literal["image", "text"]

_TOWERS: dict[str, Tower] = {"image_tower": "image", "text_tower": "text"}

_PARTS = {
    **dict.fromkeys(("stem", "class_emb", "token_emb", "position_emb", "appended_emb", "norm_pre"), "before"),
    **dict.fromkeys(("conv_1", "norm_1", "conv_2", "norm_2", "conv_3", "norm_3"), "before"),  # The stem of a ResNet.
    **dict.fromkeys(("transformer", "stages"), "layers"),
    **dict.fromkeys(("norm_post", "projection", "pool"), "after"),
}
"""Whether each attribute of a tower comes before, in or after its layers."""


class LayerLocation(NamedTuple):
    """Tower and depth of a parameter."""

    tower: Tower
    depth: int
    """0 before the first layer, i + 1 in layer i, `num_layers` + 1 after the last."""
    num_layers: int
    """Number of layers of the tower."""

    @property
    def is_in_layer(self) -> bool:
        """Whether the parameter belongs to a block or a stage."""
        return 1 <= self.depth <= self.num_layers

    @property
    def from_output(self) -> int:
        """Distance to the tower's output in layers: 0 after the last layer, 1 in the last layer."""
        return self.num_layers + 1 - self.depth


def locate_parameter(name: str, config: CLIPConfig) -> LayerLocation | None:
    """The location of a parameter, a buffer or a module that has parameters; None if it belongs to neither tower.

    Args:
        name: its name in the model, as in `CLIP.state_dict`.
        config: the config of the model.

    >>> locate_parameter("text_tower.transformer.blocks.3.mlp.0.weight", CLIPConfig())
    LayerLocation(tower='text', depth=4, num_layers=12)
    >>> locate_parameter("image_tower.projection.weight", CLIPConfig()).from_output
    0
    >>> locate_parameter("log_logit_scale", CLIPConfig()) is None
    True
    """
    head, *path = name.split(".")
    if head not in _TOWERS:
        return None
    tower = _TOWERS[head]
    num_layers = num_layers_of(tower, config)
    depths = _third_party_depths(tower, config)
    if depths is not None:
        return LayerLocation(tower, _third_party_depth(path, depths, num_layers), num_layers)
    match _PARTS[path[0]]:
        case "before":
            depth = 0
        case "layers":
            depth = 1 + int(next(part for part in path if part.isdigit()))
        case "after":
            depth = num_layers + 1
    return LayerLocation(tower, depth, num_layers)


def num_layers_of(tower: Tower, config: CLIPConfig) -> int:
    """The number of layers of a tower: blocks of a transformer, or stages of a ResNet or a convolutional network.

    >>> from diptych.models.config import ResNetConfig
    >>> num_layers_of("image", CLIPConfig(image=ResNetConfig()))
    4
    """
    image, text = config.image, config.text
    if tower == "text":
        return text_facts(text).num_layers if isinstance(text, TransformersConfig) else text.layers
    if isinstance(image, TimmConfig):
        return timm_facts(image, config.embed_dim).num_layers
    return len(image.layers) if isinstance(image, STAGED) else image.layers


def _third_party_depths(tower: Tower, config: CLIPConfig) -> dict[str, int] | None:
    """Return the depth of each parameter of a timm or transformers tower by name; None for Diptych's own towers."""
    if tower == "image":
        return timm_facts(config.image, config.embed_dim).depths if isinstance(config.image, TimmConfig) else None
    return text_facts(config.text).depths if isinstance(config.text, TransformersConfig) else None


def _third_party_depth(path: list[str], depths: dict[str, int], num_layers: int) -> int:
    """Return the depth of a parameter, buffer or module in a tower. A buffer has the depth of its module's parameters."""
    if path[:1] != ["model"]:
        return num_layers + 1  # The projection.
    name = ".".join(path[1:])
    for prefix in (name, name.rpartition(".")[0]):
        found = [depth for known, depth in depths.items() if known == prefix or known.startswith(f"{prefix}.")]
        if found:
            return max(found) if name == prefix else min(found)
    return num_layers + 1
