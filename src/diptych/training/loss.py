"""What a run minimises: a loss of embeddings, chosen by a setting. Shapes: B batch, E embedding."""

from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.losses.sigmoid import tiled_sigmoid_loss
from diptych.losses.tiled import tiled_clip_loss


@settings
class LossConfig:
    """Which loss. Neither holds the matrix of logits, unless it is small and on a GPU."""

    name: Literal["clip", "sigmoid"] = "clip"
    """`clip` is the paper's symmetric cross-entropy; `sigmoid` is SigLIP's, for a model with `init_logit_bias`."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over the batch, within [0, 1); of the loss `clip` alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing is {self.label_smoothing}; it must lie within [0, 1)")
        if self.label_smoothing and self.name == "sigmoid":
            raise ConfigError("loss.label_smoothing belongs to the loss 'clip'; the sigmoid loss has none")

    def __call__(
        self,
        image_emb: Float[Tensor, "B E"],
        text_emb: Float[Tensor, "B E"],
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None,
        groups: Int64[Tensor, " B"],
        *,
        across_ranks: bool = False,
    ) -> Float[Tensor, ""]:
        """The loss of a batch of unit embeddings; with `across_ranks`, of the joint batch of all ranks."""
        if self.name == "clip":
            return tiled_clip_loss(
                image_emb,
                text_emb,
                logit_scale,
                groups,
                label_smoothing=self.label_smoothing,
                across_ranks=across_ranks,
            )
        assert logit_bias is not None
        return tiled_sigmoid_loss(image_emb, text_emb, logit_scale, logit_bias, groups, across_ranks=across_ranks)
