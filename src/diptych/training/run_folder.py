"""The folder of a run: who may write it, and what lies where."""

import shutil
from pathlib import Path

from diptych.core.errors import RunError

CONFIG, TOKENIZER, SKIPPED = "config.yaml", "tokenizer.json", "skipped.jsonl"


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
    if run.is_dir() and not holds_run and any(run.iterdir()):
        raise RunError(f"{run}: is not empty and holds no run; choose another folder with --out")


def create_run_folder(run: Path) -> None:
    """An empty run folder; an older run in it is gone."""
    if run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True)


def has_begun(run: Path) -> bool:
    """Whether there is more of a run than its beginning: one killed before its first checkpoint starts again."""
    has_checkpoint = (run / TOKENIZER).is_file() and any((run / "checkpoints").glob("step-*"))
    return has_checkpoint or (run / "bundle").exists()
