"""A model made ready to be trained: locked where it should be, with its optimizers, its average and what saves it."""

import copy
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.bundle.folder import Bundle
from diptych.core.distributed import all_ranks
from diptych.core.errors import ConfigError
from diptych.inference.embedder import Embedder
from diptych.models.clip import CLIP
from diptych.tokenizers.protocol import Tokenizer
from diptych.training.checkpoint.state import TrainingState
from diptych.training.config import TrainConfig
from diptych.training.optim.build import build_optimizers
from diptych.training.optim.ema import WeightAverage
from diptych.training.optim.freeze import apply_lock
from diptych.training.replicas import replicate
from diptych.training.shards import copy_model, is_sharded
from diptych.training.step import TrainingStep
from diptych.training.teacher import Teacher, open_teacher


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What one run moves, measures and saves."""

    model: CLIP
    step: TrainingStep
    state: TrainingState
    embedder: Embedder
    """Of the weights that are measured and kept: the model's own, or their average; whole, whatever ranks hold."""

    teacher: Teacher | None = None

    def moved(self) -> Iterator[Tensor]:
        """What steps and measurements write to, and nobody else reads."""
        shown = self.embedder.bundle.model
        tensors: list[Tensor] = [*self.model.parameters(), *([] if shown is self.model else shown.parameters())]
        tensors += [
            value
            for optimizer in self.state.optimizers
            for state in optimizer.state.values()
            for value in state.values()
        ]
        if self.step.average is not None:
            tensors += self.step.average.weights.values()
        return (tensor for tensor in tensors if not is_sharded(tensor))

    def show(self) -> None:
        """Bring the embedder up to date; every rank must call it."""
        shown = self.embedder.bundle.model
        if self.step.average is not None:
            self.step.average.copy_to(shown)
        elif shown is not self.model:
            copy_model(self.model, shown)


def assemble(config: TrainConfig, model: CLIP, tokenizer: Tokenizer) -> Assembly:
    """Make a model on its device ready, and its teacher; where there are other ranks, to be trained by all of them.

    Raises:
        ConfigError: the config locks more than there is, nothing is left to train, or there is nothing to compile with.
        BundleError: the teacher is nothing that can be read.
    """
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    apply_lock(model, config.lock)
    ranks = all_ranks()
    is_cut = ranks.size > 1 and config.parallel == "fsdp"
    shown = copy.deepcopy(model) if config.ema is not None or is_cut else model
    if config.compile:
        _check_compiler(model.log_logit_scale.device)
        model.image_tower.compile()
    replicas = replicate(model, config.parallel, ranks)
    average = None if config.ema is None else WeightAverage(model, config.ema)
    teacher = open_teacher(config.distill, model.log_logit_scale.device, config.precision)
    optimizers = build_optimizers(model, config.optimizer)
    step = TrainingStep(
        model,
        optimizers,
        loss=config.loss,
        max_grad_norm=config.optimizer.max_grad_norm,
        micro_batch=config.micro_batch,
        precision=config.precision,
        average=average,
        replicas=replicas,
        teacher=teacher,
        teacher_weight=config.distill.weight,
    )
    extras = {"average": average, "scaler": step.scaler if step.scaler.is_enabled() else None}
    state = TrainingState(
        model=model, optimizers=optimizers, extras={name: part for name, part in extras.items() if part is not None}
    )
    embedder = Embedder(Bundle(model=shown, tokenizer=tokenizer))
    return Assembly(model=model, step=step, state=state, embedder=embedder, teacher=teacher)


def _check_compiler(device: torch.device) -> None:
    """On a CPU, PyTorch has a C++ compiler do it."""
    named = os.environ.get("CXX")
    if device.type == "cpu" and not any(map(shutil.which, [named] if named else ["g++", "clang++"])):
        raise ConfigError("compile is true, which on a CPU needs a C++ compiler: install g++, or set CXX")
