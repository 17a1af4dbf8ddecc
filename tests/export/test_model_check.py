"""`diptych check-model`: it passes for what the peers load as we do, and fails for what they do not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.bundle.folder import save_bundle
from diptych.bundle.hugging_face_writer import write_hugging_face
from diptych.bundle.open_bundle import export_bundle, open_bundle
from diptych.cli.main import main
from diptych.core.errors import BundleError, ConfigError
from diptych.export import model_check
from diptych.export.model_check import check_model
from diptych.export.onnx_folder import export_onnx
from diptych.models.clip import CLIP
from diptych.models.config import ViTConfig
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from tests.export.makers import VIT, small_bundle
from tests.parity.models import hugging_face_model, save_hugging_face


@pytest.fixture(autouse=True)
def _measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.export.speed._MEDIAN_OF", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a random `CLIPModel` with its processor and tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    path = save_hugging_face(hugging_face_model(), folder / "hf")
    (folder / "ours").mkdir()
    write_hugging_face(open_bundle(path).model, ClipBPETokenizer(), folder / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "ours" / name, path)
    return path


def _tampered(folder: Path, to: Path) -> Path:
    """A copy whose text and image towers have another activation."""
    shutil.copytree(folder, to)
    config = (to / "config.json").read_text()
    assert '"hidden_act": "quick_gelu"' in config
    (to / "config.json").write_text(config.replace('"hidden_act": "quick_gelu"', '"hidden_act": "gelu"'))
    return to


def test_a_hugging_face_folder_passes(folder: Path) -> None:
    found = check_model(str(folder))
    assert found.parity is not None
    assert found.parity.peer.startswith("transformers ")
    assert found.parity.uses_own_tokenizer
    assert found.parity.passes
    assert max(found.parity.image, found.parity.text) < 1e-5
    assert found.facts["license"] == "not known"
    assert "short side resized to 48 px (bicubic), center cropped to 48 px" in found.image
    assert any("lowercases" in step for step in found.text)


def test_another_activation_fails(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = _tampered(folder, tmp_path / "changed")
    assert main(["check-model", str(changed), "--against", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "FAIL: the limit is 1e-04" in out
    assert err == ""
    assert max(map(len, out.splitlines())) <= 160 + len(str(folder))
    assert "\x1b" not in out


def test_a_bundle_is_compared_with_what_it_was_imported_from(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = open_bundle(folder)
    save_bundle(bundle, tmp_path / "good")
    assert main(["check-model", str(tmp_path / "good"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parity"]["source"] == str(folder)
    assert found["parity"]["passes"] is True
    assert found["speed"]["batch_text_ms"] > 0
    config = bundle.config
    assert isinstance(config.image, ViTConfig)
    changed = CLIP(replace(config, image=replace(config.image, activation="gelu")))
    changed.load_state_dict(bundle.model.state_dict())
    save_bundle(replace(bundle, model=changed.eval(), known_identity=None), tmp_path / "bad")
    found_bad = check_model(str(tmp_path / "bad"))
    assert found_bad.parity is not None
    assert not found_bad.parity.passes
    assert found_bad.parity.image > 1e-3
    assert found_bad.parity.text < 1e-5


def test_an_open_clip_folder_and_a_bundle_of_our_own(tmp_path: Path) -> None:
    bundle = replace(small_bundle("clip-bpe", VIT), origin={})
    export_bundle(bundle, "open-clip", tmp_path / "oc")
    save_bundle(bundle, tmp_path / "own")
    for name, peer, source in (("oc", "open_clip ", str(tmp_path / "oc")), ("own", "transformers ", "an export of it")):
        found = check_model(str(tmp_path / name)).parity
        assert found is not None
        assert found.peer.startswith(peer)
        assert found.source == source
        assert found.passes, found


def test_an_onnx_export_is_compared_with_its_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle("character", VIT)
    save_bundle(bundle, tmp_path / "bundle")
    export_onnx(bundle, tmp_path / "onnx")
    assert main(["check-model", str(tmp_path / "onnx")]) == 0
    assert "not compared: to compare an ONNX export, name its bundle with --against" in capsys.readouterr().out
    assert main(["check-model", str(tmp_path / "onnx"), "--against", str(tmp_path / "bundle")]) == 0
    assert "PASS" in capsys.readouterr().out
    shutil.copytree(tmp_path / "bundle", tmp_path / "onnx" / "bundle")  # As `diptych push` uploads them.
    found = check_model(str(tmp_path / "onnx")).parity
    assert found is not None
    assert found.passes


def test_what_cannot_be_compared_says_why(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bundle(small_bundle("hashing", VIT), tmp_path / "hashing")
    found = check_model(str(tmp_path / "hashing"))
    assert found.parity is None
    assert str(found.not_compared).startswith("neither transformers nor open_clip supports its hashing tokenizer")
    monkeypatch.setattr(model_check, "missing_package", lambda _: "transformers")
    assert check_model(str(folder)).not_compared == "to compare it with transformers: pip install transformers"
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "preprocessor_config.json").unlink()
    monkeypatch.undo()
    monkeypatch.setattr("diptych.export.speed._MEDIAN_OF", 1)
    assert str(check_model(str(broken)).not_compared).startswith("transformers cannot load the model (")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["/nowhere"], "/nowhere: no such file or folder"),
        (
            ["siglip2-b-16-225"],
            "siglip2-b-16-225: no such file or folder; did you mean 'siglip2-b-16-256' or 'siglip2-b-16-224'",
        ),
        (["openai/clip-vit-base-patch32"], "for a model on the hub, write hf:openai/clip-vit-base-patch32"),
    ],
)
def test_bad_names(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert main(["check-model", *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_bad_peer(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="/nowhere: no such file or folder"):
        check_model(str(folder), against="/nowhere")
    save_bundle(small_bundle("clip-bpe", VIT), tmp_path / "other")
    with pytest.raises(ConfigError, match="has embeddings of dimension 32, but the model has 64"):
        check_model(str(folder), against=str(tmp_path / "other"))
