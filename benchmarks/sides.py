"""Build a model with the same random weights in Diptych, open_clip and transformers."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import peers

from diptych.bundle.folder import Bundle
from diptych.bundle.open_bundle import export_bundle
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig
from diptych.presets import preset
from diptych.tokenizers.clip_bpe import ClipBPETokenizer


@dataclass(frozen=True)
class OpenClip:
    """A model of open_clip and its tokenizer."""

    model: Any
    tokenizer: Any


def own_bundle(config: CLIPConfig | None = None) -> Bundle:
    """Return a bundle with random weights (seed 0); by default a ViT-B/32."""
    torch.manual_seed(0)
    model = CLIP(config or preset("vit-b-32")).eval()
    return Bundle(model=model, tokenizer=ClipBPETokenizer(context_length=model.config.text.context_length))


def in_open_clip(bundle: Bundle) -> OpenClip:
    """Export a bundle and load it with open_clip."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "theirs"
        export_bundle(bundle, "open-clip", place)
        model = peers.open_clip.create_model(f"local-dir:{place}").eval()
        return OpenClip(model, peers.open_clip.get_tokenizer(f"local-dir:{place}"))


def in_transformers(bundle: Bundle) -> tuple[Any, Any]:
    """Export a bundle and load its model and tokenizer with transformers."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "theirs"
        export_bundle(bundle, "hugging-face", place)
        model = peers.transformers.CLIPModel.from_pretrained(place).eval()
        return model, peers.transformers.CLIPTokenizerFast.from_pretrained(place)
