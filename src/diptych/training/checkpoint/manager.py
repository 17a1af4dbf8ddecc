"""What a run keeps as it goes: checkpoints in their rhythm, and the bundle of its best moment."""

from collections.abc import Callable, Mapping
from pathlib import Path

from diptych.bundle.folder import Bundle, save_bundle
from diptych.core.distributed import Ranks
from diptych.core.errors import BundleError, RunError
from diptych.core.fingerprint import DataFingerprint
from diptych.training.checkpoint.origin import origin
from diptych.training.checkpoint.state import TrainingState
from diptych.training.checkpoint.store import Progress, save_checkpoint
from diptych.training.config import TrainConfig
from diptych.training.validation import Validation


class CheckpointManager:
    """Saves. A disk that is full costs what could not be saved, never the run."""

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        state: TrainingState,
        evaluated: Bundle,
        ranks: Ranks,
        *,
        progress: Progress,
        steps_per_epoch: int,
        data: Mapping[str, DataFingerprint],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.run = config, run
        self._state, self._evaluated, self._ranks = state, evaluated, ranks
        self.best_metric, self.best_step = progress.best_metric, progress.best_step
        self.since_best = progress.since_best
        self._steps_per_epoch = steps_per_epoch
        self._data = data
        self._say = say
        self._saved_at_s, self._saved_step = progress.elapsed_s, progress.step

    @property
    def is_out_of_patience(self) -> bool:
        """Whether validation has not become better for as long as the config allows."""
        patience = self.config.validation.patience
        return patience is not None and self.since_best >= patience

    def update_best(self, validation: Validation, step: int) -> bool:
        """Keep `bundle-best` if this validation is the best so far; whether it is."""
        score = validation.score(self.config.validation.metric)
        self.since_best += 1
        if not score > self.best_metric:
            return False
        self.best_metric, self.best_step, self.since_best = score, step, 0
        self.save_bundle(validation, self.run / "bundle-best", step)
        return True

    def save_bundle(self, validation: Validation, folder: Path, step: int) -> bool:
        """Save what was measured; whether that could be done. Rank 0 does it, and all know how it went."""
        return self._ranks.run_on_rank0(lambda: self._save_bundle(validation, folder, step))

    def _save_bundle(self, validation: Validation, folder: Path, step: int) -> bool:
        during_training = {
            **{name: round(value, 5) for name, value in validation.figures().items()},
            "protocol": validation.retrieval.protocol,
        }
        bundle = Bundle(
            model=self._evaluated.model,
            tokenizer=self._evaluated.tokenizer,
            metrics={"during_training": during_training},
            origin=origin(self.config, step=step, train_split_hash=self._data["training"].short),
        )
        try:
            save_bundle(bundle, folder)
        except BundleError as error:
            self._say(str(error))
            return False
        return True

    def is_checkpoint_due(self, step: int, *, elapsed_s: float) -> bool:
        """By steps, epochs or minutes since the last, whichever comes first."""
        steps = step - self._saved_step
        minutes = (elapsed_s - self._saved_at_s) / 60
        return self.config.checkpoint.is_due(steps=steps, minutes=minutes, epochs=steps / self._steps_per_epoch)

    def save_checkpoint(self, step: int, *, elapsed_s: float, skipped: Mapping[str, str], must: bool = False) -> None:
        """Save, or say why not.

        Raises:
            RunError: it must be saved and could not.
        """
        progress = Progress(
            step=step,
            elapsed_s=elapsed_s,
            best_metric=self.best_metric,
            best_step=self.best_step,
            since_best=self.since_best,
            skipped=tuple(skipped.items()),
        )
        try:
            save_checkpoint(
                self.run,
                self._state,
                progress,
                self._ranks,
                config=self.config,
                data=self._data,
                keep=self.config.checkpoint.keep,
                best_step=self.best_step,
            )
        except RunError as error:
            if must:
                raise
            self._say(str(error))
        self._saved_at_s, self._saved_step = elapsed_s, step
