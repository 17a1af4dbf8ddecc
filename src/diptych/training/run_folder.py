"""The folder of a run: who may write it, which files it has, and what `train` returns."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from diptych.bundle.folder import is_bundle
from diptych.core.distributed import Ranks
from diptych.core.errors import ConfigError, RunError
from diptych.core.files import clear_tmp, file_lock, is_tmp, restore_folder
from diptych.core.program import command
from diptych.data.local_paths import local_paths
from diptych.evaluation.retrieval import RetrievalReport
from diptych.evaluation.zero_shot import ZeroShotReport
from diptych.training.config import SECRETS, TrainConfig, read_config

CONFIG, TOKENIZER, SKIPPED, EVENTS = "config.yaml", "tokenizer.json", "skipped.jsonl", "events.jsonl"
LOCK = "run.lock"
_KEPT = (CONFIG, LOCK, f"{LOCK}.holder")
_WRITTEN = frozenset(
    {*_KEPT, SECRETS, TOKENIZER, SKIPPED, EVENTS, f".{CONFIG}", "tracked-as.txt", "curves.png", "samples.png"}
    | {"checkpoints", "bundle", "bundle-best", "tensorboard", "wandb"}
)
"""Names of all that a run writes, and that `--overwrite` may remove."""
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
    has_config, foreign = (run / CONFIG).is_file(), _foreign_file(run)
    if resume and (foreign is not None or not has_config):
        raise RunError(f"{run}: holds no run to resume")
    if foreign is not None:
        raise RunError(f"{run}: is not empty and holds no run (it has {foreign}); choose another folder with --out")
    if has_config and not resume:
        _check_config(run)
        if not overwrite:
            raise RunError(
                f"{run}: already holds a run; continue it ({command('train', '--resume', run)}), replace it (--overwrite), "
                "or choose another folder (--out)"
            )


def _foreign_file(run: Path) -> str | None:
    """The name of a file that shows that the folder is no run's; None for a run, part of one, and an empty folder.

    A process that was killed early leaves a config and little else, or half a config. Then nothing but files of a run may be
    there: many a project has a `config.yaml`.
    """
    if not run.is_dir():
        return None
    has_config = (run / CONFIG).is_file()
    if has_config and _has_traces(run):
        return None
    may_be_there = _is_written_by_run if has_config else _is_beginning
    return next((path.name for path in sorted(run.iterdir()) if not may_be_there(path)), None)


def _has_traces(run: Path) -> bool:
    """Whether there is something that only a run leaves."""
    has_checkpoints = any(any((run / "checkpoints").glob(pattern)) for pattern in ("step-*", ".step-*"))
    return (run / EVENTS).is_file() or (run / LOCK).is_file() or has_checkpoints or is_bundle(run / "bundle")


def _is_written_by_run(path: Path) -> bool:
    """Whether a run writes something of this name: one of its files, or a temporary file or folder for one."""
    is_part = any(is_tmp(path, of=name) for name in _WRITTEN)
    return path.name in _WRITTEN or is_part or path.name.startswith((".bundle-", f".{LOCK}"))


def _check_config(run: Path) -> None:
    """Refuse a `config.yaml` that no run has written: it may be someone's own."""
    try:
        read_config(run / CONFIG)
    except ConfigError as error:
        raise RunError(
            f"{run}: its {CONFIG} is not that of a run ({error}); choose another folder with --out"
        ) from None


def _is_beginning(path: Path) -> bool:
    """Whether a folder that holds no run yet may hold this file: part of a config, its secrets, or the lock."""
    is_part = is_tmp(path, of=CONFIG) or is_tmp(path, of=SECRETS)
    return path.name in {f".{CONFIG}", SECRETS} or is_part or _is_lock(path)


def _is_lock(path: Path) -> bool:
    """The lock, its note, or a part of that."""
    return path.name.startswith((LOCK, f".{LOCK}"))


def check_inputs_outside(config: TrainConfig, folder: Path) -> None:
    """Refuse data and weights that lie in the folder that a run or a study writes.

    Raises:
        ConfigError: a local path of the data, `init` or the teacher lies there.
    """
    inputs = {
        "data.source": local_paths(config.data.source),
        "init": local_paths(config.init or ""),
        "distill.teacher": local_paths(config.distill.teacher or ""),
    }
    for name, paths in inputs.items():
        inside = [path for path in paths if path.resolve().is_relative_to(folder.resolve())]
        if inside:
            raise ConfigError(
                f"{folder}: holds what the run reads ({name}: {inside[0]}); choose another folder with --out"
            )


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
        created = ranks.run_on_rank0(lambda: _take(run, held, overwrite=overwrite, resume=resume))
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
    """Remove what an earlier run wrote, except for the lock and its config, which is replaced later; other files stay."""
    run.mkdir(parents=True, exist_ok=True)
    for path in filter(_is_written_by_run, tuple(run.iterdir())):
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


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind."""

    run: Path
    bundle: Path | None
    """The trained model; None if the run was interrupted."""
    steps: int
    elapsed_s: float
    retrieval: RetrievalReport | None
    """On the whole validation split; None if the run was interrupted."""
    zero_shot: ZeroShotReport | None
    """The same, where it is what the run is validated by."""
    num_skipped: int
    data_wait: float
    """Share of the training time that was spent waiting for data, within [0, 1]."""
    seconds: dict[str, float]
    """Where the time went: data, forward, backward, optimizer, evaluation, checkpoints; since it was resumed."""
    best_step: int | None
    """The step that `bundle-best` is of."""
    stopped_early: bool = False
    """Whether it ended because validation no longer got better."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run early. It can be resumed."""
        return self.bundle is None
