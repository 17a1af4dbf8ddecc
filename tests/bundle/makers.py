"""A small model that every supported library can represent, and bundles with forged checksums."""

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.bundle.checksums import seal
from diptych.bundle.open_bundle import open_bundle
from diptych.bundle.weights_facts import WeightsFacts
from diptych.core.errors import BundleError, ConfigError
from diptych.core.files import sha256_of
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig

TEXT = TextConfig(tokenizer="clip-bpe", vocab_size=49408, width=64, layers=1, heads=1)
SMALL = CLIPConfig(embed_dim=16, image=ViTConfig(image_px=32, patch_px=16, width=64, layers=1, heads=1), text=TEXT)


def config_of(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "config.json").read_text("utf-8"))
    return content


def reseal(bundle: Path, **changes: Any) -> None:
    """Recompute the checksums of files that a test has changed, as somebody who forges a bundle would."""
    files = {name: sha256_of(bundle / name) for name in ("model.safetensors", "tokenizer.json")}
    (bundle / "config.json").write_text(json.dumps(seal({**config_of(bundle), **changes, "files": files})))


def assert_refused(path: Path, match: str, *, image_px: Any = None, **facts: Any) -> None:
    """Assert that a model is refused in one line."""
    with pytest.raises((BundleError, ConfigError), match=match) as caught:
        open_bundle(path, facts=WeightsFacts(**facts), image_px=image_px)
    assert "\n" not in str(caught.value)
