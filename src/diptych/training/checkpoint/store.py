"""Checkpoints: private to training, complete or absent.

One is a folder `checkpoints/step-00000123/`: weights, optimizers and averages as `torch.distributed.checkpoint` writes them,
`state.json`, and last `manifest.json` with the size and checksum of each file. It is written beside its place, flushed to
the disk and renamed. One process, DDP and FSDP2 write the same and read each other's.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diptych.core.address import without_secrets
from diptych.core.distributed import Ranks
from diptych.core.errors import RunError
from diptych.core.files import remove_folder, replace_folder, restore_folder
from diptych.core.fingerprint import DataFingerprint
from diptych.core.settings import to_plain
from diptych.training.checkpoint.compatibility import check_same_data, check_same_run
from diptych.training.checkpoint.manifest import find_fault, write_manifest
from diptych.training.checkpoint.state import TrainingState

_STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. Order, augmentation and captions follow from the step alone."""

    step: int
    elapsed_s: float
    best_metric: float
    """Of the best validation; -inf before the first."""
    best_step: int | None = None
    """The step of the best validation; None before the first."""
    since_best: int = 0
    """Validations since then."""
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
    best_step: int | None = None,
) -> Path:
    """Write a checkpoint, then drop all but the newest `keep` and that of `best_step`. Every rank calls it.

    Args:
        run: the run's folder.
        state: what is saved; it stays as it is.
        progress: where the run stands.
        ranks: the processes that train the run.
        config: the run's settings, or the same as plain data.
        data: the fingerprint of each split that the run uses.
        keep: how many of the newest stay.
        best_step: the checkpoint of this step stays, too, if there is one.

    Raises:
        RunError: it could not be written, on any rank; what was written of it is removed, and older ones are as they were.
    """
    from diptych.training.checkpoint.tensors import write_tensors  # noqa: PLC0415  (half a second that few commands need)

    folder = run / "checkpoints"
    place, beside = _place(run, progress.step), folder / f".{_place(run, progress.step).name}.new"

    def start() -> None:
        if ranks.rank == 0:
            _recover(run)
            beside.mkdir(parents=True)

    def finish() -> None:
        if ranks.rank == 0:
            plain: dict[str, Any] = {"progress": _to_json(progress), "config": without_secrets(to_plain(config))}
            if data is not None:
                plain["data"] = {split: fingerprint.to_plain() for split, fingerprint in data.items()}
            (beside / _STATE).write_text(json.dumps(plain, indent=1), encoding="utf-8")
            write_manifest(beside, step=progress.step)
            _put_in_place(beside, place)

    for action in (start, lambda: write_tensors(beside, state, ranks), finish):
        failure = _agreed(ranks, _attempt(action))
        if failure is not None:
            if ranks.rank == 0:
                _recover(run)
            older = "the one before is kept" if _checkpoints(run) else "there is none before it"
            raise RunError(f"{place}: could not be saved ({failure}); {older}")
    if ranks.rank == 0:
        _drop(run, progress.step, keep=keep, best_step=best_step)
    return place


def load_checkpoint(
    run: Path,
    state: TrainingState,
    ranks: Ranks,
    *,
    config: object,
    tell: Callable[[str], None],
    data: Mapping[str, DataFingerprint] | None = None,
    accept_changed_data: bool = False,
) -> Progress:
    """Put the newest whole checkpoint's state into the model, the optimizers and the extras. Every rank calls it.

    Args:
        run: the run's folder.
        state: what is filled.
        ranks: the processes that train the run.
        config: the settings of the run that goes on, or the same as plain data.
        tell: gets one line for each checkpoint that is damaged and passed over; on the first rank alone.
        data: the fingerprint of each split as the data is now; None if it is not compared.
        accept_changed_data: continue with data that differs from the checkpoint's, with a message.

    Raises:
        RunError: there is none that is whole, or it is that of another run, or does not fit.
    """
    from diptych.training.checkpoint.tensors import read_tensors  # noqa: PLC0415  (half a second that few commands need)

    def check(saved: Mapping[str, Any]) -> None:
        check_same_run(saved["config"], config)
        if data is not None:
            check_same_data(saved.get("data"), data, accept=accept_changed_data, tell=tell)

    step, failure = ranks.run_on_rank0(lambda: _choose(run, check, tell))
    if failure is not None:
        raise RunError(failure)
    place = _place(run, step)
    failure = _agreed(ranks, _attempt(lambda: read_tensors(place, state, ranks)))
    if failure is not None:
        raise RunError(f"{place}: cannot be loaded ({failure})")
    return _from_json(_read_state(place)["progress"])


def _choose(
    run: Path, check: Callable[[Mapping[str, Any]], None], tell: Callable[[str], None]
) -> tuple[int, str | None]:
    """The step of the newest whole checkpoint; or why there is none. It raises nothing: other ranks wait for it."""
    try:
        _recover(run, clean=False)
        places = _checkpoints(run)
        for place in reversed(places):
            fault = find_fault(place)
            if fault is None:
                check(_read_state(place))
                return _step(place), None
            tell(f"{place} is passed over: {fault}")
    except (RunError, OSError) as error:
        return 0, f"{run}: {error}"
    why = "all its checkpoints are damaged" if places else "has no checkpoint to resume from"
    return 0, f"{run}: {why}; start it again with --overwrite"


def _agreed(ranks: Ranks, failure: str | None) -> str | None:
    """The first failure of any rank; None if there is none. It waits for all."""
    return next((found for found in ranks.gather_objects(failure) if found is not None), None)


def _attempt(action: Callable[[], None]) -> str | None:
    """Why the disk, or what lies on it, would not have it; None if all went well."""
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415  (half a second that few commands need)

    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    except RunError as error:
        return str(error)
    except CheckpointException as error:  # Not an Exception; it carries those of all ranks.
        causes = [cause for cause, _ in error.failures.values()]
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            raise KeyboardInterrupt from None
        return _reason(causes[0])
    return None


def _reason(error: BaseException) -> str:
    """The system's own words, where the error or what led to it has them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _place(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def _checkpoints(run: Path) -> list[Path]:
    """Oldest first."""
    places = [path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(places, key=_step)


def _put_in_place(beside: Path, place: Path) -> None:
    """One of the same step makes way first; `_recover` brings it back should the process die between the two renames."""
    replace_folder(beside, place, old=place.with_name(f".{place.name}.old"))


def _recover(run: Path, *, clean: bool = True) -> None:
    """Finish or undo what a process that died left half done."""
    folder = run / "checkpoints"
    for old in folder.glob(".step-*.old"):
        restore_folder(old, folder / old.name[1:].removesuffix(".old"))
    for left in folder.glob(".step-*") if clean else ():
        shutil.rmtree(left, ignore_errors=True)


def _drop(run: Path, step: int, *, keep: int, best_step: int | None) -> None:
    """Remove all but the newest; those later than `step` are damaged ones, before which the run went back."""
    places = _checkpoints(run)
    newest = [place for place in places if _step(place) <= step][-keep:]
    for place in places:
        if place not in newest and _step(place) != best_step:
            remove_folder(place, tmp=place.with_name(f".{place.name}.new"))
    for left in (run / "checkpoints").glob(".step-*.old"):
        shutil.rmtree(left, ignore_errors=True)


def _read_state(place: Path) -> dict[str, Any]:
    return json.loads((place / _STATE).read_text(encoding="utf-8"))


def _to_json(progress: Progress) -> dict[str, Any]:
    """JSON knows no infinity: that of a run without a validation is null."""
    best = progress.best_metric
    return {**asdict(progress), "best_metric": best if math.isfinite(best) else None}


def _from_json(plain: dict[str, Any]) -> Progress:
    best = plain["best_metric"]
    skipped = tuple((key, reason) for key, reason in plain["skipped"])
    return Progress(**{**plain, "best_metric": -math.inf if best is None else best, "skipped": skipped})
