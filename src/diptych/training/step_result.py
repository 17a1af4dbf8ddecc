"""Metrics of training steps, which stay on the device until they are reported."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float32
from torch import Tensor

_NAMES = ("loss", "image_to_text", "text_to_image", "logit_scale", "grad_norm", "teacher_loss")


@dataclass(frozen=True, eq=False)
class StepResult:
    """Metrics of one training step, computed before the weights were updated.

    The values are on the device of the model. Reading the first of them waits until the device has completed the step;
    `ResultCopy` reads those of several steps without waiting.

    >>> result = StepResult(torch.tensor([2.5, 0.25, 0.5, 14.0, 1.0]))
    >>> result.loss, result.logit_scale, result.skipped, result.teacher_loss
    (2.5, 14.0, False, None)
    """

    values: Float32[Tensor, " M"]
    """The metrics in a fixed order; the teacher's loss is last, if there is one."""

    @classmethod
    def of(cls, *values: Tensor | None) -> "StepResult":
        """The result with these scalars, in the order of the properties, on their device."""
        return cls(torch.stack([value.detach().float() for value in values if value is not None]))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """All metrics by name."""
        return dict(zip(_NAMES, self.values.tolist(), strict=False))

    @property
    def loss(self) -> float:
        """Contrastive loss, without the distillation loss."""
        return self.metrics["loss"]

    @property
    def image_to_text(self) -> float:
        """Share of the batch's images whose most similar text is a positive, within [0, 1]."""
        return self.metrics["image_to_text"]

    @property
    def text_to_image(self) -> float:
        """Share of the batch's texts whose most similar image is a positive, within [0, 1]."""
        return self.metrics["text_to_image"]

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities."""
        return self.metrics["logit_scale"]

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping."""
        return self.metrics["grad_norm"]

    @property
    def teacher_loss(self) -> float | None:
        """Distillation loss; None without a teacher."""
        return self.metrics.get("teacher_loss")

    @property
    def skipped(self) -> bool:
        """Whether the update was skipped, because the loss or a gradient was not finite."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))


class ResultCopy:
    """A copy of the metrics of several steps to the host, which runs while the device computes the next step.

    Args:
        results: at least one result, all with the same metrics. The copy starts at once.
    """

    def __init__(self, results: Sequence[StepResult]) -> None:
        self._values = torch.stack([result.values for result in results])
        self._event: torch.cuda.Event | None = None
        if self._values.device.type == "cuda":
            host = torch.empty(self._values.shape, pin_memory=True)
            self._values = host.copy_(self._values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[StepResult]:
        """The results with their values on the host, in order. Waits until the last of the steps is complete."""
        if self._event is not None:
            self._event.synchronize()
        return [StepResult(values) for values in self._values.cpu()]
