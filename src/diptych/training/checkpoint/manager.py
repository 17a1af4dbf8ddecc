"""Saves checkpoints when they are due, and the bundle of the best validation."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from diptych.bundle.folder import Bundle, add_metrics, save_bundle
from diptych.core.errors import BundleError, RunError, SaveError
from diptych.core.fingerprint import DataFingerprint
from diptych.core.program import command
from diptych.device.distributed import Ranks
from diptych.evaluation.retrieval import RetrievalReport
from diptych.evaluation.zero_shot import ZeroShotReport
from diptych.training.checkpoint.origin import origin
from diptych.training.checkpoint.state import TrainingState
from diptych.training.checkpoint.store import Progress, save_checkpoint
from diptych.training.config import TrainConfig
from diptych.training.validation import Validation


@dataclass(kw_only=True, eq=False)
class CheckpointManager:
    """Saves the checkpoints and bundles of a run. If the disk is full, the run continues with a message."""

    config: TrainConfig
    run: Path
    """The run folder."""
    state: TrainingState
    """Content of checkpoints."""
    evaluated: Bundle
    """The model that is evaluated and saved in bundles, with its tokenizer."""
    ranks: Ranks
    progress: Progress
    """Progress at the start of the run, then at the last checkpoint. The best validation is always up to date."""
    steps_per_epoch: int
    data: Mapping[str, DataFingerprint]
    """Fingerprints of the training and the validation data."""
    on_message: Callable[[str], None]
    """Called with messages for the user."""
    _unsaved_bundles: set[Path] = field(default_factory=set, init=False)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether there were `validation.patience` consecutive validations without improvement."""
        patience = self.config.validation.patience
        return patience is not None and self.progress.since_best >= patience

    def update_best(self, validation: Validation, step: int) -> bool:
        """Save `bundle-best` if this validation is the best so far. Returns whether it is."""
        score = validation.score(self.config.validation.metric)
        if not score > self.progress.best_metric:
            self.progress = replace(self.progress, since_best=self.progress.since_best + 1)
            return False
        self.progress = replace(self.progress, best_metric=score, best_step=step, since_best=0)
        self.save_bundle(validation, self.run / "bundle-best", step)
        return True

    def save_bundle(self, validation: Validation, folder: Path, step: int) -> bool:
        """Save the evaluated model on rank 0. Returns whether that succeeded, on all ranks.

        Args:
            validation: its metrics are stored in the bundle.
            folder: the folder of the bundle, which is replaced.
            step: number of completed steps.
        """
        is_saved = self.ranks.run_on_rank0(lambda: self._save_bundle(validation, folder, step))
        if not is_saved:
            self._unsaved_bundles.add(folder)
        return is_saved

    def add_split_metrics(self, folder: Path, retrieval: RetrievalReport, zero_shot: ZeroShotReport | None) -> None:
        """Add the metrics on the whole validation split to a bundle that `save_bundle` wrote.

        Raises:
            SaveError: the bundle could not be saved.
        """
        if folder in self._unsaved_bundles:
            resume = command("train", "--resume", self.run)
            raise SaveError(f"{folder}: could not be saved; make room, then: {resume}")
        metrics = {"retrieval": asdict(retrieval)} | ({"zero_shot": asdict(zero_shot)} if zero_shot else {})
        self.ranks.run_on_rank0(lambda: add_metrics(folder, metrics))

    def _save_bundle(self, validation: Validation, folder: Path, step: int) -> bool:
        during_training = {
            **{name: round(value, 5) for name, value in validation.metrics().items()},
            "protocol": validation.retrieval.protocol,
        }
        bundle = Bundle(
            model=self.evaluated.model,
            tokenizer=self.evaluated.tokenizer,
            metrics={"during_training": during_training},
            origin=origin(self.config, step=step, train_split_hash=self.data["training"].short),
        )
        try:
            save_bundle(bundle, folder)
        except BundleError as error:
            self.on_message(str(error))
            return False
        return True

    def is_checkpoint_due(self, step: int, *, elapsed_s: float) -> bool:
        """Whether a checkpoint is due, by the steps, minutes and epochs since the last one (see `CheckpointConfig`)."""
        steps = step - self.progress.step
        minutes = (elapsed_s - self.progress.elapsed_s) / 60
        return self.config.checkpoint.is_due(steps=steps, minutes=minutes, epochs=steps / self.steps_per_epoch)

    def save_checkpoint(self, step: int, *, elapsed_s: float, skipped: Mapping[str, str], must: bool = False) -> None:
        """Save a checkpoint. If that fails, send a message, or raise an error with `must`. All ranks must call it.

        Args:
            step: number of completed steps.
            elapsed_s: seconds of training so far.
            skipped: reason by key of each sample that could not be read.
            must: whether a failure is an error.

        Raises:
            RunError: the checkpoint could not be saved, and `must` is True.
        """
        self.progress = replace(self.progress, step=step, elapsed_s=elapsed_s, skipped=tuple(skipped.items()))
        try:
            save_checkpoint(
                self.run,
                self.state,
                self.progress,
                self.ranks,
                config=self.config,
                data=self.data,
                keep=self.config.checkpoint.keep,
            )
        except RunError as error:
            if must:
                raise
            self.on_message(str(error))
