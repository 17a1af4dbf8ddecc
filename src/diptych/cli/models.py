"""`diptych presets` and `diptych recipes`: list the available models and training recipes."""

from collections.abc import Sequence
from textwrap import shorten

from diptych.cli.output import Json, errors, print_facts, print_json, print_line, print_table
from diptych.core.program import command


def presets(*, as_json: Json = False) -> None:
    """List the model presets with their numbers of parameters and multiply-adds."""
    from diptych.images.transforms import size_name
    from diptych.models.size import model_size
    from diptych.presets import PRESETS

    with errors().status(f"Counting {len(PRESETS)} models ..."):
        sizes = {name: model_size(config) for name, config in PRESETS.items()}
    if as_json:
        print_json(sizes)
        return
    rows = [
        [
            name,
            f"{size.parameters:,}",
            _short(size.image_multiply_adds),
            _short(size.text_multiply_adds),
            f"{size_name(PRESETS[name].image.image_px)} px",
            str(PRESETS[name].text.context_length),
        ]
        for name, size in sizes.items()
    ]
    print_table("Presets", ["name", "parameters", "per image", "per text", "image", "context"], rows)


def recipes(*, as_json: Json = False) -> None:
    """List the training recipes for `diptych train`, and which libraries can load the models that they train."""
    from diptych.bundle.libraries import library_reasons
    from diptych.recipes.recipe import RECIPES

    first_lines = {name: (make.__doc__ or "").strip().splitlines()[0] for name, make in RECIPES.items()}
    reasons = {name: library_reasons(make().model) for name, make in RECIPES.items()}
    if as_json:
        print_json({name: {"description": line, "cannot_load": reasons[name]} for name, line in first_lines.items()})
        return
    print_facts("Recipes", first_lines)
    rows = [[name, *map(_loads, by_library.values())] for name, by_library in reasons.items()]
    print_table(
        "Libraries that load the model, or why they cannot", ["name", "ONNX", "Hugging Face", "open_clip"], rows
    )
    print_line()
    print_line(f"Export a model:  {command('export', 'BUNDLE', '--to', 'onnx', '--out', 'DIR')}")


def _loads(reasons: Sequence[str]) -> str:
    """A cell of the table: "yes", or the first reason and the number of others, in at most 24 characters."""
    if not reasons:
        return "yes"
    first = reasons[0].removeprefix("its ").replace("text tower's", "text").removesuffix(" tower")
    more = f" +{len(reasons) - 1}" if len(reasons) > 1 else ""
    return shorten(first, 24 - len(more), placeholder="...") + more


def _short(count: int) -> str:
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"
