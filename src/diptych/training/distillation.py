"""Distillation from a trained teacher model. Shapes: B images, U texts, D embedding."""

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.bundle.folder import Bundle
from diptych.bundle.open_bundle import open_bundle
from diptych.core.errors import ConfigError
from diptych.core.precision import Precision
from diptych.core.settings import settings
from diptych.cpu import linear
from diptych.data.batches.batch import ModelInput
from diptych.data.batches.loader import InputSpec
from diptych.images.tensors import normalize
from diptych.training.precision import autocast


@settings
class DistillConfig:
    """Distillation settings. The teacher's softmax over each batch is a second target (see `distillation_loss`)."""

    teacher: str | None = None
    """A bundle, or any model that `diptych import` reads; None for no teacher."""
    weight: float = 1.0
    """Factor of the distillation loss, which is added to the contrastive loss."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(
                f"distill.weight is {self.weight}; it must be above 0 (to disable distillation, set distill.teacher to none)"
            )


class Teacher:
    """A frozen model that encodes each batch at its own image size and with its own tokenizer.

    Args:
        bundle: the trained model.
        device: where to run it.
        precision: dtype of its matrix products.
    """

    def __init__(self, bundle: Bundle, device: torch.device, precision: Precision) -> None:
        self.model = bundle.model.float().to(device).eval().requires_grad_(False)
        linear.optimize(self.model)
        self.precision = precision
        self.input_spec = InputSpec(
            image_px=bundle.config.image.image_px, pixels=bundle.config.pixels, tokenizer=bundle.tokenizer
        )

    @torch.no_grad()
    def encode(
        self, inputs: ModelInput, *, at_once: int
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "U D"], Float[Tensor, ""]]:
        """Unit embeddings of images and texts, computed `at_once` rows at a time, and the teacher's logit scale."""
        device = self.model.log_logit_scale.device
        with autocast(self.precision, device):
            images = [
                self.model.encode_image(normalize(part.to(device), self.model.config.pixels))
                for part in inputs.pixels.split(at_once)
            ]
            texts = [
                self.model.encode_text(ids.to(device), lengths)
                for ids, lengths in zip(inputs.ids.split(at_once), inputs.lengths.split(at_once), strict=True)
            ]
        return torch.cat(images), torch.cat(texts), self.model.logit_scale


def open_teacher(config: DistillConfig, device: torch.device, precision: Precision) -> Teacher | None:
    """Load the teacher of a run; None if the run has no teacher.

    Raises:
        BundleError: the teacher cannot be read.
    """
    return None if config.teacher is None else Teacher(open_bundle(config.teacher), device, precision)
