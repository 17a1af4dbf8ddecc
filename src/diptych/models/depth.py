"""Tower and depth of a model's parameters.

A layer is a transformer block, or a stage of a ResNet or a convolutional network. Layer i (from 0) has depth i + 1. Depth 0 is
everything before the first layer: stem, class token, position and token embeddings. Pooling, norm and projection follow the
last layer; their depth is the number of layers plus 1. The temperature and the logit bias belong to neither tower.
"""

from typing import Literal, NamedTuple, TypeAlias

from diptych.models.config import STAGED, CLIPConfig

Tower: TypeAlias = Literal["image", "text"]

_TOWERS: dict[str, Tower] = {"image_tower": "image", "text_tower": "text"}

_PARTS = {
    **dict.fromkeys(("stem", "class_emb", "token_emb", "position_emb", "norm_pre"), "before"),
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
    if tower == "text":
        return config.text.layers
    return len(config.image.layers) if isinstance(config.image, STAGED) else config.image.layers
