"""Project the features of timm and transformers towers to the joint embedding. Shapes: B inputs, F features, E embedding."""

from jaxtyping import Float
from torch import Tensor, nn

from diptych.core.errors import ConfigError
from diptych.models.third_party_config import TimmConfig, TransformersConfig


class MLPProjection(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, num_features: int, hidden: int, embed_dim: int, *, bias: tuple[bool, bool]) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, hidden, bias=bias[0])
        self.activation = nn.GELU()
        self.out = nn.Linear(hidden, embed_dim, bias=bias[1])
        for linear, width in ((self.hidden, num_features), (self.out, hidden)):
            _init(linear, width)

    def forward(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B E"]:
        """Return embeddings that are not scaled to unit length."""
        return self.out(self.activation(self.hidden(x)))


def projection_of(
    config: TimmConfig | TransformersConfig, num_features: int, embed_dim: int, *, where: str
) -> nn.Module:
    """Return the projection for a tower.

    Args:
        config: config of the tower.
        num_features: number of features of the tower.
        embed_dim: dimension of the embeddings.
        where: path of the tower's settings, for messages.

    Raises:
        ConfigError: the projection is `none`, and the number of features differs from the dimension of the embeddings.
    """
    match config.projection:
        case "linear":
            linear = nn.Linear(num_features, embed_dim, bias=config.projection_bias[1])
            _init(linear, num_features)
            return linear
        case "mlp":
            default = 2 * embed_dim if isinstance(config, TimmConfig) else (num_features + embed_dim) // 2
            hidden = default if config.projection_hidden is None else config.projection_hidden
            return MLPProjection(num_features, hidden, embed_dim, bias=config.projection_bias)
        case "classifier":
            return nn.Identity()
        case "none":
            if num_features != embed_dim:
                raise ConfigError(
                    f"{where}.projection is 'none', so model.embed_dim must be the {num_features} features of "
                    f"{config.name}; it is {embed_dim}"
                )
            return nn.Identity()


def _init(linear: nn.Linear, width: int) -> None:
    nn.init.normal_(linear.weight, std=width**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
