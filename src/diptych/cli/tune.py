"""`diptych tune`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from diptych.cli.output import print_line
from diptych.cli.run_settings import as_settings, base_config, length, resolve
from diptych.core.errors import ConfigError
from diptych.core.program import command


def tune(
    recipe: Annotated[str | None, Parameter(help="Name of the recipe to tune.")] = None,
    /,
    *,
    data: Annotated[
        str | None, Parameter(help="Dataset of images and captions as kind:location, such as flickr30k:DIR.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Folder of the study. Default: runs/tune-RECIPE.")] = None,
    trials: Annotated[int, Parameter(help="Number of trials, including one with the recipe's own settings.")] = 10,
    minutes: Annotated[float | None, Parameter(help="Length of each trial in minutes.")] = None,
    epochs: Annotated[float | None, Parameter(help="Length of each trial in epochs.")] = None,
    steps: Annotated[int | None, Parameter(help="Length of each trial in steps.")] = None,
    priority: Annotated[
        Literal["high", "medium", "low"],
        Parameter(
            help="Settings to tune: high for learning rates and batch size, medium adds sizes and dropout, low adds shapes."
        ),
    ] = "high",
    space: Annotated[
        Path | None, Parameter(help="YAML file with the search space, used instead of --priority.")
    ] = None,
    metric: Annotated[
        str | None,
        Parameter(
            help="Validation metric to optimize: recall, map, loss or zero_shot. Default: the recipe's metric, but map "
            "instead of recall, which changes too little in short trials."
        ),
    ] = None,
    sampler: Annotated[
        Literal["tpe", "random", "gp", "qmc"], Parameter(help="Optuna sampler that proposes the settings.")
    ] = "tpe",
    pruner: Annotated[
        Literal["hyperband", "median", "none"], Parameter(help="Optuna pruner that stops poor trials early.")
    ] = "hyperband",
    repeats: Annotated[int, Parameter(help="Number of further seeds to train the best settings with.")] = 2,
    storage: Annotated[
        str | None,
        Parameter(
            help="Database shared by several machines, as postgresql://USER@HOST/DATABASE. Default: SQLite in the folder."
        ),
    ] = None,
    preset: Annotated[str | None, Parameter(help="Model to use instead of the recipe's.")] = None,
    max_samples: Annotated[int | None, Parameter(help="Maximum number of training samples.")] = None,
    seed: Annotated[int | None, Parameter(help="Random seed of the trials, and of training within them.")] = None,
    config: Annotated[Path | None, Parameter(help="Config file (config.yaml) to tune instead of a recipe.")] = None,
    show: Annotated[Path | None, Parameter(help="Print the results of the study in this folder, and exit.")] = None,
    changes: Annotated[
        list[str] | None,
        Parameter(
            name="--set", help="Change a setting of all trials, such as precision=bf16. `--precision bf16` works, too."
        ),
    ] = None,
) -> int:
    """Tune the hyperparameters for a dataset with many short training runs. Needs diptych[tune].

    The first trial has the settings of the recipe. Run the same command again to continue a study, or on other machines with
    the same --storage to share it.
    """
    _check_installed()
    from diptych.cli.tune_display import TuneDisplay, print_study
    from diptych.training.run_folder import check_inputs_outside
    from diptych.tuning import tune as tuning
    from diptych.tuning.results import write_results
    from diptych.tuning.spaces import default_dimensions, read_dimensions
    from diptych.tuning.storage import StudyLostError
    from diptych.tuning.study_folder import create_study_folder, prepare_space, read_study
    from diptych.tuning.trial import InterruptedTrialError

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
    folder = out or Path("runs") / f"tune-{base.recipe}"
    check_inputs_outside(base, folder)
    search_space = prepare_space(
        base, read_dimensions(space) if space else default_dimensions(base, priority), print_line
    )
    create_study_folder(folder, storage=storage)
    display = TuneDisplay(search_space, folder, trials=trials + repeats)
    try:
        search = tuning.TuneOptions(trials=trials, sampler=sampler, pruner=pruner, repeats=repeats, storage=storage)
        rows = tuning.tune(search_space, folder, options=search, observer=display)
    except (InterruptedTrialError, KeyboardInterrupt, StudyLostError) as error:
        display.end()
        write_results(folder, search_space, display.rows)  # The trials up to the interruption.
        if isinstance(error, StudyLostError):
            raise
        print_line("Stopped. Run the same command to continue.")
        return 0
    finally:
        display.end()
    write_results(folder, search_space, rows)
    print_study(search_space, rows)
    print_line(f"Results: {folder}; run the best settings: {command('train', '--config', folder / 'best_config.yaml')}")
    return 0


def _check_installed() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ConfigError("tuning needs Optuna: pip install 'diptych[tune]'") from None
