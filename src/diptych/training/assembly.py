"""A model made ready to be trained: locked where it should be, with its optimizers, its average and what saves it."""

import copy
from dataclasses import dataclass

from diptych.bundle.folder import Bundle
from diptych.inference.embedder import Embedder
from diptych.models.clip import CLIP
from diptych.tokenizers.protocol import Tokenizer
from diptych.training.config import TrainConfig
from diptych.training.ema import WeightAverage
from diptych.training.lock import apply_lock
from diptych.training.optimizer import build_optimizers
from diptych.training.state import TrainingState
from diptych.training.step import TrainingStep


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What one run moves, measures and saves."""

    model: CLIP
    step: TrainingStep
    state: TrainingState
    embedder: Embedder
    """Of the weights that are measured and kept: the model's own, or their average."""

    def show_average(self) -> None:
        """Bring the embedder up to date."""
        if self.step.average is not None:
            self.step.average.copy_to(self.embedder.bundle.model)


def assemble(config: TrainConfig, model: CLIP, tokenizer: Tokenizer) -> Assembly:
    """Make a model on its device ready.

    Raises:
        ConfigError: the config locks more than there is, or nothing is left to train.
    """
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    apply_lock(model, config.lock)
    average = None if config.ema is None else WeightAverage(model, config.ema)
    shown = model if average is None else copy.deepcopy(model)
    if config.compile:
        model.image_tower.compile()
    optimizers = build_optimizers(model, config.optimizer)
    step = TrainingStep(
        model,
        optimizers,
        loss=config.loss,
        max_grad_norm=config.optimizer.max_grad_norm,
        micro_batch=config.micro_batch,
        precision=config.precision,
        average=average,
    )
    extras = {"average": average, "scaler": step.scaler if step.scaler.is_enabled() else None}
    state = TrainingState(
        model=model, optimizers=optimizers, extras={name: part for name, part in extras.items() if part is not None}
    )
    return Assembly(model=model, step=step, state=state, embedder=Embedder(Bundle(model=shown, tokenizer=tokenizer)))
