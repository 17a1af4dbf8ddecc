"""`diptych train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.output import console, say, warn
from diptych.cli.reports import print_retrieval, print_zero_shot
from diptych.cli.run_settings import as_settings, base_config, is_data, length, resolve
from diptych.core.errors import ConfigError
from diptych.core.program import command

if TYPE_CHECKING:
    from diptych.training.config import TrainConfig
    from diptych.training.run_folder import RunResult


def train(
    recipe: Annotated[
        str | None, Parameter(help="Name of the recipe; or pictures and captions, for which one is chosen.")
    ] = None,
    /,
    *,
    data: Annotated[
        str | None, Parameter(help="Pictures and captions, as kind:location, such as flickr30k:DIR.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Run folder; runs/RECIPE if not given.")] = None,
    preset: Annotated[
        str | None, Parameter(help="Another model than the recipe's; `diptych presets` lists them.")
    ] = None,
    init: Annotated[
        str | None, Parameter(help="Weights to start from: a bundle, or whatever `diptych import` reads.")
    ] = None,
    minutes: Annotated[float | None, Parameter(help="End after so much time, annealed.")] = None,
    epochs: Annotated[float | None, Parameter(help="End after so many passes over the data.")] = None,
    steps: Annotated[int | None, Parameter(help="End after so many steps.")] = None,
    max_samples: Annotated[int | None, Parameter(help="Train on at most so many samples.")] = None,
    skip_missing: Annotated[
        bool,
        Parameter(help="Leave out rows of a table whose image file is missing.", negative="", show_default=False),
    ] = False,
    batch_size: Annotated[int | None, Parameter(help="Pairs a step.")] = None,
    micro_batch: Annotated[
        int | None, Parameter(help="Pairs that go through the towers at once; divides the batch.")
    ] = None,
    lr: Annotated[float | None, Parameter(help="Peak learning rate.")] = None,
    precision: Annotated[str | None, Parameter(help="fp32, bf16 or fp16.")] = None,
    checkpoint_steps: Annotated[int | None, Parameter(help="Save every so many steps, too.")] = None,
    seed: Annotated[int | None, Parameter(help="Decides weights, order, augmentation and captions.")] = None,
    device: Annotated[str | None, Parameter(help="cpu, cuda, mps or auto.")] = None,
    config: Annotated[Path | None, Parameter(help="A config.yaml to run instead of a recipe.")] = None,
    resume: Annotated[Path | None, Parameter(help="Go on with the run in this folder.")] = None,
    accept_changed_data: Annotated[
        bool,
        Parameter(
            help="With --resume: continue although the data has changed since the checkpoint.",
            negative="",
            show_default=False,
        ),
    ] = False,
    check: Annotated[
        bool,
        Parameter(
            help="Only learn one batch by heart, which says whether anything can be learned.",
            negative="",
            show_default=False,
        ),
    ] = False,
    overwrite: Annotated[
        bool, Parameter(help="Replace the run that the folder holds.", negative="", show_default=False)
    ] = False,
    changes: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            negative="",
            help="Any setting by its path, such as optimizer.eps=1e-8; `--optimizer.eps 1e-8` works too.",
        ),
    ] = None,
) -> int:
    """Train a model: `diptych train DATA`, or from a recipe; `diptych recipes` lists them."""
    from diptych.training.config import read_run_config
    from diptych.training.run_folder import CONFIG, check_run_folder

    if recipe is not None and data is None and is_data(recipe):
        recipe, data = None, recipe
    options = {
        "init": init,
        "data.source": data,
        "data.max_samples": max_samples,
        "data.skip_missing": skip_missing or None,
        "batch_size": batch_size,
        "micro_batch": micro_batch,
        "precision": precision,
        "checkpoint.steps": checkpoint_steps,
        "optimizer.lr": lr,
        "seed": seed,
        "device": device,
    }
    given = {path: value for path, value in options.items() if value is not None}
    if resume is not None:
        others = (recipe, out, preset, minutes, epochs, steps, config, changes)
        if given or overwrite or check or any(value is not None for value in others):
            raise ConfigError("--resume goes on with a run as it is; give it nothing but the run's folder")
        check_run_folder(resume, overwrite=False, resume=True)
        return run_and_report(
            read_run_config(resume / CONFIG), resume, resume=True, accept_changed_data=accept_changed_data
        )
    if accept_changed_data:
        raise ConfigError("--accept-changed-data goes with --resume; a new run takes the data as it is")
    base = base_config(recipe, config, data, changes={**given, **as_settings(changes or [])})
    given |= length({"minutes": minutes, "epochs": epochs, "steps": steps})
    resolved = resolve(base, preset, given, changes or [])
    if check:
        return _check(resolved)
    return run_and_report(resolved, out or Path("runs") / resolved.recipe, overwrite=overwrite)


def run_and_report(
    config: "TrainConfig",
    run: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    accept_changed_data: bool = False,
) -> int:
    """Train with the live display, then print what came out. Of ranks that train together, the first speaks for all."""
    from diptych.core.distributed import all_ranks

    if all_ranks().rank:
        from diptych.training.run import train as run_training

        run_training(config, run, overwrite=overwrite, resume=resume, accept_changed_data=accept_changed_data)
        return 0
    result = train_with_display(
        config, run, overwrite=overwrite, resume=resume, accept_changed_data=accept_changed_data
    )
    if result.interrupted:
        say(f"Stopped at step {result.steps}, saved. Go on with: {command('train', '--resume', run)}")
        return 0
    assert result.retrieval is not None
    if result.zero_shot is None:
        print_retrieval(result.retrieval)
    else:
        print_zero_shot(result.zero_shot)
    say(f"Curves: {run / 'curves.png'}")
    best = "" if result.best_step is None else f"; best: {run / 'bundle-best'} (step {result.best_step:,})"
    say(f"Bundle: {result.bundle}{best}")
    return 0


def _check(config: "TrainConfig") -> int:
    """Learn one batch by heart and say how it went."""
    from diptych.cli.output import errors
    from diptych.training.overfit import self_check

    with errors().status("Learning one batch by heart ...") as status:
        result = self_check(
            config,
            on_step=lambda step, loss: status.update(f"Learning one batch by heart: step {step}, loss {loss:.3f}"),
        )
    figures = (
        f"{result.num_pairs} pairs by heart: loss {result.first_loss:.2f} -> {result.last_loss:.3f} in {result.steps} steps, "
        f"{result.seconds:.0f} s"
    )
    if result.learned:
        say(f"{figures}. The pipeline can learn: pictures, captions, tokenizer, towers and loss work together.")
        return 0
    say(f"{figures}. Below 0.05 it would have learned them.")
    say(result.diagnosis or "")
    return 1


def train_with_display(
    config: "TrainConfig",
    run: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    accept_changed_data: bool = False,
) -> "RunResult":
    """Train while a panel, or lines, tell how it goes; end with one line that sums it up."""
    from diptych.cli.train_display import Display
    from diptych.training.run import train as run_training

    display = Display(config.recipe, batch_size=config.batch_size, metric=config.validation.metric, console=console())
    try:
        result = run_training(
            config,
            run,
            overwrite=overwrite,
            resume=resume,
            accept_changed_data=accept_changed_data,
            observers=[display],
        )
    finally:
        display.close()
    rate = result.steps * config.batch_size / max(result.elapsed_s, 1e-9)
    say(
        f"{result.steps:,} steps in {result.elapsed_s:.0f} s, {rate:,.0f} pairs/s; waited for data {result.data_wait:.1%}"
    )
    say(_where_time_went(result.seconds), style="dim")
    if result.stopped_early:
        say("Ended early: validation no longer got better (validation.patience)")
    if result.num_skipped:
        warn(f"{result.num_skipped} unreadable samples were replaced; they are listed in {run / 'skipped.jsonl'}")
    return result


def _where_time_went(seconds: dict[str, float]) -> str:
    total = sum(seconds.values()) or 1.0
    return "Time: " + ", ".join(f"{name} {spent / total:.0%}" for name, spent in seconds.items())


def dotted_to_set(words: Sequence[str]) -> list[str]:
    """`--optimizer.lr 1e-3` and `--optimizer.lr=1e-3` as `--set optimizer.lr=1e-3`. Words after `--` are file names.

    >>> dotted_to_set(["train", "demo", "--optimizer.lr", "1e-3"])
    ['train', 'demo', '--set', 'optimizer.lr=1e-3']
    >>> dotted_to_set(["search", "index", "--", "--help.jpg"])
    ['search', 'index', '--', '--help.jpg']
    """
    out: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*out, word, *rest]
        name, equals, value = word.partition("=")
        if name.startswith("--") and "." in name and " " not in name:
            new = value if equals else next(rest, None)
            if new is None:
                raise ConfigError(f"{name} needs a value")
            out += ["--set", f"{name[2:].replace('-', '_')}={new}"]
        else:
            out.append(word)
    return out
