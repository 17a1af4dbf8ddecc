"""Figures for Weights & Biases and trackio, whose calls are alike: extras that a run has only if its config names them."""

import secrets
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from diptych.core.errors import ConfigError
from diptych.core.files import write_text
from diptych.training.config import LogsConfig
from diptych.training.report.events import StepReport
from diptych.training.validation import Validation

_ID = "tracked-as.txt"


class Tracker:
    """Passes figures on. A run that goes on, goes on there, too; of steps that are done again the first figures stay."""

    def __init__(self, kind: str, run: Path, *, project: str, config: Mapping[str, Any], every_steps: int = 5) -> None:
        """Begin, or go on.

        Raises:
            ConfigError: the package is missing, or will not begin.
        """
        self._module = _module(kind)
        name = f"{run.resolve().name}-{_id(run)}"
        more = {"id": name, "dir": str(run)} if kind == "wandb" else {}
        try:
            self._module.init(project=project, name=name, config=dict(config), resume="allow", **more)
        except Exception as error:  # Theirs have no common base.
            raise ConfigError(f"logs.trackers: {kind} does not begin ({error})") from None
        self._every_steps = every_steps

    def on_step(self, report: StepReport) -> None:
        """Pass on every few steps."""
        if report.step % self._every_steps and report.step > 1:
            return
        result = report.result
        self._log(
            report.step,
            {
                "train/loss": result.loss,
                "train/image_to_text": result.image_to_text,
                "train/text_to_image": result.text_to_image,
                "train/logit_scale": result.logit_scale,
                "train/grad_norm": result.grad_norm,
                "train/lr": report.lr,
                "train/epoch": report.epoch,
                "train/pairs_per_s": report.pairs_per_s,
                **({} if result.teacher_loss is None else {"train/teacher_loss": result.teacher_loss}),
            },
        )

    def on_validation(self, step: int, validation: Validation) -> None:
        """Pass on."""
        self._log(step, {f"validation/{name[4:]}": value for name, value in validation.figures().items()})

    def on_message(self, text: str) -> None:
        """Messages are for the log and the terminal."""

    def close(self) -> None:
        """End it."""
        _as_os_error(self._module.finish)

    def _log(self, step: int, figures: Mapping[str, float]) -> None:
        _as_os_error(lambda: self._module.log(dict(figures), step=step))


def check_trackers(config: LogsConfig) -> None:
    """Refuse trackers whose packages are missing.

    Raises:
        ConfigError: one is.
    """
    for kind in config.trackers:
        _module(kind)


def _module(kind: str) -> Any:
    try:
        return import_module(kind)
    except ImportError:
        raise ConfigError(f"logs.trackers has {kind}, which is not installed: pip install 'diptych[{kind}]'") from None


def _as_os_error(action: Callable[[], Any]) -> None:
    """Theirs have no common base; whatever it is, the run goes on without them."""
    try:
        action()
    except Exception as error:
        raise OSError(str(error)) from error


def _id(run: Path) -> str:
    """What tells this run from others of its name; a run that goes on has it already."""
    place = run / _ID
    if not place.exists():
        write_text(place, secrets.token_hex(4))
    return place.read_text(encoding="utf-8")
