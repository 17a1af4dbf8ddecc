"""`diptych train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, Unpack

from cyclopts import Parameter

from diptych.cli.output import console, print_line, warn
from diptych.cli.reports import print_retrieval, print_zero_shot
from diptych.cli.run_settings import as_settings, base_config, is_data, length, resolve
from diptych.core.errors import ConfigError
from diptych.core.program import command

if TYPE_CHECKING:
    from diptych.training.config import TrainConfig
    from diptych.training.run_folder import RunResult


class RunFlags(TypedDict, total=False):
    """What to do if the run folder contains a run; see `diptych.training.run.train`."""

    overwrite: bool
    resume: bool
    accept_changed_data: bool


def train(
    recipe: Annotated[
        str | None, Parameter(help="Name of a recipe, or a dataset, for which a recipe is selected.")
    ] = None,
    /,
    *,
    data: Annotated[
        str | None, Parameter(help="Dataset of images and captions as kind:location, such as flickr30k:DIR.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Run folder. Default: runs/RECIPE.")] = None,
    preset: Annotated[
        str | None, Parameter(help="Model to use instead of the recipe's. `diptych presets` lists all.")
    ] = None,
    init: Annotated[
        str | None, Parameter(help="Initial weights: a bundle, or any model that `diptych import` reads.")
    ] = None,
    minutes: Annotated[float | None, Parameter(help="Training time in minutes.")] = None,
    epochs: Annotated[float | None, Parameter(help="Number of epochs.")] = None,
    steps: Annotated[int | None, Parameter(help="Number of steps.")] = None,
    max_samples: Annotated[int | None, Parameter(help="Maximum number of training samples.")] = None,
    skip_missing: Annotated[bool, Parameter(help="Skip rows of a table whose image file is missing.")] = False,
    batch_size: Annotated[int | None, Parameter(help="Number of pairs per step.")] = None,
    micro_batch: Annotated[
        int | None, Parameter(help="Number of pairs per forward pass. It must divide the batch size.")
    ] = None,
    lr: Annotated[float | None, Parameter(help="Peak learning rate.")] = None,
    precision: Annotated[str | None, Parameter(help="Precision: auto, fp32, bf16 or fp16.")] = None,
    checkpoint_steps: Annotated[int | None, Parameter(help="Also save a checkpoint every N steps.")] = None,
    seed: Annotated[int | None, Parameter(help="Random seed of weights, order, crops and captions.")] = None,
    device: Annotated[str | None, Parameter(help="Device: cpu, cuda, mps or auto.")] = None,
    config: Annotated[Path | None, Parameter(help="Config file (config.yaml) to run instead of a recipe.")] = None,
    resume: Annotated[Path | None, Parameter(help="Resume the run in this folder.")] = None,
    accept_changed_data: Annotated[
        bool, Parameter(help="With --resume: continue even if the data has changed since the checkpoint.")
    ] = False,
    check: Annotated[bool, Parameter(help="Only overfit one batch, to verify that the model can learn.")] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an existing run in the run folder.")] = False,
    changes: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            help="Change a setting by its path, such as optimizer.eps=1e-8. `--optimizer.eps 1e-8` works, too.",
        ),
    ] = None,
) -> int:
    """Train a model on a dataset, with a recipe. `diptych recipes` lists all recipes."""
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
            raise ConfigError("--resume continues a run with its own settings; it excludes all other options")
        check_run_folder(resume, overwrite=False, resume=True)
        saved = read_run_config(resume / CONFIG)
        return _run_and_report(saved, resume, resume=True, accept_changed_data=accept_changed_data)
    if accept_changed_data:
        raise ConfigError("--accept-changed-data needs --resume; a new run always uses the current data")
    base = base_config(recipe, config, data, changes={**given, **as_settings(changes or [])})
    given |= length({"minutes": minutes, "epochs": epochs, "steps": steps})
    resolved = resolve(base, preset, given, changes or [])
    if check:
        return _check(resolved)
    return _run_and_report(resolved, out or Path("runs") / resolved.recipe, overwrite=overwrite)


def _run_and_report(config: "TrainConfig", run: Path, **flags: Unpack[RunFlags]) -> int:
    """Train with a progress display, then print the results. Under torchrun, only rank 0 prints. Returns the exit code."""
    from diptych.device.distributed import all_ranks

    if all_ranks().rank:
        from diptych.training.run import train as run_training

        run_training(config, run, **flags)
        return 0
    result = train_with_display(config, run, **flags)
    if result.interrupted:
        print_line(f"Stopped at step {result.steps}, saved. Continue with: {command('train', '--resume', run)}")
        return 0
    assert result.retrieval is not None
    if result.zero_shot is None:
        print_retrieval(result.retrieval)
    else:
        print_zero_shot(result.zero_shot)
    print_line(f"Curves: {run / 'curves.png'}")
    best = "" if result.best_step is None else f"; best: {run / 'bundle-best'} (step {result.best_step:,})"
    print_line(f"Bundle: {result.bundle}{best}")
    return 0


def _check(config: "TrainConfig") -> int:
    """Overfit one batch, and print whether the model memorizes it. Returns the exit code."""
    from diptych.cli.output import errors
    from diptych.training.overfit import overfit_one_batch

    with errors().status("Overfitting one batch ...") as status:
        result = overfit_one_batch(
            config, on_step=lambda step, loss: status.update(f"Overfitting one batch: step {step}, loss {loss:.3f}")
        )
    metrics = (
        f"Overfit {result.num_pairs} pairs: loss {result.first_loss:.2f} -> {result.last_loss:.3f} in {result.steps} steps, "
        f"{result.seconds:.0f} s"
    )
    if result.learned:
        print_line(f"{metrics}. The model can learn: images, captions, tokenizer, towers and loss work together.")
        return 0
    print_line(f"{metrics}. The model memorizes the batch if the loss falls below 0.05.")
    print_line(result.diagnosis or "")
    return 1


def train_with_display(config: "TrainConfig", run: Path, **flags: Unpack[RunFlags]) -> "RunResult":
    """Train with a progress display, then print a summary of speed and time.

    Args:
        config: the run.
        run: the run folder.
        flags: what to do if the run folder contains a run.
    """
    from diptych.cli.train_display import Display
    from diptych.training.run import train as run_training

    display = Display(config.recipe, batch_size=config.batch_size, metric=config.validation.metric, console=console())
    try:
        result = run_training(config, run, observers=[display], **flags)
    finally:
        display.close()
    rate = result.steps * config.batch_size / max(result.elapsed_s, 1e-9)
    print_line(
        f"{result.steps:,} steps in {result.elapsed_s:.0f} s, {rate:,.0f} pairs/s; waited for data {result.data_wait:.1%}"
    )
    total_s = sum(result.seconds.values()) or 1.0
    shares = ", ".join(f"{name} {seconds / total_s:.0%}" for name, seconds in result.seconds.items())
    print_line(f"Time: {shares}", style="dim")
    if result.stopped_early:
        print_line("Stopped early: the validation metric no longer improved (validation.patience)")
    if result.num_skipped:
        warn(f"{result.num_skipped} unreadable samples were replaced; they are listed in {run / 'skipped.jsonl'}")
    return result


def dotted_to_set(words: Sequence[str]) -> list[str]:
    """Replace options with dotted names by `--set`. Words after `--` are file names, and stay unchanged.

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
