"""A bundle's model card, for people."""

from collections.abc import Mapping
from typing import Any

from diptych.images.transforms import size_name
from diptych.models.clip import CLIP
from diptych.models.config import ConvNetConfig, ImageConfig, TextConfig, ViTConfig

_MEASURED = "## Measured"
"""Heading of the card's last part, which grows with each evaluation."""


def describe_image_tower(image: ImageConfig) -> str:
    """In half a sentence."""
    if isinstance(image, ViTConfig):
        patches = f"patches of {size_name(image.patch_px)} px"
        return f"vision transformer, {image.layers} layers of {image.width}, {patches}, {image.pooling} pooling"
    if isinstance(image, ConvNetConfig):
        return (
            f"convolutional network, {' + '.join(map(str, image.layers))} blocks of {', '.join(map(str, image.widths))}"
        )
    return f"ResNet, {' + '.join(map(str, image.layers))} blocks, width {image.width}, attention pooling"


def describe_text_tower(text: TextConfig) -> str:
    """In half a sentence."""
    kind = "causal" if text.is_causal else "bidirectional"
    entries = f"{text.tokenizer} tokenizer of {text.vocab_size:,} entries"
    return f"{kind}, {text.layers} layers of {text.width}, {entries}, context {text.context_length}"


def model_card(model: CLIP, origin: Mapping[str, Any]) -> str:
    """The README.md of a bundle."""
    config = model.config
    lines = [
        "# A CLIP model in Diptych's format",
        "",
        f"- image tower: {describe_image_tower(config.image)}; pictures of {size_name(config.image.image_px)} px",
        f"- text tower: {describe_text_tower(config.text)}",
        f"- parameters: {sum(parameter.numel() for parameter in model.parameters()):,}",
        *(f"- {name}: {value}" for name, value in origin.items()),
        "",
        "```python",
        "import diptych",
        "",
        'clip = diptych.load("path/to/this/folder")',
        'clip.rank_images("a dog in the snow", "photos/")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def with_evaluations(card: str, evaluations: Mapping[str, Any]) -> str:
    """The card with another last part: what each evaluation found, and how it was measured."""
    lines = [_MEASURED, ""]
    for name, found in evaluations.items():
        how = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in found["protocol"].items())
        lines += [f"- {name}: {found['summary']}", f"  ({how})"]
    return card.partition(f"\n{_MEASURED}")[0].rstrip() + "\n\n" + "\n".join(lines) + "\n"
