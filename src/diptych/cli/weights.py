"""`diptych import` and `diptych export`: convert models from and to the formats of other libraries."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.output import print_facts, print_line, print_skipped
from diptych.core.errors import ConfigError
from diptych.core.precision import GraphPrecision
from diptych.core.program import command

if TYPE_CHECKING:
    from diptych.bundle.folder import Bundle

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
Target = Literal["open-clip", "hugging-face", "onnx"]
_NUM_CALIBRATION = 128
"""Maximum number of images of a folder that are used; more images hardly change the measured ranges."""


def import_model(
    path: Annotated[
        str,
        Parameter(
            help="Model folder of open_clip, Hugging Face or sentence-transformers, PEFT adapter, weights file, hf:ID, "
            "hf:ID@REVISION, or short name of a known model."
        ),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Bundle folder to write.")],
    activation: Annotated[
        Activation | None, Parameter(help="Activation of the model, if a weights file does not contain it.")
    ] = None,
    preset: Annotated[
        str | None, Parameter(help="Architecture of the model, if the tensors of a weights file do not determine it.")
    ] = None,
    image_px: Annotated[int | None, Parameter(help="Interpolate the position embeddings for this image size.")] = None,
    weights: Annotated[
        Literal["ema", "raw"] | None,
        Parameter(help="Weights to use if a training checkpoint has both: averaged (default), or of the last step."),
    ] = None,
    heads: Annotated[
        str | None,
        Parameter(help="Attention heads of image and text tower in a weights file, such as 12,8; default: width / 64."),
    ] = None,
    pooling: Annotated[
        str | None,
        Parameter(
            help="Pooling of a weights file: cls or mean (images), eot, last or first (texts), such as mean,last."
        ),
    ] = None,
    no_causal: Annotated[
        bool, Parameter(help="The text tower of a weights file has no causal mask and attends to the padding.")
    ] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an existing bundle.", show_default=True)] = False,
) -> None:
    """Convert a model of another library to a bundle."""
    from diptych.bundle.folder import save_bundle
    from diptych.bundle.open_bundle import open_bundle
    from diptych.bundle.weights_facts import WeightsFacts, poolings

    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: already exists; choose another --out, or use --overwrite")
    if out.exists():
        _check_replaceable(path, out)
    facts = WeightsFacts(
        activation=activation,
        preset=preset,
        weights=weights,
        heads=_numbers(heads),
        pooling=None if pooling is None else poolings(pooling.split(",")),
        is_causal=False if no_causal else None,
    )
    bundle = open_bundle(path, facts=facts, image_px=image_px, verify="full")
    save_bundle(bundle, out)
    print_facts(str(out), _facts(bundle))
    print_line(f"Use it:  {command('similarity', out, 'photo.jpg', 'a dog', 'a cat')}")


def export(
    bundle: Annotated[str, Parameter(help="Bundle folder, or any model that `diptych import` reads.")],
    /,
    *,
    to: Annotated[Target, Parameter(help="Library or format to convert to.")],
    out: Annotated[Path, Parameter(help="Folder to write.")],
    precision: Annotated[
        GraphPrecision | None,
        Parameter(
            help="For onnx: precision of the weights, fp32 by default. The cosine with fp32 must be at least 0.99."
        ),
    ] = None,
    force: Annotated[
        bool, Parameter(help="For onnx: write fp16 or int8 even if the cosine is below 0.99.", show_default=True)
    ] = False,
    pictures: Annotated[
        Path | None,
        Parameter(help="For onnx: folder of typical images, for int8 calibration and the comparison with the bundle."),
    ] = None,
) -> None:
    """Convert a bundle to the format of another library or to ONNX, and verify the result."""
    from diptych.bundle.libraries import is_siglip
    from diptych.bundle.open_bundle import export_bundle, open_bundle

    if to == "onnx":
        from diptych.cli.onnx_report import print_onnx_report
        from diptych.export.onnx_folder import export_onnx

        images, skipped = ([], []) if pictures is None else _calibration_images(pictures)
        opened = open_bundle(bundle, verify="full")
        report = export_onnx(
            opened,
            out,
            precision=precision or "fp32",
            force=force,
            images=images,
            on_error=lambda name, error: skipped.append((name, str(error))),
        )
        print_skipped(skipped)
        print_onnx_report(report, out)
        return
    given = {"--precision": precision is not None, "--force": force, "--pictures": pictures is not None}
    unused = [name for name, is_given in given.items() if is_given]
    if unused:
        raise ConfigError(f"{unused[0]} is for --to onnx; {to} stores the weights as they are")
    opened = open_bundle(bundle, verify="full")
    export_bundle(opened, to, out)
    model = f"transformers.{'Siglip' if is_siglip(opened.config) else 'CLIP'}"
    examples = {
        "open-clip": f"open_clip.create_model_from_pretrained('local-dir:{out}'), open_clip.get_tokenizer('local-dir:{out}')",
        "hugging-face": f"{model}Model.from_pretrained('{out}'), {model}Processor.from_pretrained('{out}')",
    }
    print_line(f"Written to {out}. Read back and compared: bit-identical.")
    print_line(f"Load it:  {examples[to]}")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """Return the numbers of a list such as "12,8"."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ConfigError(
            f"--heads is {text}; give one number for the image tower and one for the text tower, such as 12,8"
        )
    return tuple(map(int, parts))


def _calibration_images(folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """At most `_NUM_CALIBRATION` evenly spaced images of a folder, and (path, reason) of unreadable subfolders.

    Raises:
        ImageError: the folder is missing, cannot be read, or contains no images.
    """
    from diptych.images.listing import list_images

    listing = list_images(folder)
    num = min(len(listing.paths), _NUM_CALIBRATION)
    images = [listing.paths[i * len(listing.paths) // num] for i in range(num)]
    return images, [(path, f"{path}: {reason}") for path, reason in listing.unreadable]


def _check_replaceable(path: str, out: Path) -> None:
    """Check that replacing a folder loses nothing except a bundle.

    Raises:
        ConfigError: the folder contains the model to import or other files, or it is not a bundle.
    """
    from diptych.bundle.folder import bundle_files, is_bundle

    if Path(path).resolve().is_relative_to(out.resolve()) or not (is_bundle(out) or _is_empty(out)):
        raise ConfigError(f"{out}: is not a bundle that can be replaced; choose another --out")
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in {*bundle_files(out), "README.md"})
    if others:
        raise ConfigError(
            f"{out}: holds {others[0]}, which is not part of the bundle; move it, or choose another --out"
        )


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _facts(bundle: "Bundle") -> dict[str, str]:
    from diptych.bundle.card import describe_image_tower, describe_text_tower
    from diptych.images.transforms import size_name, transform_name
    from diptych.models.config import TextConfig

    config = bundle.config
    return {
        "parameters": f"{sum(parameter.numel() for parameter in bundle.model.parameters()):,}",
        "image tower": describe_image_tower(config.image),
        "text tower": describe_text_tower(config.text),
        "embedding": f"dimension {config.embed_dim}, logit scale {bundle.model.logit_scale.item():.2f}",
        **({"activation": config.text.activation} if isinstance(config.text, TextConfig) else {}),
        "pictures": f"{size_name(config.image.image_px)} px, {transform_name(config.pixels)}",
        **{name.replace("_", " "): str(value) for name, value in bundle.origin.items()},
    }
