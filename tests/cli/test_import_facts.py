"""`diptych import` takes the facts that a weights file cannot say."""

from pathlib import Path

import pytest
import torch

from diptych.bundle.open_bundle import open_bundle
from diptych.cli.weights import import_model
from diptych.core.errors import ConfigError
from tests.parity.models import open_clip_model


def test_facts_reach_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vision = {"image_size": 48, "patch_size": 16, "width": 96, "layers": 1, "head_width": 48}
    weights = open_clip_model(vision).state_dict()
    torch.save({"state_dict": weights, "state_dict_ema": weights}, tmp_path / "w.ckpt")
    import_model(
        str(tmp_path / "w.ckpt"),
        out=tmp_path / "out",
        activation="quick_gelu",
        weights="raw",
        heads="2,1",
        pooling="mean,last",
        no_causal=True,
    )
    bundle = open_bundle(tmp_path / "out")
    text = bundle.config.own_text
    assert (text.is_causal, text.layout, text.pooling, text.heads) == (False, "siglip", "eot", 1)
    assert bundle.config.image.pooling == "mean"  # type: ignore[union-attr]
    printed = capsys.readouterr().out
    assert "raw; the file also has averaged ones" in printed
    assert "assumed" in printed
    with pytest.raises(
        ConfigError, match="--heads is 2,x; give one number for the image tower and one for the text tower"
    ):
        import_model(str(tmp_path / "w.ckpt"), out=tmp_path / "other", heads="2,x")
