"""One optimizer step, in the open."""

from dataclasses import dataclass

import torch

from diptych.core.errors import RunError
from diptych.core.sample import Batch
from diptych.images.transforms import normalize
from diptych.losses.contrastive import batch_accuracy, clip_loss
from diptych.models.clip import CLIP


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step measured, before it moved the weights."""

    loss: float
    image_to_text: float
    """Share of the batch's images whose most similar text is theirs."""
    text_to_image: float
    """Share of the batch's texts whose most similar image is theirs."""
    logit_scale: float
    grad_norm: float


def train_step(
    model: CLIP, optimizer: torch.optim.Optimizer, batch: Batch, *, lr: float, max_grad_norm: float | None
) -> StepResult:
    """Forward, backward, clip, step, clamp the temperature.

    Raises:
        RunError: the loss or a gradient is not a finite number; the weights are left as they were.
    """
    device = model.log_logit_scale.device
    pixels = normalize(batch.pixels.to(device, non_blocking=True), model.config.pixels)
    groups = batch.groups.to(device)
    image_emb, text_emb, logit_scale, _ = model(pixels, batch.ids.to(device), batch.lengths)
    loss = clip_loss(image_emb, text_emb, logit_scale, groups)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
    if not torch.isfinite(loss) or not torch.isfinite(grad_norm):
        raise RunError(
            f"loss {loss.item():g}, gradient norm {grad_norm.item():g}: not finite. Lower --lr, or look at the "
            f"batch's samples: {', '.join(batch.keys[:3])}, ..."
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    model.clamp_temperature()
    with torch.no_grad():
        image_to_text, text_to_image = batch_accuracy(image_emb, text_emb, groups)
    return StepResult(
        loss=loss.item(),
        image_to_text=image_to_text.item(),
        text_to_image=text_to_image.item(),
        logit_scale=logit_scale.item(),
        grad_norm=grad_norm.item(),
    )
