"""The model card (README.md) of a bundle."""

from collections.abc import Mapping, Sequence
from typing import Any

from diptych.bundle.licenses import non_commercial_note
from diptych.images.transforms import size_name
from diptych.models.clip import CLIP
from diptych.models.config import ConvNetConfig, ImageConfig, TextTowerConfig, TimmConfig, TransformersConfig, ViTConfig

_MEASURED = "## Measured"
"""Heading of the last part of the card, which lists the evaluations."""


def describe_image_tower(image: ImageConfig) -> str:
    """Return a short description of an image tower, without a period."""
    if isinstance(image, ViTConfig):
        patches = f"patches of {size_name(image.patch_px)} px"
        return f"vision transformer, {image.layers} layers of {image.width}, {patches}, {image.pooling} pooling"
    if isinstance(image, ConvNetConfig):
        return (
            f"convolutional network, {' + '.join(map(str, image.layers))} blocks of {', '.join(map(str, image.widths))}"
        )
    if isinstance(image, TimmConfig):
        return f"timm's {image.name}, {image.pooling or 'its own'} pooling, {_projection(image)}"
    return f"ResNet, {' + '.join(map(str, image.layers))} blocks, width {image.width}, attention pooling"


def describe_text_tower(text: TextTowerConfig) -> str:
    """Return a short description of a text tower, without a period."""
    if isinstance(text, TransformersConfig):
        kind, entries = text.config.get("model_type"), f"{text.tokenizer} tokenizer of {text.vocab_size:,} entries"
        return f"transformers' {kind}, {text.pooling} pooling, {_projection(text)}, {entries}, context {text.context_length}"
    kind = "causal" if text.is_causal else "bidirectional"
    entries = f"{text.tokenizer} tokenizer of {text.vocab_size:,} entries"
    return f"{kind}, {text.layers} layers of {text.width}, {entries}, context {text.context_length}"


def _projection(tower: TimmConfig | TransformersConfig) -> str:
    return "no projection" if tower.projection == "none" else f"{tower.projection} projection"


def usage(address: str = "path/to/this/folder", *, install: str | None = None) -> list[str]:
    """Return the lines of a code block that shows how to use a model.

    Args:
        address: what `diptych.load` is called with.
        install: the command that installs what the model needs; shown as a comment.
    """
    return [
        "```python",
        f"import diptych{'' if install is None else f'  # {install}'}",
        "",
        f'clip = diptych.load("{address}")',
        'clip.rank_images("a dog in the snow", "photos/")',
        "```",
    ]


def model_card(
    model: CLIP,
    origin: Mapping[str, Any],
    *,
    title: str = "A CLIP model in Diptych's format",
    example: Sequence[str] | None = None,
) -> str:
    """Return the content of a bundle's README.md.

    Args:
        model: the model.
        origin: facts about the origin of the model by name, each of which becomes a line.
        title: the heading.
        example: lines that show how to use the model; by default `usage()`.
    """
    config = model.config
    note = non_commercial_note(origin)
    lines = [
        f"# {title}",
        "",
        f"- image tower: {describe_image_tower(config.image)}; pictures of {size_name(config.image.image_px)} px",
        f"- text tower: {describe_text_tower(config.text)}",
        f"- parameters: {sum(parameter.numel() for parameter in model.parameters()):,}",
        *(f"- {name}: {value}" for name, value in origin.items()),
        *([] if note is None else ["", f"**Not for commercial use:** {note}."]),
        "",
        *(usage() if example is None else example),
    ]
    return "\n".join(lines) + "\n"


def with_evaluations(card: str, evaluations: Mapping[str, Any]) -> str:
    """Return the card with its last part replaced by the summary and the protocol of each evaluation."""
    lines = [_MEASURED, ""]
    for name, evaluation in evaluations.items():
        protocol = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in evaluation["protocol"].items())
        lines += [f"- {name}: {evaluation['summary']}", f"  ({protocol})"]
    return card.partition(f"\n{_MEASURED}")[0].rstrip() + "\n\n" + "\n".join(lines) + "\n"
