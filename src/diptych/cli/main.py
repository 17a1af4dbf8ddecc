"""The `diptych` program: its commands, and how it reports errors."""

import math
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Parameter

import diptych
from diptych.cli.check_model import check_model
from diptych.cli.data import audit, pack, shards, show
from diptych.cli.demo import demo
from diptych.cli.evaluate import compare, knn, probe, retrieval, robustness, zero_shot
from diptych.cli.index import add, build, compact, duplicates, merge, remove, stats, verify
from diptych.cli.inference import classify, explain, rank_images, rank_texts, similarity
from diptych.cli.models import presets, recipes
from diptych.cli.output import escape_unencodable, print_traceback, warn
from diptych.cli.push import push
from diptych.cli.search import search
from diptych.cli.serve import serve, serve_runs
from diptych.cli.train import dotted_to_set, train
from diptych.cli.tune import tune
from diptych.cli.weights import export, import_model
from diptych.core.address import redacted
from diptych.core.errors import DiptychError, DiptychWarning
from diptych.core.extras import missing_extra
from diptych.core.program import command
from diptych.core.terminal import visible


def _check_finite(_: object, value: Any) -> None:
    """Reject option values that are or contain NaN or infinity.

    Raises:
        ValueError: a value is not finite.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, float) and not math.isfinite(one) for one in values):
        raise ValueError("it must be a finite number")


def _shown_default(value: Any) -> str | None:
    """The default of an option as shown in the help; None for options that have no default or are off by default."""
    return None if value is None or value is False else str(value)


app = App(
    name="diptych",
    help=f"Train, evaluate, search with and serve CLIP models. Start with: {command('demo')}",
    version=diptych.__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(validator=_check_finite, negative="", show_default=_shown_default),
)
evaluate_app = App(name="evaluate", help="Evaluate a model on a dataset.")
data_app = App(name="data", help="Inspect and convert datasets.")
index_app = App(name="index", help="Create and maintain a search index of images.")
runs_app = App(name="runs", help="Inspect training runs.")
runs_app.command(serve_runs, name="serve")
app.command(import_model, name="import")
_COMMANDS: tuple[tuple[App, tuple[Any, ...]], ...] = (
    (
        app,
        (
            demo,
            train,
            tune,
            evaluate_app,
            data_app,
            index_app,
            runs_app,
            search,
            serve,
            export,
            push,
            check_model,
            presets,
            recipes,
        ),
    ),
    (app, (similarity, explain, classify, rank_images, rank_texts)),
    (data_app, (audit, show, pack, shards)),
    (evaluate_app, (retrieval, zero_shot, probe, knn, robustness, compare)),
    (index_app, (add, merge, build, stats, verify, remove, compact, duplicates)),
)
for _group, _commands in _COMMANDS:
    for _each in _commands:
        _group.command(_each)


def _show_warning(message: Warning | str, category: type[Warning], *location: Any, **options: Any) -> None:
    """Print a warning without control characters and secrets: warnings of Diptych on one line, others in Python's format."""
    if issubclass(category, DiptychWarning):
        warn(str(message))
    else:
        text = visible(redacted(str(message)), keep="\n")
        _default_showwarning(message if text == str(message) else text, category, *location, **options)


def _is_distributed() -> bool:
    """Whether torchrun started this process together with others. `device/launch.py` is not used: it imports PyTorch."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _process_group() -> AbstractContextManager[object]:
    """A context that joins the other processes of torchrun; it does nothing in a single process."""
    if not _is_distributed():
        return nullcontext()
    from diptych.device.launch import joined_ranks

    return joined_ranks()


_default_showwarning = warnings.showwarning


def main(tokens: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        tokens: the words of the command line; those of this process if None.

    Returns:
        The exit code. It is 2 after an error that the user can fix, which is printed as one line on standard error.
    """
    words = list(sys.argv[1:] if tokens is None else tokens)
    warnings.showwarning = _show_warning
    escape_unencodable()
    try:
        with _process_group() if words[:1] == ["train"] else nullcontext():
            code = app(dotted_to_set(words), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        missing = missing_extra(error, f"`diptych {' '.join(words[:1])}`")
        if missing is None:
            raise
        warn(str(missing))
        return 2
    except (CycloptsError, DiptychError) as error:
        warn(str(error))
        return 2
    except KeyboardInterrupt:
        warn("interrupted")
        return 130
    except BrokenPipeError:  # `diptych ... | head`
        sys.stderr.close()
        return 0
    finally:
        warnings.showwarning = _default_showwarning
    return code if isinstance(code, int) else 0


def run() -> NoReturn:
    """Run the command of this process, then exit. This is the entry point of the `diptych` script."""
    sys.excepthook = print_traceback
    code = main()
    if _is_distributed():
        from diptych.device.launch import leave

        leave(code)
    sys.exit(code)
