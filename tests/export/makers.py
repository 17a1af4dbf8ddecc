"""Small models of every kind, and programs that run in an exported folder."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diptych.bundle.folder import Bundle
from diptych.export.comparison import draw_images
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ConvNetConfig, ImageConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.preparation import TextPreparation
from tests.parity.models import shaken
from tests.tokenizers.makers import PREPARATION, make_tokenizer

SIDE = 64
VIT = ViTConfig(image_px=SIDE, patch_px=16, width=64, layers=1, heads=2)
CONVNET = ConvNetConfig(image_px=SIDE, widths=(16, 32), layers=(1, 1))
RESNET = ResNetConfig(image_px=SIDE, layers=(1, 1, 1, 1), width=8, heads=4)
TEXTS = ["a dog", "Two  dogs run, it's &amp; <end>", "", "a red circle", "dog " * 100]


def small_bundle(
    kind: TokenizerKind, image: ImageConfig, preparation: TextPreparation = PREPARATION, **text: Any
) -> Bundle:
    """A bundle whose embeddings differ from input to input, unlike those of a freshly initialized model."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(kind, preparation=preparation)
    sizes: dict[str, Any] = {"context_length": tokenizer.context_length, "width": 64, "layers": 1, "heads": 2}
    sizes["preparation"] = getattr(tokenizer, "preparation", TextPreparation())
    config = CLIPConfig(
        embed_dim=32,
        image=image,
        text=TextConfig(tokenizer=kind, vocab_size=tokenizer.vocab_size, **{**sizes, **text}),
    )
    return Bundle(model=shaken(CLIP(config)).eval(), tokenizer=tokenizer, origin={"recipe": "small-data"})


def picture(path: Path, *, side: int | None = None) -> Path:
    """Draw a picture; if a side is given, it is square."""
    image = draw_images(1)[0]
    (image if side is None else image.resize((side, side), Image.Resampling.BICUBIC)).save(path)
    return path


def ranked(command: Sequence[str | Path]) -> dict[str, float]:
    """Run an example, and return the cosine that it prints for each text, best first."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.partition("  ") for line in done.stdout.splitlines()]
    return {text: float(cosine) for cosine, _, text in lines}


def run_python_example(folder: Path, image: Path, texts: Sequence[str]) -> dict[str, float]:
    """Run `example.py` without the packages of this project."""
    return ranked([sys.executable, "-P", folder / "example.py", image, *texts])
