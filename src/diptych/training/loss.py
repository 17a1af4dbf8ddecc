"""The training loss, selected by a setting. Shapes: B batch, E embedding."""

from typing import Literal, assert_never

from jaxtyping import Float, Int64
from torch import Tensor

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.device.distributed import ALONE, Ranks, accepts_across_ranks
from diptych.losses.sigmoid import tiled_sigmoid_loss
from diptych.losses.tiled import tiled_clip_loss


@settings
class LossConfig:
    """Contrastive loss and its settings. The logits are computed in tiles, unless the matrix is small and on a GPU."""

    name: Literal["clip", "sigmoid"] = "clip"
    """`clip`: the symmetric cross-entropy of the paper. `sigmoid`: the loss of SigLIP; it requires `model.init_logit_bias`."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over the batch, within [0, 1). Only for `clip`."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing is {self.label_smoothing}; it must lie within [0, 1)")
        if self.label_smoothing and self.name == "sigmoid":
            raise ConfigError("loss.label_smoothing is only for the loss 'clip'; set it to 0 for the sigmoid loss")

    @accepts_across_ranks
    def __call__(
        self,
        image_emb: Float[Tensor, "B E"],
        text_emb: Float[Tensor, "B E"],
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None,
        groups: Int64[Tensor, " B"],
        *,
        ranks: Ranks = ALONE,
    ) -> Float[Tensor, ""]:
        """The loss of a batch of unit embeddings; with several `ranks`, of their joint batch.

        Args:
            image_emb: unit image embeddings.
            text_emb: unit text embeddings; row i belongs to image i.
            logit_scale: factor of the cosine similarities.
            logit_bias: added to the logits of the sigmoid loss, which requires it; `clip` ignores it.
            groups: positive group of each row; rows of a group are positives of each other.
            ranks: the ranks whose rows together form the batch. All of them must call the loss.
        """
        match self.name:
            case "clip":
                smoothing = self.label_smoothing
                return tiled_clip_loss(image_emb, text_emb, logit_scale, groups, label_smoothing=smoothing, ranks=ranks)
            case "sigmoid":
                assert logit_bias is not None
                return tiled_sigmoid_loss(image_emb, text_emb, logit_scale, logit_bias, groups, ranks=ranks)
            case _:
                assert_never(self.name)
