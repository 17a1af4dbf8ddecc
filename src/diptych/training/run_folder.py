"""The folder of a run: who may write it, and what lies where."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from diptych.core.distributed import Ranks
from diptych.core.errors import RunError
from diptych.core.files import clear_tmp, file_lock, is_tmp, restore_folder

CONFIG, TOKENIZER, SKIPPED = "config.yaml", "tokenizer.json", "skipped.jsonl"
SECRETS = "secrets.yaml"
"""What was left out of the addresses in `config.yaml`; only its owner may read it."""
LOCK = "run.lock"
_KEPT = (CONFIG, LOCK, f"{LOCK}.holder")
_ADVICE = "stop it, or choose another folder with --out"


def check_run_folder(run: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a folder that this run may not use; touches nothing.

    Raises:
        RunError: it holds a run and neither flag is set, holds something else, or holds no run to resume.
    """
    if overwrite and resume:
        raise RunError("--overwrite and --resume exclude each other")
    if run.exists() and not run.is_dir():
        raise RunError(f"{run}: is a file; a run needs a folder")
    holds_run = (run / CONFIG).is_file()
    if resume and not holds_run:
        raise RunError(f"{run}: holds no run to resume")
    if holds_run and not (overwrite or resume):
        raise RunError(
            f"{run}: already holds a run; go on with it (diptych train --resume {run}), replace it (--overwrite), "
            "or choose another folder (--out)"
        )
    # A process that was killed before it had written its config leaves half of one.
    if run.is_dir() and not holds_run and not all(map(_may_be_there, run.iterdir())):
        raise RunError(f"{run}: is not empty and holds no run; choose another folder with --out")


def _may_be_there(path: Path) -> bool:
    """Whether a folder that holds no run yet may hold this file: part of a config, its secrets, or the lock."""
    is_part = is_tmp(path, of=CONFIG) or is_tmp(path, of=SECRETS)
    return path.name in {f".{CONFIG}", SECRETS} or is_part or _is_lock(path)


def _is_lock(path: Path) -> bool:
    """The lock, its note, or a part of that."""
    return path.name.startswith((LOCK, f".{LOCK}"))


@contextmanager
def hold_run_folder(run: Path, *, overwrite: bool, resume: bool, ranks: Ranks) -> Iterator[None]:
    """Check the folder (`check_run_folder`) and be the only run that writes it while the block runs.

    The folder is created if it does not exist; if the block raises before anything else lies in it, it is removed again.
    Rank 0 holds the lock for all. The system releases it when rank 0 dies, so that a killed run can be resumed at once.

    Raises:
        RunError: the folder may not be used, on all ranks.
        BusyError: another run writes it, on all ranks; the message names its process.
    """
    with ExitStack() as held:
        created = ranks.from_first(lambda: _take(run, held, overwrite=overwrite, resume=resume))
        try:
            yield
        except BaseException:
            if ranks.rank == 0:
                _leave_nothing(run, created=created)
            raise


def _take(run: Path, held: ExitStack, *, overwrite: bool, resume: bool) -> tuple[Path, ...]:
    """Lock the folder until `held` is closed; which folders had to be created, the innermost first."""
    check_run_folder(run, overwrite=overwrite, resume=resume)
    created = tuple(folder for folder in (run, *run.parents) if not folder.exists())
    try:
        run.mkdir(parents=True, exist_ok=True)
        held.enter_context(file_lock(run / LOCK, wait_s=0, what=run, advice=_ADVICE))
    except OSError as error:
        raise RunError(
            f"{run}: cannot be written ({error.strerror or error}); choose another folder with --out"
        ) from None
    check_run_folder(run, overwrite=overwrite, resume=resume)  # Another run may have begun and ended meanwhile.
    return created


def _leave_nothing(run: Path, *, created: tuple[Path, ...]) -> None:
    """Remove the lock from a folder that holds nothing else, and the folders that were created for this run."""
    with suppress(OSError):
        if all(map(_is_lock, run.iterdir())):
            for path in tuple(run.iterdir()):
                path.unlink()
            for folder in created:
                folder.rmdir()


def create_run_folder(run: Path) -> None:
    """Empty the folder except for the lock and an older config, which is replaced later: the folder always holds a run."""
    run.mkdir(parents=True, exist_ok=True)
    for path in run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in _KEPT:
            path.unlink()


def clear_leftovers(run: Path) -> None:
    """Finish or undo what a killed process left of its bundles and files; checkpoints see to themselves."""
    for old in run.glob(".bundle*-old"):
        place = run / old.name[1:].removesuffix("-old")
        restore_folder(old, place)
    for left in run.glob(".bundle*-*"):
        shutil.rmtree(left, ignore_errors=True)
    clear_tmp(run)


def has_begun(run: Path) -> bool:
    """Whether there is more of a run than its beginning: one killed before its first checkpoint starts again."""
    places = (path for pattern in ("step-*", ".step-*.old") for path in (run / "checkpoints").glob(pattern))
    return ((run / TOKENIZER).is_file() and any(places)) or (run / "bundle").exists()
