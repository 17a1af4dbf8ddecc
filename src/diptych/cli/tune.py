"""`diptych tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.output import say
from diptych.cli.run_settings import as_settings, base_config, length, resolve
from diptych.core.errors import ConfigError
from diptych.core.program import command

if TYPE_CHECKING:
    from diptych.training.config import TrainConfig


def tune(
    recipe: Annotated[str | None, Parameter(help="Name of the recipe to tune.")] = None,
    /,
    *,
    data: Annotated[
        str | None, Parameter(help="Pictures and captions, as kind:location, such as flickr30k:DIR.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Folder of the study; runs/tune-RECIPE if not given.")] = None,
    trials: Annotated[int, Parameter(help="Settings to try, the recipe's own among them.")] = 10,
    minutes: Annotated[float | None, Parameter(help="Each trial's length in minutes.")] = None,
    epochs: Annotated[float | None, Parameter(help="Each trial's length in passes over the data.")] = None,
    steps: Annotated[int | None, Parameter(help="Each trial's length in steps.")] = None,
    priority: Annotated[
        Literal["high", "medium", "low"],
        Parameter(help="How far down the list of what matters: rates and batch, then sizes and dropout, then shapes."),
    ] = "high",
    space: Annotated[Path | None, Parameter(help="YAML file of what to try, instead of --priority.")] = None,
    metric: Annotated[
        str | None,
        Parameter(
            help="recall, map, loss or zero_shot, on the validation split; the recipe's if not given, but map for recall: "
            "models of short trials seldom find the right partner first."
        ),
    ] = None,
    sampler: Annotated[
        Literal["tpe", "random", "gp", "qmc"], Parameter(help="Who proposes: Optuna's sampler of this name.")
    ] = "tpe",
    pruner: Annotated[
        Literal["hyperband", "median", "none"], Parameter(help="Who ends hopeless trials early.")
    ] = "hyperband",
    repeats: Annotated[int, Parameter(help="Other seeds with which the best settings are trained again.")] = 2,
    storage: Annotated[
        str | None,
        Parameter(
            help="postgresql://USER@HOST/DATABASE, which several machines share; SQLite in the folder if not given."
        ),
    ] = None,
    preset: Annotated[str | None, Parameter(help="Another model than the recipe's.")] = None,
    max_samples: Annotated[int | None, Parameter(help="Train on at most so many samples.")] = None,
    seed: Annotated[int | None, Parameter(help="Decides trials, and in each of them weights and order.")] = None,
    config: Annotated[Path | None, Parameter(help="A config.yaml to tune instead of a recipe.")] = None,
    show: Annotated[Path | None, Parameter(help="Only print how the study in this folder stands.")] = None,
    changes: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            negative="",
            help="Any setting of all trials, such as precision=bf16; `--precision bf16` works too.",
        ),
    ] = None,
) -> int:
    """Find the settings for this data: many short trainings, the recipe's own settings the first. Needs diptych[tune].

    The same command again goes on; on other machines with the same --storage it joins in.
    """
    _check_installed()
    from diptych.cli.tune_display import TuneDisplay, print_study
    from diptych.tuning.results import write_results
    from diptych.tuning.spaces import default_dimensions, read_dimensions
    from diptych.tuning.storage import StudyLostError
    from diptych.tuning.study_folder import create_study_folder, prepare_space, read_study
    from diptych.tuning.trial import InterruptedTrialError
    from diptych.tuning.tune import TuneOptions
    from diptych.tuning.tune import tune as run_study

    if show is not None:
        print_study(*read_study(show, storage=storage))
        return 0
    if trials < 1 or repeats < 0:
        raise ConfigError(f"--trials is {trials} and --repeats {repeats}; they must be at least 1 and 0")
    given = {"data.source": data, "data.max_samples": max_samples, "seed": seed, "validation.metric": metric}
    options = {path: value for path, value in given.items() if value is not None}
    options |= length({"minutes": minutes, "epochs": epochs, "steps": steps}) | as_settings(changes or [])
    base = resolve(base_config(recipe, config, data, changes=options), preset, options, [])
    if metric is None and base.validation.metric == "recall":
        base = resolve(base, None, {"validation.metric": "map"}, [])
    folder = _study_folder(out, base)
    tried = prepare_space(base, read_dimensions(space) if space else default_dimensions(base, priority), say)
    create_study_folder(folder, storage=storage)
    display = TuneDisplay(tried, folder, trials=trials + repeats)
    try:
        how = TuneOptions(trials=trials, sampler=sampler, pruner=pruner, repeats=repeats, storage=storage)
        found = run_study(tried, folder, options=how, observer=display)
    except (InterruptedTrialError, KeyboardInterrupt, StudyLostError) as error:
        display.end()
        write_results(folder, tried, display.rows)  # Of the trials that are known.
        if isinstance(error, StudyLostError):
            raise
        say("Stopped; the same command continues.")
        return 0
    finally:
        display.end()
    write_results(folder, tried, found)
    print_study(tried, found)
    say(f"Results: {folder}; run the best settings: {command('train', '--config', folder / 'best_config.yaml')}")
    return 0


def _study_folder(out: Path | None, base: "TrainConfig") -> Path:
    from diptych.training.run_folder import check_inputs_outside

    folder = out or Path("runs") / f"tune-{base.recipe}"
    check_inputs_outside(base, folder)
    return folder


def _check_installed() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ConfigError("tuning needs Optuna: pip install 'diptych[tune]'") from None
