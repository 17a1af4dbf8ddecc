"""The run folder: its lock, its files, and the result that `train` returns."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from diptych.bundle.folder import is_bundle
from diptych.core.errors import ConfigError, RunError
from diptych.core.files import clear_tmp, file_lock, is_tmp, restore_folder
from diptych.core.program import command
from diptych.data.local_paths import local_paths
from diptych.device.distributed import Ranks
from diptych.evaluation.retrieval import RetrievalReport
from diptych.evaluation.zero_shot import ZeroShotReport
from diptych.tokenizers.load_tokenizer import TOKENIZER_FILES
from diptych.training.config import SECRETS, TrainConfig, read_config

CONFIG, SKIPPED, EVENTS = "config.yaml", "skipped.jsonl", "events.jsonl"
LOCK = "run.lock"
_KEPT = (CONFIG, LOCK, f"{LOCK}.holder")
_WRITTEN = frozenset(
    {*_KEPT, SECRETS, *TOKENIZER_FILES, SKIPPED, EVENTS, f".{CONFIG}", "tracked-as.txt", "curves.png", "samples.png"}
    | {"checkpoints", "bundle", "bundle-best", "tensorboard", "wandb"}
)
"""Names of all files and folders that a run writes and that `--overwrite` may remove."""
_ADVICE = "stop it, or choose another folder with --out"


def check_run_folder(run: Path, *, overwrite: bool, resume: bool) -> None:
    """Check that a run may use a folder. Nothing is changed.

    Args:
        run: the folder, which need not exist.
        overwrite: whether a run in the folder may be replaced.
        resume: whether a run in the folder is to be resumed.

    Raises:
        RunError: the folder contains a run and neither flag is set, contains other files, or contains no run to resume.
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
    """The name of a file that does not belong to a run; None for a run, an incomplete run, or an empty folder.

    A process that was killed early leaves only a config, or part of one. Because other projects also use `config.yaml`, such a
    folder counts as a run only if all of its files are files of a run.
    """
    if not run.is_dir():
        return None
    has_config = (run / CONFIG).is_file()
    if has_config and _has_traces(run):
        return None
    is_allowed = _is_written_by_run if has_config else _is_written_first
    return next((path.name for path in sorted(run.iterdir()) if not is_allowed(path)), None)


def _has_traces(run: Path) -> bool:
    """Whether the folder contains files that only a run writes."""
    has_checkpoints = any(any((run / "checkpoints").glob(pattern)) for pattern in ("step-*", ".step-*"))
    return (run / EVENTS).is_file() or (run / LOCK).is_file() or has_checkpoints or is_bundle(run / "bundle")


def _is_written_by_run(path: Path) -> bool:
    """Whether a run writes files or folders of this name, including temporary ones."""
    is_part = any(is_tmp(path, of=name) for name in _WRITTEN)
    return path.name in _WRITTEN or is_part or path.name.startswith((".bundle-", f".{LOCK}"))


def _check_config(run: Path) -> None:
    """Reject a `config.yaml` that was not written by a run, so that files of other programs are not overwritten."""
    try:
        read_config(run / CONFIG)
    except ConfigError as error:
        raise RunError(
            f"{run}: its {CONFIG} is not that of a run ({error}); choose another folder with --out"
        ) from None


def _is_written_first(path: Path) -> bool:
    """Whether a run writes this file before its config is complete: part of a config, its secrets, or the lock."""
    is_part = is_tmp(path, of=CONFIG) or is_tmp(path, of=SECRETS)
    return path.name in {f".{CONFIG}", SECRETS} or is_part or _is_lock(path)


def _is_lock(path: Path) -> bool:
    """Whether it is the lock file, the file that names its holder, or a temporary file of it."""
    return path.name.startswith((LOCK, f".{LOCK}"))


def check_inputs_outside(config: TrainConfig, folder: Path) -> None:
    """Check that no input of a run lies in the folder that the run or a study writes to.

    Raises:
        ConfigError: a local path of the data, `init` or the teacher lies in the folder.
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
                f"{folder}: contains an input of the run ({name}: {inside[0]}); choose another folder with --out"
            )


@contextmanager
def hold_run_folder(run: Path, *, overwrite: bool, resume: bool, ranks: Ranks) -> Iterator[None]:
    """Context manager that checks the folder (`check_run_folder`) and locks it for this run.

    The folder is created if it does not exist, and removed again if the block raises before it contains anything else. Rank 0
    acquires the lock for all ranks. The operating system releases it when rank 0 dies, so a killed run can be resumed at once.

    Raises:
        RunError: the folder may not be used; raised on all ranks.
        BusyError: another run is writing to the folder; raised on all ranks. The message names its process.
    """
    with ExitStack() as stack:
        created = ranks.run_on_rank0(lambda: _acquire(run, stack, overwrite=overwrite, resume=resume))
        try:
            yield
        except BaseException:
            if ranks.rank == 0:
                _remove_if_empty(run, created=created)
            raise


def _acquire(run: Path, stack: ExitStack, *, overwrite: bool, resume: bool) -> tuple[Path, ...]:
    """Lock the folder until `stack` is closed. Returns the folders that were created, the innermost first."""
    check_run_folder(run, overwrite=overwrite, resume=resume)
    created = tuple(folder for folder in (run, *run.parents) if not folder.exists())
    try:
        run.mkdir(parents=True, exist_ok=True)
        stack.enter_context(file_lock(run / LOCK, wait_s=0, what=run, advice=_ADVICE))
    except OSError as error:
        raise RunError(
            f"{run}: cannot be written ({error.strerror or error}); choose another folder with --out"
        ) from None
    check_run_folder(run, overwrite=overwrite, resume=resume)  # Another run may have started and ended in the meantime.
    return created


def _remove_if_empty(run: Path, *, created: tuple[Path, ...]) -> None:
    """If the folder contains only the lock, remove the lock and the folders that were created for this run."""
    with suppress(OSError):
        if all(map(_is_lock, run.iterdir())):
            for path in tuple(run.iterdir()):
                path.unlink()
            for folder in created:
                folder.rmdir()


def create_run_folder(run: Path) -> None:
    """Create the folder, or remove the files of an earlier run from it, except its lock and its config.

    The config is replaced later. Files that no run writes are not removed.
    """
    run.mkdir(parents=True, exist_ok=True)
    for path in filter(_is_written_by_run, tuple(run.iterdir())):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in _KEPT:
            path.unlink()


def clear_leftovers(run: Path) -> None:
    """Restore bundles that a killed process was replacing, and remove its temporary files. Checkpoints are not touched."""
    for old in run.glob(".bundle*-old"):
        restore_folder(old, run / old.name[1:].removesuffix("-old"))
    for tmp in run.glob(".bundle*-*"):
        shutil.rmtree(tmp, ignore_errors=True)
    clear_tmp(run)


def has_begun(run: Path) -> bool:
    """Whether the folder contains a checkpoint or a bundle. A run that was killed before its first checkpoint starts again."""
    checkpoints = (path for pattern in ("step-*", ".step-*.old") for path in (run / "checkpoints").glob(pattern))
    has_tokenizer = any((run / name).is_file() for name in TOKENIZER_FILES)
    return (has_tokenizer and any(checkpoints)) or (run / "bundle").exists()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run."""

    run: Path
    """The run folder."""
    bundle: Path | None
    """Folder of the trained model; None if the run was interrupted."""
    steps: int
    """Steps of the whole run, including those before it was resumed."""
    elapsed_s: float
    """Seconds of the whole run, including those before it was resumed."""
    retrieval: RetrievalReport | None = None
    """Retrieval on the whole validation split; None if the run was interrupted."""
    zero_shot: ZeroShotReport | None = None
    """Zero-shot accuracy on the whole validation split; None if the run was interrupted or has another metric."""
    num_skipped: int
    """Number of samples that could not be read."""
    data_wait: float
    """Share of the training time that was spent waiting for data, within [0, 1]."""
    seconds: dict[str, float]
    """Seconds spent on data, forward, backward, optimizer, evaluation and checkpoints, since the run was last resumed."""
    best_step: int | None
    """The step of `bundle-best`; None before the first validation."""
    stopped_early: bool = False
    """Whether the run ended because validation stopped improving."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run early. It can be resumed."""
        return self.bundle is None
