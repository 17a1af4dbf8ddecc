"""CLIP: an image tower and a text tower, hinged at one embedding space (Radford et al. 2021, fig. 3).

Shapes: B batch, T tokens, H W pixels, E embedding.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from diptych.models.config import CLIPConfig
from diptych.models.text_transformer import TextTransformer
from diptych.models.vision_transformer import VisionTransformer

MAX_LOGIT_SCALE = 100.0


class CLIP(nn.Module):
    """Two towers and a learned temperature. Knows no device, no precision and no other rank."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = VisionTransformer(config.image, config.embed_dim)
        self.text_tower = TextTransformer(config.text, config.embed_dim)
        self.log_logit_scale = nn.Parameter(torch.tensor(-math.log(config.init_temperature)))

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """What cosines are multiplied by: the inverse temperature."""
        return self.log_logit_scale.exp()

    def encode_image(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Unit embeddings of normalised pixels."""
        return functional.normalize(self.image_tower(pixels), dim=-1)

    def encode_text(self, ids: Int64[Tensor, "B T"], lengths: Int64[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """Unit embeddings of texts, padded after their `lengths`."""
        return functional.normalize(self.text_tower(ids, lengths), dim=-1)

    def forward(
        self, pixels: Float[Tensor, "B 3 H W"], ids: Int64[Tensor, "B T"], lengths: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"], Float[Tensor, ""]]:
        """Image embeddings, text embeddings, logit scale: all that a loss needs."""
        return self.encode_image(pixels), self.encode_text(ids, lengths), self.logit_scale

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the logit scale within [1, 100]; called after each step (Radford et al. 2021, sec. 2.5)."""
        self.log_logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))
