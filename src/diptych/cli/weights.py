"""`diptych import` and `diptych export`: a model in from other libraries, and out to them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.output import print_facts, say
from diptych.core.errors import ConfigError
from diptych.core.program import command

if TYPE_CHECKING:
    from diptych.bundle.folder import Bundle

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
Target = Literal["open-clip", "hugging-face"]


def import_model(
    path: Annotated[
        str,
        Parameter(help="Model folder of open_clip or Hugging Face, file of weights in OpenAI's naming, or hf:ID."),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Bundle folder to write.")],
    activation: Annotated[
        Activation | None, Parameter(help="What a bare file of weights was trained with, if it does not say.")
    ] = None,
    preset: Annotated[
        str | None, Parameter(help="Architecture of a bare file of weights, where its tensors do not tell.")
    ] = None,
    image_px: Annotated[
        int | None, Parameter(help="Resize the position embeddings for pictures of this size.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, Parameter(help="Replace a bundle that is there.", negative="")] = False,
) -> None:
    """Make a bundle from another library's model."""
    from diptych.bundle.folder import save_bundle
    from diptych.bundle.open_bundle import open_bundle

    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: is there already; choose another --out, or --overwrite")
    if out.exists():
        _check_replaceable(path, out)
    bundle = open_bundle(path, activation=activation, preset=preset, image_px=image_px, verify="full")
    save_bundle(bundle, out)
    print_facts(str(out), _facts(bundle))
    say(f"Use it:  {command('similarity', out, 'photo.jpg', 'a dog', 'a cat')}")


def export(
    bundle: Annotated[str, Parameter(help="Bundle folder, or whatever `diptych import` reads.")],
    /,
    *,
    to: Annotated[Target, Parameter(help="Library that shall load it.")],
    out: Annotated[Path, Parameter(help="Folder to write.")],
) -> None:
    """Write a model as another library's own, read it back and compare."""
    from diptych.bundle.open_bundle import export_bundle, open_bundle

    export_bundle(open_bundle(bundle, verify="full"), to, out)
    how = {
        "open-clip": f"open_clip.create_model_from_pretrained('local-dir:{out}'), open_clip.get_tokenizer('local-dir:{out}')",
        "hugging-face": f"transformers.CLIPModel.from_pretrained('{out}'), transformers.CLIPProcessor.from_pretrained('{out}')",
    }
    say(f"Written to {out}, read back, the same to the bit.")
    say(f"Load it:  {how[to]}")


def _check_replaceable(path: str, out: Path) -> None:
    """Refuse to replace a folder that holds more than a bundle, or what is imported: all of it would be lost."""
    from diptych.bundle.folder import FILES, is_bundle

    if Path(path).resolve().is_relative_to(out.resolve()) or not (is_bundle(out) or _is_empty(out)):
        raise ConfigError(f"{out}: is not a bundle to be replaced; choose another --out")
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in {*FILES, "README.md"})
    if others:
        raise ConfigError(f"{out}: holds {others[0]}, which is no part of the bundle; move it, or choose another --out")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _facts(bundle: "Bundle") -> dict[str, str]:
    from diptych.bundle.card import describe_image_tower, describe_text_tower
    from diptych.images.transforms import size_name

    config = bundle.config
    return {
        "parameters": f"{sum(parameter.numel() for parameter in bundle.model.parameters()):,}",
        "image tower": describe_image_tower(config.image),
        "text tower": describe_text_tower(config.text),
        "embedding": f"{config.embed_dim} numbers, logit scale {bundle.model.logit_scale.item():.2f}",
        "activation": config.text.activation,
        "pictures": f"{size_name(config.image.image_px)} px, {config.pixels.interpolation}",
        **{name.replace("_", " "): str(value) for name, value in bundle.origin.items()},
    }
