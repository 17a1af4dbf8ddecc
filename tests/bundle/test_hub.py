"""The hub, against a server on this machine that answers as it does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from diptych.bundle.hub import download
from diptych.bundle.hub_files import model_path, split_files
from diptych.bundle.hugging_face_writer import write_hugging_face
from diptych.core.errors import BundleError, ConfigError
from diptych.inference.loaded import load
from diptych.models.clip import CLIP
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from tests.bundle.makers import SMALL
from tests.hub_server import HubServer


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "me" / "clip").mkdir(parents=True)
    torch.manual_seed(0)
    write_hugging_face(CLIP(SMALL), ClipBPETokenizer(), folder / "me" / "clip")
    (folder / "me" / "clip" / "pytorch_model.bin").write_bytes(b"never asked for")
    server = HubServer(folder)
    yield server.url, server.asked
    server.close()


def _kept_environment() -> dict[str, str]:
    return {"PATH": "", **({"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {})}


def _import(name: str, out: Path, endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since the hub's library reads its environment when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "diptych", "import", name, "--out", str(out)],
        env={**_kept_environment(), "HF_ENDPOINT": endpoint, "HF_HOME": str(out.parent / "home"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_model_comes_from_the_hub_and_then_from_the_cache(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    first = _import("hf:me/clip", tmp_path / "first", endpoint)
    assert first.returncode == 0, first.stderr
    assert "hf:me/clip" in first.stdout
    fetched = {line.rsplit("/", 1)[1] for line in asked if line.startswith("GET /me/clip/resolve")}
    assert fetched >= {"config.json", "model.safetensors", "preprocessor_config.json", "vocab.json"}
    assert "pytorch_model.bin" not in fetched
    offline = _import("hf:me/clip", tmp_path / "second", endpoint, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:me/none", "hf:me/none: the hub has no such model"),
        ("hf:me/gated", "hf:me/gated: is gated; accept its terms at {hub}/me/gated, then log in with `hf auth login`"),
        ("hf:a//b", "hf:a//b: is not a hub id; an example is hf:openai/clip-vit-base-patch32"),
    ],
)
def test_what_the_hub_refuses(hub: tuple[str, list[str]], tmp_path: Path, name: str, says: str) -> None:
    result = _import(name, tmp_path / "out", hub[0])
    assert result.returncode == 2
    assert says.format(hub=hub[0]) in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    result = _import("hf:me/clip", tmp_path / "out", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert result.stderr.startswith("diptych: hf:me/clip: is not in the cache, and the hub cannot be reached")
    assert result.stderr.count("\n") == 1


def _repository(hub: HubServer, name: str, *files: str, **contents: str) -> Path:
    """A repository with these files; `contents` are those of JSON files, by their name without the suffix."""
    folder = hub.folder / name
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}" if file.endswith(".json") else f"the content of {file}")
    for file, content in contents.items():
        (folder / f"{file}.json").write_text(content)
    return folder


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


_TOKENIZERS = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.json", "vocab.txt"]
_PARTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
_BOTH = ["config.json", "model.safetensors", "open_clip_model.safetensors", "open_clip_config.json"]
_SBERT = ["modules.json", "README.md", "0_CLIPModel/config.json", "0_CLIPModel/model.safetensors"]
_DENSE = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]


@pytest.mark.parametrize(
    ("files", "left_out"),
    [
        (["config.json", "model.safetensors", "README.md", *_TOKENIZERS], ["onnx/config.json", "pytorch_model.bin"]),
        (["open_clip_model.safetensors", "config.json", "open_clip_config.json"], ["model.safetensors", "x.npz"]),
        (["model.npz"], ["figure.png"]),
        ([*_SBERT, *_DENSE], ["0_CLIPModel/pytorch_model.bin", "onnx/model.onnx", "figures/a.json"]),
        (["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"], ["optimizer.pt"]),
    ],
)
def test_what_is_downloaded_is_enough_without_the_hub(
    here: HubServer, monkeypatch: pytest.MonkeyPatch, files: list[str], left_out: list[str]
) -> None:
    modules = json.dumps([{"type": "sentence_transformers.models.CLIPModel", "path": "0_CLIPModel"}])
    _repository(here, "me/model", *files, *left_out, **({"modules": modules} if "modules.json" in files else {}))
    path = download("hf:me/model")
    folder = path.parent if path.is_file() else path
    assert path.is_file() == (files == ["model.npz"])
    assert _names(folder) == set(files)
    _unreachable(monkeypatch)
    assert download("hf:me/model") == path
    for weights in [file for file in files if file.endswith((".safetensors", ".npz"))]:
        kept = (folder / weights).readlink()
        (folder / weights).unlink()
        with pytest.raises(BundleError, match="is not in the cache, and the hub cannot be reached"):
            download("hf:me/model")
        (folder / weights).symlink_to(kept)


def test_all_parts_of_split_weights_are_needed(here: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    index = json.dumps({"weight_map": {"a": _PARTS[0], "b": _PARTS[1]}})
    folder = _repository(here, "me/model", "config.json", *_PARTS)
    (folder / "model.safetensors.index.json").write_text(index)
    path = download("hf:me/model")
    assert _names(path) == {"config.json", "model.safetensors.index.json", *_PARTS}
    (path / _PARTS[1]).unlink()
    _unreachable(monkeypatch)
    with pytest.raises(BundleError, match="is not in the cache"):
        download("hf:me/model")


def test_a_revision_is_another_model(here: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("me/model", "me/model@v1"):
        folder = _repository(here, name, "config.json", "model.safetensors")
        (folder / "model.safetensors").write_text(name)
    for _ in range(2):
        for name in ("me/model", "me/model@v1"):
            assert (download(f"hf:{name}") / "model.safetensors").read_text() == name
        _unreachable(monkeypatch)
    with pytest.raises(BundleError, match="hf:me/model@: names no revision after '@'"):
        download("hf:me/model@")


def test_an_unknown_revision(here: HubServer) -> None:
    _repository(here, "me/model", "config.json", "model.safetensors")
    with pytest.raises(BundleError, match="hf:me/model@nope: the model has no revision 'nope'"):
        download("hf:me/model@nope")


def test_a_wrong_name_suggests_near_ones(here: HubServer) -> None:
    _repository(here, "me/photos-clip", "config.json")
    with pytest.raises(
        BundleError, match=r"hf:you/photos: the hub has no such model; did you mean hf:me/photos-clip\?$"
    ):
        download("hf:you/photos")
    near = "did you mean hf:google/siglip2-base-patch32-256 or"
    with pytest.raises(BundleError, match=near):
        download("hf:google/siglip2-base-patch32-265")
    with pytest.raises(BundleError, match=r"no such model; if it is private, log in with `hf auth login`$"):
        download("hf:you/zzz")


def test_files_behind_terms_say_where_to_accept_them(here: HubServer) -> None:
    _repository(here, "me/walled", "config.json", "model.safetensors")
    says = f"hf:me/walled: is gated; accept its terms at {here.url}/me/walled, then log in with `hf auth login`"
    with pytest.raises(BundleError) as caught:
        download("hf:me/walled")
    assert str(caught.value) == says


_NAFLEX = {
    "preprocessor_config": '{"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 256}',
    "open_clip_config": '{"model_cfg": {"vision_cfg": {"timm_model_name": "naflexvit_base_patch16_siglip"}}}',
}


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config", '{"auto_map": {"AutoModel": "model.MyCLIP"}}', "needs code from its repository"),
        ("modules", '[{"type": "custom_st.Transformer", "path": ""}]', "needs code from its repository"),
        *((file, content, "is a NaFlex model") for file, content in _NAFLEX.items()),
    ],
)
def test_a_model_that_cannot_run_is_refused_before_its_weights_are_fetched(
    here: HubServer, file: str, content: str, says: str
) -> None:
    _repository(here, "me/model", "config.json", "model.safetensors", **{file: content})
    with pytest.raises(BundleError, match=f"hf:me/model: {says}"):
        download("hf:me/model")
    assert not [asked for asked in here.asked if "safetensors" in asked]


def test_a_naflex_name_is_refused_without_the_hub(here: HubServer) -> None:
    with pytest.raises(BundleError, match=r"use one with a fixed size, such as siglip2-so400m-16-256$"):
        download("hf:google/siglip2-so400m-patch16-naflex")
    assert here.asked == []


def test_a_repository_without_weights(here: HubServer) -> None:
    _repository(here, "me/model", "config.json", "README.md")
    with pytest.raises(BundleError, match="hf:me/model: has no weights that Diptych reads"):
        download("hf:me/model")


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    here: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_terminal: bool,
    progress: bool,
) -> None:
    _repository(here, "me/model", "config.json", "model.safetensors")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    download("hf:me/model", progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("Fetching 1 files" in err) == (is_terminal and progress)
    assert err == "" or is_terminal


_PUSHED = ["README.md", "bundle/config.json", "bundle/model.safetensors", "bundle/README.md", "config.json"]
_ONNX = ["diptych/config.json", "onnx/text_model.onnx", "example.py"]


@pytest.mark.parametrize(
    ("files", "has_torch", "fetched"),
    [
        ([*_PUSHED, *_ONNX], True, {"README.md", *_PUSHED[1:4]}),
        ([*_PUSHED, *_ONNX], False, {"README.md", "config.json", "onnx/text_model.onnx", "diptych/config.json"}),
        (["config.json", *_ONNX], True, {"config.json", "onnx/text_model.onnx", "diptych/config.json"}),
    ],
)
def test_of_a_pushed_model_only_one_form_is_fetched(
    here: HubServer, monkeypatch: pytest.MonkeyPatch, files: list[str], has_torch: bool, fetched: set[str]
) -> None:
    folder = _repository(here, "me/model", *files)
    is_bundle = has_torch and "bundle/config.json" in files
    config, needed = ("bundle/config.json", "model.safetensors") if is_bundle else (_ONNX[0], _ONNX[1])
    (folder / config).write_text(json.dumps({"files": {needed: "0" * 64}}))
    monkeypatch.setattr("diptych.bundle.hub.has_torch", lambda: has_torch)
    path = download("hf:me/model")
    assert _names(path.parent if is_bundle else path) == fetched
    _unreachable(monkeypatch)
    assert download("hf:me/model") == path
    (path / needed).unlink()
    with pytest.raises(BundleError, match="is not in the cache"):
        download("hf:me/model")


def test_a_bundle_alone_needs_torch(here: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _repository(here, "me/model", "bundle/config.json", "README.md")
    monkeypatch.setattr("diptych.bundle.hub.has_torch", lambda: False)
    with pytest.raises(ConfigError, match=r"has no ONNX files, so it needs PyTorch: pip install 'diptych\[train\]'"):
        download("hf:me/model")
    assert split_files(["bundle/config.json"], has_torch=False) == ([], [])


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    assert model_path(tmp_path, has_torch=True) is None


def test_a_short_name_is_downloaded_with_its_license(here: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = here.folder / "openai" / "clip-vit-base-patch32"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    write_hugging_face(CLIP(SMALL), ClipBPETokenizer(), folder)
    clip = load("clip-vit-b-32", device="cpu")
    assert str(clip.path) == "hf:openai/clip-vit-base-patch32"
    assert clip.bundle.origin["imported_from"] == "hf:openai/clip-vit-base-patch32"
    assert clip.bundle.origin["license"] == "MIT"  # The card states none, but the list does.
    _unreachable(monkeypatch)
    assert load("clip-vit-b-32", device="cpu").identity == clip.identity
