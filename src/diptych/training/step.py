"""One optimizer step, in the open. Shapes: B batch, E embedding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from diptych.core.randomness import stable_hash
from diptych.core.timer import Stopwatch
from diptych.data.batches.batch import Batch
from diptych.data.batches.groups import positive_group_ids
from diptych.images.tensors import normalize, shrink
from diptych.losses.contrastive import batch_accuracy
from diptych.losses.distillation import tiled_distillation_loss
from diptych.models.clip import CLIP, CLIPOutput
from diptych.training.distillation import Teacher
from diptych.training.loss import LossConfig
from diptych.training.optim.ema import WeightAverage
from diptych.training.parallel.tensors import clip_grad_norm
from diptych.training.parallel.wrap import Replicas
from diptych.training.precision import Precision, autocast, gradient_scaler

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step measured, before it moved the weights."""

    loss: float
    """Of the pairs; what a teacher adds is apart."""
    image_to_text: float
    """Share of the batch's images whose most similar text is theirs."""
    text_to_image: float
    """Share of the batch's texts whose most similar image is theirs."""
    logit_scale: float
    grad_norm: float
    skipped: bool
    """The loss or a gradient was not finite, so the weights were left as they were."""
    teacher_loss: float | None = None
    """How far the view of the batch is from the teacher's; None without one."""


@runtime_checkable
class PartRunner(Protocol):
    """Runs the parts of a batch that fits into memory, one after another or at the same time."""

    num: int
    """Parts that such a batch is cut into. If it is above 1, the towers must not draw random numbers."""

    def map(self, work: Callable[[_Given], _Made], given: Sequence[_Given]) -> list[_Made]:
        """The results of `work` for each part, in order."""


class _InTurn:
    num = 1

    def map(self, work: Callable[[_Given], _Made], given: Sequence[_Given]) -> list[_Made]:
        return [work(one) for one in given]


@dataclass(frozen=True)
class _Part:
    """The pictures and texts that go through the towers at once."""

    pixels: Tensor
    ids: Tensor
    lengths: Tensor
    seed: int


class TrainingStep:
    """Forward, backward, clip, step, clamp the temperature, average the weights.

    A batch whose activations do not fit goes through the towers in parts (gradient caching, Gao et al. 2021): the first pass
    gives all embeddings, the loss gives their gradients, the second pass carries these to the weights. The gradients are those
    of the whole batch. What towers draw at random is drawn again alike. A batch that fits is cut as `runner` says.

    Ranks that train together each put their rows through the towers; the loss is that of all rows, and what a parameter's
    gradient gets is the mean over ranks. So each carries its part `ranks.size` times to the weights.
    """

    def __init__(
        self,
        model: CLIP,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        loss: LossConfig | None = None,
        max_grad_norm: float | None = 1.0,
        micro_batch: int | None = None,
        precision: Precision = "fp32",
        average: WeightAverage | None = None,
        replicas: Replicas | None = None,
        teacher: Teacher | None = None,
        teacher_weight: float = 1.0,
        runner: PartRunner | None = None,
    ) -> None:
        self.model = model
        self.replicas = replicas or Replicas(model)
        self.ranks = self.replicas.ranks
        self.optimizers = tuple(optimizers)
        self.loss = loss or LossConfig()
        self.max_grad_norm = max_grad_norm
        self.micro_batch = micro_batch
        self.precision = precision
        self.average = average
        self.teacher = teacher
        self.teacher_weight = teacher_weight
        self.device = model.log_logit_scale.device
        self.scaler = gradient_scaler(precision, self.device)
        self.stopwatch = Stopwatch(self.device)
        self.runner: PartRunner = runner or _InTurn()

    def __call__(self, batch: Batch, *, lr: float, seed: int, small_px: int | None = None) -> StepResult:
        """Train on a batch.

        Args:
            batch: what to learn from.
            lr: learning rate; each group of weights takes its own factor of it.
            seed: of all that the towers draw in this step.
            small_px: side to which the pictures are shrunk; None leaves them at the model's.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        is_joint = self.ranks.size > 1
        groups = positive_group_ids(batch.positive_keys, self.ranks) if is_joint else batch.positive_groups
        emb, loss, teacher_loss = self._backward(batch, groups.to(self.device), self._parts(batch, seed, small_px))
        with self.stopwatch.time("optimizer"):
            grad_norm = self._clip()
            is_finite = bool(torch.isfinite(loss) & torch.isfinite(grad_norm))  # The norm sees the teacher's loss, too.
            self._move(lr, is_finite=is_finite)
        self.stopwatch.flush()
        image_to_text, text_to_image = batch_accuracy(
            emb.image_emb, emb.text_emb, groups.to(self.device), across_ranks=is_joint
        )
        return StepResult(
            loss=loss.item(),
            image_to_text=image_to_text.item(),
            text_to_image=text_to_image.item(),
            logit_scale=emb.logit_scale.item(),
            grad_norm=grad_norm.item(),
            skipped=not is_finite,
            teacher_loss=None if teacher_loss is None else teacher_loss.item(),
        )

    def _backward(self, batch: Batch, groups: Tensor, parts: list[_Part]) -> tuple[CLIPOutput, Tensor, Tensor | None]:
        """Put the losses' gradients on the weights; what they were computed from, the loss, and the teacher's."""
        text_of_row = batch.text_of_row.to(self.device)
        with self.stopwatch.time("forward"):
            fits = len(batch.pixels) <= (self.micro_batch or len(batch.pixels))
            outputs = self._first_pass(parts, keeps_graph=fits)
            leaves = [output.detach().requires_grad_() for output in _joined(outputs)]
            image_emb, text_emb, logit_scale, *bias = leaves
            text_emb = text_emb[text_of_row]
            loss = self.loss(
                image_emb, text_emb, logit_scale, bias[0] if bias else None, groups, across_ranks=self.ranks.size > 1
            )
            taught = self._teacher_loss(batch, image_emb, text_emb, logit_scale)
            total = loss if taught is None else loss + self.teacher_weight * taught
        with self.stopwatch.time("backward"):
            grads = torch.autograd.grad(total * self.ranks.size, leaves, allow_unused=True, materialize_grads=True)
            self._second_pass(parts, outputs, grads, has_graph=fits)
            self.replicas.average_unsharded()
        emb = CLIPOutput(image_emb.detach(), text_emb.detach(), logit_scale.detach(), None)
        return emb, loss.detach(), None if taught is None else taught.detach()

    def _teacher_loss(self, batch: Batch, image_emb: Tensor, text_emb: Tensor, logit_scale: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        assert batch.for_teacher is not None
        at_once = self.micro_batch or len(image_emb)
        images, texts, scale = self.teacher.encode(batch.for_teacher, at_once=at_once)
        texts = texts[batch.text_of_row.to(self.device)]
        return tiled_distillation_loss(
            image_emb, text_emb, logit_scale, images, texts, scale, across_ranks=self.ranks.size > 1
        )

    def _parts(self, batch: Batch, seed: int, small_px: int | None) -> list[_Part]:
        images = batch.pixels if small_px is None else shrink(batch.pixels, small_px, config=self.model.config.pixels)
        num = -(-len(batch.pixels) // (self.micro_batch or len(batch.pixels)))
        if num == 1:
            num = min(self.runner.num, len(batch.pixels))
        pieces = zip(*(whole.tensor_split(num) for whole in (images, batch.ids, batch.lengths)), strict=True)
        return [
            _Part(pixels.to(self.device, non_blocking=True), ids.to(self.device), lengths, stable_hash(seed, number))
            for number, (pixels, ids, lengths) in enumerate(pieces, start=num * self.ranks.rank)
        ]

    def _forward(self, part: _Part) -> CLIPOutput:
        if self.runner.num == 1:
            torch.manual_seed(part.seed)
        with autocast(self.precision, self.device):
            pixels = normalize(part.pixels, self.model.config.pixels)
            output: CLIPOutput = self.replicas.forward(pixels, part.ids, part.lengths)
        return output

    def _first_pass(self, parts: list[_Part], *, keeps_graph: bool) -> list[CLIPOutput]:
        """Without a graph, values alone."""
        if keeps_graph:
            return self.runner.map(self._forward, parts)
        with torch.no_grad(), _statistics_untouched(self.model):
            return [self._forward(part) for part in parts]

    def _second_pass(
        self, parts: list[_Part], outputs: list[CLIPOutput], grads: Sequence[Tensor], *, has_graph: bool
    ) -> None:
        image_grad, text_grad, *rest = self.scaler.scale(grads)
        images = image_grad.split([len(output.image_emb) for output in outputs])
        texts = text_grad.split([len(output.text_emb) for output in outputs])

        def carry(number: int) -> None:
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.replicas.no_sync():
                output = outputs[number] if has_graph else self._forward(parts[number])
                shared = rest if is_last else [torch.zeros_like(grad) for grad in rest]
                pairs = zip(_tensors(output), (images[number], texts[number], *shared), strict=True)
                live = [
                    (tensor, grad) for tensor, grad in pairs if tensor.requires_grad
                ]  # A locked tower has no graph.
                torch.autograd.backward([tensor for tensor, _ in live], [grad for _, grad in live])

        runner = self.runner if has_graph else _InTurn()
        runner.map(carry, range(len(parts)))

    def _clip(self) -> Tensor:
        """The length of the gradient before it was clipped."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        return clip_grad_norm(self.model.parameters(), self.max_grad_norm or float("inf"), self.ranks)

    def _move(self, lr: float, *, is_finite: bool) -> None:
        if not is_finite and not self.scaler.is_enabled():
            return
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            self.scaler.step(optimizer)  # Leaves the weights as they are where fp16 ran over.
        self.scaler.update()
        if is_finite:
            self.model.clamp_temperature()
            if self.average is not None:
                self.average.update(self.model)


def _tensors(output: CLIPOutput) -> list[Tensor]:
    bias = [] if output.logit_bias is None else [output.logit_bias]
    return [output.image_emb, output.text_emb, output.logit_scale, *bias]


def _joined(outputs: list[CLIPOutput]) -> list[Tensor]:
    """All images, all texts, and the scale and bias that every part shares."""
    if len(outputs) == 1:
        return _tensors(outputs[0])
    image_emb = torch.cat([output.image_emb for output in outputs])
    text_emb = torch.cat([output.text_emb for output in outputs])
    return [image_emb, text_emb, *_tensors(outputs[0])[2:]]


@contextmanager
def _statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the part they see, and do not count it: the second pass does."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = not norm.training  # In evaluation it reads its statistics, and counts nothing.
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
