"""`diptych presets` and `diptych recipes`: list the available models and training recipes."""

from diptych.cli.output import Json, errors, print_json, print_table


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
    """List the training recipes for `diptych train`."""
    from diptych.recipes.recipe import RECIPES

    first_lines = {name: (make.__doc__ or "").strip().splitlines()[0] for name, make in RECIPES.items()}
    if as_json:
        print_json(first_lines)
        return
    print_table("Recipes", ["name", "description"], [[name, line] for name, line in first_lines.items()])


def _short(count: int) -> str:
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"
