"""One optimizer step: forward, backward, gradient clipping, update. Shapes: B images, U texts, E embedding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from diptych.core.precision import Precision
from diptych.core.randomness import stable_hash
from diptych.data.batches.batch import Batch
from diptych.data.batches.groups import positive_group_ids
from diptych.device.hardware import reads_values
from diptych.device.timer import Stopwatch
from diptych.images.tensors import normalize, shrink
from diptych.losses.contrastive import batch_accuracy
from diptych.losses.distillation import tiled_distillation_loss
from diptych.models.clip import CLIP, CLIPOutput
from diptych.models.config import TransformersConfig
from diptych.models.packing import PackedTexts, num_parts, pack_texts, packing_spec
from diptych.training.distillation import Teacher
from diptych.training.loss import LossConfig
from diptych.training.optim.base import Share, skip_update_if
from diptych.training.optim.ema import WeightAverage
from diptych.training.parallel.tensors import clip_grad_norm
from diptych.training.parallel.wrap import Replicas
from diptych.training.precision import autocast, gradient_scaler, share_overflow
from diptych.training.step_result import StepResult

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Texts: TypeAlias = tuple[PackedTexts] | tuple[Tensor] | tuple[Tensor, Tensor]
"""The arguments of the text tower."""


@runtime_checkable
class PartRunner(Protocol):
    """Runs the parts of a batch that fits into memory, one after another or in parallel."""

    num: int
    """Number of parts per batch. If it is above 1, the towers must not use random numbers."""

    def map(self, work: Callable[[_In], _Out], given: Sequence[_In]) -> list[_Out]:
        """The results of `work` for each part, in order."""


class _SequentialRunner:
    num = 1

    def map(self, work: Callable[[_In], _Out], given: Sequence[_In]) -> list[_Out]:
        return [work(part) for part in given]


@dataclass(frozen=True)
class _Part:
    """Images and texts that are encoded in one forward pass."""

    pixels: Tensor
    texts: _Texts
    """Packed texts, or token ids and lengths."""
    seed: int


class TrainingStep:
    """A callable that trains a model on one batch: forward, backward, gradient clipping, update, weight average.

    With `micro_batch`, a batch is encoded in parts (gradient caching, Gao et al. 2021). The first pass computes all embeddings
    without a graph, the loss yields the gradients of the embeddings, and a second pass backpropagates them part by part. The
    resulting gradients are those of the whole batch. Both passes use the same random numbers.

    With several ranks, each rank encodes its own rows, and the loss is computed over the rows of all ranks. Because parameter
    gradients are averaged over ranks, the loss is multiplied by `ranks.size` before the backward pass.

    A step whose loss or gradient is not finite does not change weights, optimizer state or averaged weights. On a GPU, the
    device itself skips the update, so that the host does not wait for the values.

    Args:
        model: the model to train, on its device.
        optimizers: optimizers whose groups have a key `lr_factor` (see `build_optimizers`).
        loss: the contrastive loss; the loss of the paper by default.
        max_grad_norm: gradients with a larger norm are scaled down to this norm; None disables clipping.
        micro_batch: number of pairs that are encoded at once; None encodes the whole batch at once.
        precision: dtype of matrix products.
        average: weight average to update after each step.
        replicas: how to call the model if several ranks train it.
        teacher: teacher model for distillation.
        teacher_weight: factor of the distillation loss.
        runner: runs the parts of a batch that is encoded at once; by default there is one part.
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
        self._parameters = tuple(model.parameters())
        self.scaler = gradient_scaler(precision, self.device)
        self.stopwatch = Stopwatch(self.device)
        self.runner: PartRunner = runner or _SequentialRunner()

    def __call__(self, batch: Batch, *, lr: float, seed: int, small_px: int | None = None) -> StepResult:
        """Train on a batch.

        Args:
            batch: images and texts; with several ranks, the rows of this rank.
            lr: learning rate; each parameter group multiplies it by its `lr_factor`.
            seed: seed for the random numbers of the towers.
            small_px: image side to which the pixels are resized; None keeps their size.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        is_joint = self.ranks.size > 1
        groups = (
            positive_group_ids(batch.positive_keys.to(self.device), self.ranks) if is_joint else batch.positive_groups
        )
        groups = groups.to(self.device)
        emb, loss, teacher_loss = self._backward(batch, groups, self._parts(batch, seed, small_px))
        with self.stopwatch.time("optimizer"):
            grad_norm = self._clip()
            # A distillation loss that is not finite makes the gradient norm not finite.
            self._update_weights(lr, is_finite=torch.isfinite(loss) & torch.isfinite(grad_norm))
        self.stopwatch.flush()
        image_to_text, text_to_image = batch_accuracy(emb.image_emb, emb.text_emb, groups, ranks=self.ranks)
        self.stopwatch.step_ends()
        return StepResult.of(loss, image_to_text, text_to_image, emb.logit_scale, grad_norm, teacher_loss)

    def _backward(self, batch: Batch, groups: Tensor, parts: list[_Part]) -> tuple[CLIPOutput, Tensor, Tensor | None]:
        """Compute the gradients of all parameters. Returns the embeddings, the loss, and the distillation loss."""
        text_of_row = batch.text_of_row.to(self.device)
        with self.stopwatch.time("forward"):
            fits = len(batch.pixels) <= (self.micro_batch or len(batch.pixels))
            outputs = self._first_pass(parts, keeps_graph=fits)
            leaves = [output.detach().requires_grad_() for output in _concatenated(outputs)]
            image_emb, text_emb, logit_scale, *bias = leaves  # (B, E), (U, E), (), and () if the model has a bias.
            text_emb = text_emb[text_of_row]  # (U, E) -> (B, E)
            loss = self.loss(image_emb, text_emb, logit_scale, bias[0] if bias else None, groups, ranks=self.ranks)
            teacher_loss = self._teacher_loss(batch, image_emb, text_emb, logit_scale)
            total = loss if teacher_loss is None else loss + self.teacher_weight * teacher_loss
        with self.stopwatch.time("backward"):
            grads = torch.autograd.grad(total * self.ranks.size, leaves, allow_unused=True, materialize_grads=True)
            self._second_pass(parts, outputs, grads, has_graph=fits)
            self.replicas.average_unsharded()
        emb = CLIPOutput(image_emb.detach(), text_emb.detach(), logit_scale.detach(), None)
        return emb, loss.detach(), None if teacher_loss is None else teacher_loss.detach()

    def _teacher_loss(self, batch: Batch, image_emb: Tensor, text_emb: Tensor, logit_scale: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        assert batch.for_teacher is not None
        at_once = self.micro_batch or len(image_emb)
        images, texts, scale = self.teacher.encode(batch.for_teacher, at_once=at_once)
        texts = texts[batch.text_of_row.to(self.device)]  # (U, E) -> (B, E), where E is the teacher's.
        return tiled_distillation_loss(image_emb, text_emb, logit_scale, images, texts, scale, ranks=self.ranks)

    def _parts(self, batch: Batch, seed: int, small_px: int | None) -> list[_Part]:
        images = batch.pixels if small_px is None else shrink(batch.pixels, small_px, config=self.model.config.pixels)
        num = num_parts(len(batch.pixels), self.micro_batch)
        if num == 1:
            num = min(self.runner.num, len(batch.pixels))
        pieces = zip(images.tensor_split(num), self._texts(batch, num), strict=True)
        return [
            _Part(pixels.to(self.device, non_blocking=True), texts, stable_hash(seed, number))
            for number, (pixels, texts) in enumerate(pieces, start=num * self.ranks.rank)
        ]

    def _texts(self, batch: Batch, num: int) -> Sequence[_Texts]:
        """The texts of `num` parts of a batch, on the device."""
        spec = packing_spec(self.model.config.text, self.device, micro_batch=self.micro_batch)
        padded = zip(batch.ids.tensor_split(num), batch.lengths.tensor_split(num), strict=True)
        if spec is None:
            on_device = [(ids.to(self.device, non_blocking=True), lengths) for ids, lengths in padded]
            if reads_values(self.device):
                return on_device
            if isinstance(self.model.config.text, TransformersConfig):
                return [(ids, lengths.to(self.device, non_blocking=True)) for ids, lengths in on_device]
            # SigLIP's layout needs no lengths. DDP would copy them to the GPU and wait.
            return [(ids,) for ids, _ in on_device]
        packed = batch.packed
        if len(packed) != num:  # The batch was not made by the data workers of this run.
            limit = spec.context_length
            packed = tuple(pack_texts(ids.cpu(), lengths.cpu(), context_length=limit) for ids, lengths in padded)
        return [(part.to(self.device, non_blocking=True),) for part in packed]

    def _forward(self, part: _Part) -> CLIPOutput:
        if self.runner.num == 1:
            torch.manual_seed(part.seed)
        with autocast(self.precision, self.device):
            pixels = normalize(part.pixels, self.model.config.pixels)
            output: CLIPOutput = self.replicas.forward(pixels, *part.texts)
        return output

    def _first_pass(self, parts: list[_Part], *, keeps_graph: bool) -> list[CLIPOutput]:
        """The outputs of all parts, with an autograd graph only if `keeps_graph`."""
        if keeps_graph:
            return self.runner.map(self._forward, parts)
        with torch.no_grad(), _fixed_running_stats(self.model):
            return [self._forward(part) for part in parts]

    def _second_pass(
        self, parts: list[_Part], outputs: list[CLIPOutput], grads: Sequence[Tensor], *, has_graph: bool
    ) -> None:
        """Backpropagate the gradients of the embeddings, logit scale and bias into the parameters, part by part."""
        image_grad, text_grad, *scalar_grads = self.scaler.scale(grads)
        images = image_grad.split([len(output.image_emb) for output in outputs])
        texts = text_grad.split([len(output.text_emb) for output in outputs])

        def backward(number: int) -> None:
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.replicas.no_sync():
                output = outputs[number] if has_graph else self._forward(parts[number])
                # Logit scale and bias are shared by all parts; their gradients count once.
                scalars = scalar_grads if is_last else [torch.zeros_like(grad) for grad in scalar_grads]
                pairs = zip(_tensors(output), (images[number], texts[number], *scalars), strict=True)
                with_graph = [(tensor, grad) for tensor, grad in pairs if tensor.requires_grad]  # Not of frozen towers.
                torch.autograd.backward([tensor for tensor, _ in with_graph], [grad for _, grad in with_graph])

        runner = self.runner if has_graph else _SequentialRunner()
        runner.map(backward, range(len(parts)))

    def _clip(self) -> Tensor:
        """Clip the gradients in place. Returns their norm before clipping."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        share_overflow(self.scaler, self.optimizers)
        return clip_grad_norm(self._parameters, self.max_grad_norm or float("inf"), self.ranks)

    def _update_weights(self, lr: float, *, is_finite: Tensor) -> None:
        has_scaler = self.scaler.is_enabled()
        share: Share = is_finite.float()
        if reads_values(self.device) or self.device.type == "mps":  # Not all optimizers there have `found_inf`.
            share = 1.0 if is_finite else 0.0
            if not share and not has_scaler:
                return
        found_inf = None if has_scaler or isinstance(share, float) else 1 - share
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            with skip_update_if(optimizer, found_inf):
                self.scaler.step(optimizer)  # Skips the update if an fp16 gradient is infinite or NaN.
        self.scaler.update()
        self.model.clamp_temperature()
        if self.average is not None:
            self.average.update(self.model, share=share)


def _tensors(output: CLIPOutput) -> list[Tensor]:
    """The tensors of an output in order; the logit bias, if the model has one, comes last."""
    return [tensor for tensor in output if tensor is not None]


def _concatenated(outputs: list[CLIPOutput]) -> list[Tensor]:
    """Image embeddings (B, E) and text embeddings (U, E) of all parts, the logit scale, and the logit bias if there is one."""
    if len(outputs) == 1:
        return _tensors(outputs[0])
    image_emb = torch.cat([output.image_emb for output in outputs])
    text_emb = torch.cat([output.text_emb for output in outputs])
    return [image_emb, text_emb, *_tensors(outputs[0])[2:]]


@contextmanager
def _fixed_running_stats(model: nn.Module) -> Iterator[None]:
    """Within the block, batch norms do not update their running statistics. The second pass updates them."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = not norm.training  # In evaluation mode, the running statistics are needed.
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
