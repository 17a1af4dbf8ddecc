"""Licenses are read from cards, stored in bundles, shown in cards, and said if they exclude commercial use."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diptych.bundle import licenses
from diptych.bundle.folder import Bundle, load_bundle, save_bundle
from diptych.bundle.hugging_face_writer import write_hugging_face
from diptych.bundle.licenses import allows_commercial_use, card_license, license_metadata
from diptych.bundle.model_license import license_of
from diptych.bundle.open_bundle import open_bundle
from diptych.cli.main import main
from diptych.core.errors import DiptychWarning
from diptych.export.hub_card import hub_card
from diptych.export.onnx_folder import export_onnx
from diptych.inference.loaded import load
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TimmConfig, TransformersConfig
from diptych.recipes.recipe import recipe
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from diptych.training.checkpoint.origin import origin
from tests.bundle.makers import SMALL

_NOTE = "its license, cc-by-nc-4.0, does not allow commercial use"


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licenses, "_warned", set())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of Hugging Face without a card."""
    torch.manual_seed(0)
    (tmp_path / "hf").mkdir()
    write_hugging_face(CLIP(SMALL), ClipBPETokenizer(), tmp_path / "hf")
    return tmp_path / "hf"


def _with_card(folder: Path, name: str) -> Path:
    (folder / "README.md").write_text(f"---\nlicense: {name}\ntags:\n- clip\n---\n# A model\n")
    return folder


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("---\nlicense: mit\n---\n# A", "mit"),
        ("\n---\r\nlicense: other\r\nlicense_name: apple-amlr\r\n---\r\n", "apple-amlr"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit, apache-2.0"),
        ("# A\nlicense: mit\n", None),
        ("---\ntags: [clip]\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: 3\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("---\n- mit\n---\n", None),
    ],
)
def test_the_front_matter_of_a_card(tmp_path: Path, text: str, stated: str | None) -> None:
    (tmp_path / "README.md").write_text(text)
    assert card_license(tmp_path) == stated
    assert card_license(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        *((name, True) for name in ("MIT", "apache-2.0", "BSD-3-Clause", "cc-by-4.0", "CC-BY-SA-4.0")),
        *((name, False) for name in ("cc-by-nc-4.0", "CC-BY-NC-SA-4.0", "apple-amlr", "fair-noncommercial-research")),
        *((name, None) for name in ("other", "apple-sample-code-license", "ncsa", "my terms")),
    ],
)
def test_commercial_use(name: str, is_allowed: bool | None) -> None:
    assert allows_commercial_use(name) is is_allowed


def test_a_license_is_stored_and_said_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _with_card(folder, "cc-by-nc-4.0")
    with pytest.warns(DiptychWarning, match=f"^{folder}: {_NOTE}$"):
        bundle = open_bundle(folder)
    assert bundle.origin["license"] == "cc-by-nc-4.0"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        open_bundle(folder)
    assert said == []
    assert main(["import", str(folder), "--out", str(tmp_path / "bundle")]) == 0
    out, err = capsys.readouterr()
    assert "license" in out
    assert err == ""
    assert load_bundle(tmp_path / "bundle").origin["license"] == "cc-by-nc-4.0"
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "- license: cc-by-nc-4.0\n" in card
    assert f"**Not for commercial use:** {_NOTE}." in card
    with pytest.warns(DiptychWarning, match=_NOTE):
        load(tmp_path / "bundle")


def test_a_permissive_license_is_not_said(folder: Path) -> None:
    bundle = open_bundle(_with_card(folder, "apache-2.0"))
    assert bundle.origin["license"] == "apache-2.0"


def test_a_folder_without_a_card_has_none(folder: Path) -> None:
    assert "license" not in open_bundle(folder).origin


def test_an_export_keeps_it(folder: Path, tmp_path: Path) -> None:
    with pytest.warns(DiptychWarning, match=_NOTE):
        bundle = open_bundle(_with_card(folder, "cc-by-nc-4.0"))
    export_onnx(bundle, tmp_path / "onnx")
    assert f"**Not for commercial use:** {_NOTE}." in (tmp_path / "onnx" / "README.md").read_text()
    with pytest.warns(DiptychWarning, match=f"onnx: {_NOTE}"):
        load(tmp_path / "onnx")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("MIT", "license: mit\n"),
        ("cc-by-nc-4.0", "license: cc-by-nc-4.0\n"),
        ("apple-sample-code-license", "license: other\nlicense_name: apple-sample-code-license\n"),
        (None, ""),
    ],
)
def test_the_card_on_the_hub_states_it(name: str | None, lines: str) -> None:
    stated = {} if name is None else {"license": name}
    card = hub_card(CLIP(SMALL), "hf:me/mine", origin=stated, metrics={}, has_onnx=False)
    assert license_metadata(name) == lines
    front = card.split("---\n")[1]
    assert lines in front
    assert ("license" in front) == bool(lines)


def test_a_run_that_starts_from_a_model_keeps_its_license(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = Bundle(model=CLIP(SMALL), tokenizer=ClipBPETokenizer(), origin={"license": "cc-by-nc-4.0"})
    save_bundle(bundle, tmp_path / "bundle")
    for init, stated in (
        (tmp_path / "bundle", "cc-by-nc-4.0"),
        (_with_card(folder, "mit"), "mit"),
        ("siglip2-b-32-256", "Apache-2.0"),
        ("hf:facebook/metaclip-b32-fullcc2.5b@main", "CC-BY-NC-4.0"),
        (None, None),
    ):
        config = replace(recipe("demo"), init=None if init is None else str(init))
        assert origin(config, step=1, train_split_hash="0").get("license") == stated


def test_a_run_keeps_the_licenses_of_its_pretrained_towers(tmp_path: Path) -> None:
    text = TransformersConfig(name=str(_with_card(tmp_path, "cc-by-nc-4.0")), pretrained=True)
    image = TimmConfig(name="resnet18.a1_in1k", pretrained=True)
    for model, stated in (
        (CLIPConfig(image=image, text=text), "apache-2.0, cc-by-nc-4.0"),
        (CLIPConfig(text=replace(text, name="bert", pretrained=str(tmp_path))), "cc-by-nc-4.0"),
        (CLIPConfig(image=replace(image, pretrained=str(tmp_path)), text=text), "cc-by-nc-4.0"),
        (CLIPConfig(image=replace(image, pretrained=None)), None),
    ):
        config = replace(recipe("demo"), model=model)
        assert origin(config, step=1, train_split_hash="0").get("license") == stated
    assert allows_commercial_use("apache-2.0, cc-by-nc-4.0") is False
    assert allows_commercial_use("mit, apple-amlr") is False
    assert allows_commercial_use("mit, apache-2.0") is True


def test_a_damaged_config_states_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[")
    assert license_of(str(tmp_path)) is None
    (tmp_path / "config.json").write_text(json.dumps({"origin": {"license": 3}}))
    assert license_of(str(tmp_path)) is None
    shutil.rmtree(tmp_path)
    assert license_of(str(tmp_path)) is None
