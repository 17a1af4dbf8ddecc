"""Saves and loads checkpoints, which are private to training.

A checkpoint is a folder `checkpoints/step-00000123/`. It contains weights, optimizers and averages in the format of
`torch.distributed.checkpoint`, `state.json`, and `manifest.json` with the size and checksum of each file. It is written to a
temporary folder, flushed to disk, and renamed, so it is either complete or absent. Single-process, DDP and FSDP2 runs write
the same format and can read each other's checkpoints.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diptych.core.address import without_secrets
from diptych.core.errors import RunError
from diptych.core.files import remove_folder, replace_folder, restore_folder
from diptych.core.fingerprint import DataFingerprint
from diptych.core.settings import to_plain
from diptych.device.distributed import Ranks
from diptych.training.checkpoint.compatibility import check_same_data, check_same_run
from diptych.training.checkpoint.manifest import find_fault, write_manifest
from diptych.training.checkpoint.state import TrainingState

_STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run. Order, augmentation and choice of captions depend only on the seed and the step."""

    step: int
    """Number of completed steps."""
    elapsed_s: float
    """Seconds of training so far."""
    best_metric: float
    """Score of the best validation; -inf before the first validation."""
    best_step: int | None = None
    """The step of the best validation; None before the first validation."""
    since_best: int = 0
    """Number of validations since the best one."""
    skipped: tuple[tuple[str, str], ...]
    """(key, reason) of every sample that could not be read so far."""


def save_checkpoint(
    run: Path,
    state: TrainingState,
    progress: Progress,
    ranks: Ranks,
    *,
    config: object,
    data: Mapping[str, DataFingerprint] | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint, then remove older ones, except the newest `keep` and that of `progress.best_step`.

    All ranks must call it.

    Args:
        run: the run folder.
        state: the state to save, which is not changed.
        progress: progress of the run.
        ranks: the ranks of the run.
        config: settings of the run, or the same as plain data.
        data: the fingerprint of each split that the run uses.
        keep: number of newest checkpoints to keep.

    Returns:
        The folder of the checkpoint.

    Raises:
        RunError: a rank could not write the checkpoint. Its partial files are removed; older checkpoints are not changed.
    """
    from diptych.training.checkpoint.tensors import write_tensors  # noqa: PLC0415  (takes half a second)

    path = _checkpoint_path(run, progress.step)
    tmp = path.with_name(f".{path.name}.new")

    def start() -> None:
        if ranks.rank == 0:
            _recover(run)
            tmp.mkdir(parents=True)

    def finish() -> None:
        if ranks.rank == 0:
            plain: dict[str, Any] = {"progress": _to_json(progress), "config": without_secrets(to_plain(config))}
            if data is not None:
                plain["data"] = {split: fingerprint.to_plain() for split, fingerprint in data.items()}
            (tmp / _STATE).write_text(json.dumps(plain, indent=1), encoding="utf-8")
            write_manifest(tmp, step=progress.step)
            # `_recover` restores an old checkpoint of this step if the process dies between the two renames.
            replace_folder(tmp, path, old=path.with_name(f".{path.name}.old"))

    for action in (start, lambda: write_tensors(tmp, state, ranks), finish):
        failure = _first_failure(ranks, _attempt(action))
        if failure is not None:
            if ranks.rank == 0:
                _recover(run)
            older = "the one before is kept" if _checkpoints(run) else "there is none before it"
            raise RunError(f"{path}: could not be saved ({failure}); {older}")
    if ranks.rank == 0:
        _remove_old(run, progress, keep=keep)
    return path


def load_checkpoint(
    run: Path,
    state: TrainingState,
    ranks: Ranks,
    *,
    config: object,
    on_message: Callable[[str], None],
    data: Mapping[str, DataFingerprint] | None = None,
    accept_changed_data: bool = False,
) -> Progress:
    """Load the newest intact checkpoint into the model, the optimizers and the extras. All ranks must call it.

    Args:
        run: the run folder.
        state: the state to overwrite.
        ranks: the ranks of the run.
        config: settings of the resumed run, or the same as plain data.
        on_message: called on rank 0 with a message for each damaged checkpoint that is skipped.
        data: the current fingerprint of each split; None to skip the comparison.
        accept_changed_data: continue with data that differs from the checkpoint's, with a message.

    Raises:
        RunError: there is no intact checkpoint, or its settings, data or tensors do not match those of the run.
    """
    from diptych.training.checkpoint.tensors import read_tensors  # noqa: PLC0415  (takes half a second)

    def check(saved: Mapping[str, Any]) -> None:
        check_same_run(saved["config"], config)
        if data is not None:
            check_same_data(saved.get("data"), data, accept=accept_changed_data, on_message=on_message)

    step, failure = ranks.run_on_rank0(lambda: _find_newest(run, check, on_message))
    if failure is not None:
        raise RunError(failure)
    path = _checkpoint_path(run, step)
    failure = _first_failure(ranks, _attempt(lambda: read_tensors(path, state, ranks)))
    if failure is not None:
        raise RunError(f"{path}: cannot be loaded ({failure})")
    return _from_json(_read_state(path)["progress"])


def _find_newest(
    run: Path, check: Callable[[Mapping[str, Any]], None], on_message: Callable[[str], None]
) -> tuple[int, str | None]:
    """The step of the newest intact checkpoint and None, or 0 and an error message.

    It returns errors instead of raising them, because the other ranks wait for its result.
    """
    try:
        _recover(run, clean=False)
        paths = _checkpoints(run)
        for path in reversed(paths):
            fault = find_fault(path)
            if fault is None:
                check(_read_state(path))
                return _step(path), None
            on_message(f"{path} is skipped: {fault}")
    except (RunError, OSError) as error:
        return 0, f"{run}: {error}"
    why = "all its checkpoints are damaged" if paths else "has no checkpoint to resume from"
    return 0, f"{run}: {why}; start it again with --overwrite"


def _first_failure(ranks: Ranks, failure: str | None) -> str | None:
    """The first failure of any rank; None if all succeeded. All ranks must call it."""
    return next((found for found in ranks.gather_objects(failure) if found is not None), None)


def _attempt(action: Callable[[], None]) -> str | None:
    """Run an action that reads or writes files. Returns the reason of a failure, or None."""
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415  (takes half a second)

    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    except RunError as error:
        return str(error)
    except CheckpointException as error:  # A BaseException that contains the exceptions of all ranks.
        causes = [cause for cause, _ in error.failures.values()]
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            raise KeyboardInterrupt from None
        return _reason(causes[0])
    return None


def _reason(error: BaseException) -> str:
    """The operating system's message, if the error or one of its causes has one; otherwise type and text of the error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _checkpoints(run: Path) -> list[Path]:
    """The folders of all checkpoints, the oldest first."""
    paths = [path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(paths, key=_step)


def _recover(run: Path, *, clean: bool = True) -> None:
    """Restore checkpoints that a killed process was replacing, and remove its temporary folders if `clean`."""
    folder = run / "checkpoints"
    for old in folder.glob(".step-*.old"):
        restore_folder(old, folder / old.name[1:].removesuffix(".old"))
    for tmp in folder.glob(".step-*") if clean else ():
        shutil.rmtree(tmp, ignore_errors=True)


def _remove_old(run: Path, progress: Progress, *, keep: int) -> None:
    """Remove all checkpoints except the newest `keep` up to `progress.step` and that of `progress.best_step`.

    Checkpoints after `progress.step` are removed, too: they are damaged, because the run resumed from an earlier one.
    """
    paths = _checkpoints(run)
    newest = [path for path in paths if _step(path) <= progress.step][-keep:]
    for path in paths:
        if path not in newest and _step(path) != progress.best_step:
            remove_folder(path, tmp=path.with_name(f".{path.name}.new"))
    for old in (run / "checkpoints").glob(".step-*.old"):
        shutil.rmtree(old, ignore_errors=True)


def _read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / _STATE).read_text(encoding="utf-8"))


def _to_json(progress: Progress) -> dict[str, Any]:
    """The progress as JSON data. JSON has no infinity, so `best_metric` is null before the first validation."""
    best = progress.best_metric
    return {**asdict(progress), "best_metric": best if math.isfinite(best) else None}


def _from_json(plain: dict[str, Any]) -> Progress:
    best = plain["best_metric"]
    skipped = tuple((key, reason) for key, reason in plain["skipped"])
    return Progress(**{**plain, "best_metric": -math.inf if best is None else best, "skipped": skipped})
