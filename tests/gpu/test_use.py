"""Commands that use a model, on a device."""

import json
from pathlib import Path

import pytest
import torch

from diptych.cli.main import main

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("fresh_console")]


def test_index_search_and_explain(
    device: torch.device, tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indexes = {kind: str(tmp_path / kind) for kind in {"cpu", device.type}}
    found = {}
    for kind, index in indexes.items():
        on = ["--device", kind]
        assert main(["index", "add", index, str(photos), "--bundle", str(tiny_bundle), *on]) == 0
        capsys.readouterr()
        assert main(["search", index, "a red circle", "--json", *on]) == 0
        hits = json.loads(capsys.readouterr().out)
        hits = hits["hits"] if isinstance(hits, dict) else hits
        found[kind] = {hit["entry"]["key"]: float(hit["score"]) for hit in hits}
    assert len(found["cpu"]) == 6
    for key, score in found["cpu"].items():
        assert found[device.type][key] == pytest.approx(score, abs=2e-2)  # Indexes may be encoded in half precision.
    heat = tmp_path / "heat.png"
    words = ["explain", str(tiny_bundle), str(photos / "a.png"), "a red circle", "--out", str(heat)]
    assert main(words) == 0  # On the fastest device.
    assert heat.stat().st_size > 0
