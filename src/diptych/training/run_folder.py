"""The folder of a run: who may write it, and what lies where."""

import shutil
from pathlib import Path

from diptych.core.errors import RunError
from diptych.core.files import is_tmp, restore_folder

CONFIG, TOKENIZER, SKIPPED = "config.yaml", "tokenizer.json", "skipped.jsonl"
SECRETS = "secrets.yaml"
"""What was left out of the addresses in `config.yaml`; only its owner may read it."""


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
    if (
        run.is_dir()
        and not holds_run
        and any(path.name not in {f".{CONFIG}", SECRETS} and not is_tmp(path, of=CONFIG) for path in run.iterdir())
    ):
        raise RunError(f"{run}: is not empty and holds no run; choose another folder with --out")


def create_run_folder(run: Path) -> None:
    """A folder with no more in it than an older run's config, which waits to be replaced: the folder is a run's all along."""
    run.mkdir(parents=True, exist_ok=True)
    for path in run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != CONFIG:
            path.unlink()


def clear_leftovers(run: Path) -> None:
    """Finish or undo what a killed process left of its bundles; checkpoints see to themselves."""
    for old in run.glob(".bundle*-old"):
        place = run / old.name[1:].removesuffix("-old")
        restore_folder(old, place)
    for left in run.glob(".bundle*-*"):
        shutil.rmtree(left, ignore_errors=True)


def has_begun(run: Path) -> bool:
    """Whether there is more of a run than its beginning: one killed before its first checkpoint starts again."""
    places = (path for pattern in ("step-*", ".step-*.old") for path in (run / "checkpoints").glob(pattern))
    return ((run / TOKENIZER).is_file() and any(places)) or (run / "bundle").exists()
