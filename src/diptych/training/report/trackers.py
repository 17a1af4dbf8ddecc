"""Sends metrics to Weights & Biases or trackio, which share one API. Both are optional and enabled by the config."""

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
_STEP_METRICS = (
    *("loss", "image_to_text", "text_to_image", "logit_scale", "grad_norm", "lr", "epoch", "pairs_per_s"),
    *("teacher_loss", "utilization", "peak_memory_bytes"),
)
"""Metrics of a step that are logged, as named in `StepReport` and `StepResult`. A metric that is None is left out."""


class Tracker:
    """Observer that logs to an experiment tracker. A resumed run continues its record; repeated steps keep their first values.

    Args:
        kind: `wandb` or `trackio`.
        run: the run folder, which stores the id of the record.
        project: name of the project.
        config: config of the run as plain data, without secrets.
        every_steps: interval of logged steps.

    Raises:
        ConfigError: the package is not installed, or cannot be started.
    """

    def __init__(self, kind: str, run: Path, *, project: str, config: Mapping[str, Any], every_steps: int = 5) -> None:
        self._module = _module(kind)
        name = f"{run.resolve().name}-{_id(run)}"
        more = {"id": name, "dir": str(run)} if kind == "wandb" else {}
        try:
            self._module.init(project=project, name=name, config=dict(config), resume="allow", **more)
        except Exception as error:  # The exceptions of trackers have no common base class.
            raise ConfigError(f"logs.trackers: {kind} cannot be started ({error})") from None
        self._every_steps = every_steps

    def on_step(self, report: StepReport) -> None:
        """Log the first step and every `every_steps` steps."""
        if report.step % self._every_steps and report.step > 1:
            return
        values = {**vars(report), **report.result.metrics}
        self._log(report.step, {f"train/{name}": values[name] for name in _STEP_METRICS if name in values})

    def on_validation(self, step: int, validation: Validation) -> None:
        """Log the metrics of a validation."""
        self._log(step, {f"validation/{name[4:]}": value for name, value in validation.metrics().items()})

    def on_message(self, text: str) -> None:
        """Do nothing: trackers get no messages."""

    def close(self) -> None:
        """Finish the record."""
        _as_os_error(self._module.finish)

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        _as_os_error(lambda: self._module.log(dict(metrics), step=step))


def check_trackers(config: LogsConfig) -> None:
    """Check that the packages of all trackers are installed.

    Raises:
        ConfigError: a package is not installed.
    """
    for kind in config.trackers:
        _module(kind)


def _module(kind: str) -> Any:
    try:
        return import_module(kind)
    except ImportError:
        raise ConfigError(f"logs.trackers has {kind}, which is not installed: pip install 'diptych[{kind}]'") from None


def _as_os_error(action: Callable[[], Any]) -> None:
    """Convert any exception of a tracker to an OSError, so that the run continues without it."""
    try:
        action()
    except Exception as error:
        raise OSError(str(error)) from error


def _id(run: Path) -> str:
    """The id that distinguishes a run from others of the same name, stored in its folder; a new one if there is none."""
    path = run / _ID
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")
