"""Checkpoints: private to training, complete or absent.

One is a folder `checkpoints/step-000123/` with the weights, the optimizer's state and a small `state.json`. It is written
beside its place, flushed to the disk and renamed, so that whatever bears the name is whole.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from diptych.core.errors import RunError
from diptych.models.clip import CLIP


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. Order, augmentation and captions follow from the step alone."""

    step: int
    elapsed_s: float
    best_metric: float
    skipped: tuple[tuple[str, str], ...]
    """(key, reason) of every sample that could not be read so far."""


def save_checkpoint(
    run: Path, model: CLIP, optimizer: torch.optim.Optimizer, progress: Progress, *, keep: int = 2
) -> Path:
    """Write a checkpoint and drop all but the newest `keep`."""
    folder = run / "checkpoints"
    place = folder / f"step-{progress.step:08d}"
    beside = folder / f".{place.name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    torch.save(model.state_dict(), beside / "model.pt")
    torch.save(optimizer.state_dict(), beside / "optimizer.pt")
    (beside / "state.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    for file in (*beside.iterdir(), beside):
        _flush(file)
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)
    _flush(folder)
    for old in _checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return place


def load_checkpoint(run: Path, model: CLIP, optimizer: torch.optim.Optimizer) -> Progress:
    """Put the newest checkpoint's state into the model and the optimizer.

    Raises:
        RunError: there is none, or it does not fit.
    """
    places = _checkpoints(run)
    if not places:
        raise RunError(f"{run}: has no checkpoint to resume from; start it again with --overwrite")
    newest = places[-1]
    try:
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        model.load_state_dict(torch.load(newest / "model.pt", weights_only=True))
        optimizer.load_state_dict(torch.load(newest / "optimizer.pt", weights_only=True))
        return Progress(**{**state, "skipped": tuple((key, reason) for key, reason in state["skipped"])})
    except Exception as error:  # A damaged file makes the unpickler raise almost anything.
        raise RunError(f"{newest}: cannot be loaded ({type(error).__name__}: {error})") from None


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
