"""Where in a model a weight lies: in which tower, and how deep.

Depth 0 is what comes before the first layer: stem, class token, positions and embeddings of tokens. A layer is a transformer's
block, or a stage of a ResNet or a convolutional network; the first has depth 1. What follows the last layer, pooling, norm and
projection, lies one deeper still. The temperature and the logit bias lie in neither tower.
"""

from typing import Literal, NamedTuple, TypeAlias

from diptych.models.config import STAGED, CLIPConfig

Tower: TypeAlias = Literal["image", "text"]

_TOWERS: dict[str, Tower] = {"image_tower": "image", "text_tower": "text"}

_PARTS: dict[str, Literal["before", "layers", "after"]] = {
    # Transformers of either tower.
    "stem": "before",
    "class_emb": "before",
    "token_emb": "before",
    "position_emb": "before",
    "norm_pre": "before",
    "transformer": "layers",
    "norm_post": "after",
    "projection": "after",
    # ResNets and convolutional networks; the attention pooling is also a vision transformer's.
    "conv_1": "before",
    "norm_1": "before",
    "conv_2": "before",
    "norm_2": "before",
    "conv_3": "before",
    "norm_3": "before",
    "stages": "layers",
    "pool": "after",
}
"""What a tower's attributes are to it."""


class LayerLocation(NamedTuple):
    """Where a weight lies."""

    tower: Tower
    depth: int
    """0 before the first layer, i + 1 in layer i, `num_layers` + 1 after the last."""
    num_layers: int
    """Of the tower."""

    @property
    def is_in_layer(self) -> bool:
        """Whether it belongs to a block or a stage, not to what comes before or after them."""
        return 1 <= self.depth <= self.num_layers

    @property
    def from_output(self) -> int:
        """Layers between it and the tower's output: 0 for what follows the last layer, 1 for the last layer."""
        return self.num_layers + 1 - self.depth


def locate_parameter(name: str, config: CLIPConfig) -> LayerLocation | None:
    """Where the model of this config has a parameter, a buffer or a module with weights of its own; None in neither tower.

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
    """Blocks of a transformer; stages of a ResNet or a convolutional network.

    >>> from diptych.models.config import ResNetConfig
    >>> num_layers_of("image", CLIPConfig(image=ResNetConfig()))
    4
    """
    if tower == "text":
        return config.text.layers
    return len(config.image.layers) if isinstance(config.image, STAGED) else config.image.layers
