"""The hub, against a server on this machine that answers as it does."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from diptych.bundle.hub import download
from diptych.bundle.hugging_face_writer import write_hugging_face
from diptych.core.errors import BundleError, ConfigError
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


def _import(name: str, out: Path, endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since the hub's library reads its environment when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "diptych", "import", name, "--out", str(out)],
        env={"PATH": "", "HF_ENDPOINT": endpoint, "HF_HOME": str(out.parent / "home"), **environment},
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
        ("hf:me/gated", "hf:me/gated: is gated; accept its terms"),
        ("hf:a//b", "hf:a//b: is not a hub id; an example is hf:openai/clip-vit-base-patch32"),
    ],
)
def test_what_the_hub_refuses(hub: tuple[str, list[str]], tmp_path: Path, name: str, says: str) -> None:
    result = _import(name, tmp_path / "out", hub[0])
    assert result.returncode == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    result = _import("hf:me/clip", tmp_path / "out", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert result.stderr.startswith("diptych: hf:me/clip: is not in the cache, and the hub cannot be reached")
    assert result.stderr.count("\n") == 1


def test_a_download_that_was_broken_off_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of a hub that cannot be reached is used once all files of the weights are in it."""

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: str(tmp_path / name))
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, content in (
        ("config.json", "{}"),
        ("model.safetensors.index.json", json.dumps({"weight_map": parts})),
        ("model-00001-of-00002.safetensors", ""),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(BundleError, match=r"is not in the cache, and the hub cannot be reached \(no route to host"):
            download("hf:me/clip")
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    assert download("hf:me/clip") == tmp_path


def _repository(monkeypatch: pytest.MonkeyPatch, folder: Path, files: list[str]) -> list[str]:
    """A repository with these files, of which nothing is downloaded; the patterns of the files that are requested."""
    fetched: list[str] = []

    def fetch(_: str, *, allow_patterns: list[str]) -> str:
        fetched.extend(allow_patterns)
        return str(folder)

    about = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
    monkeypatch.setattr(huggingface_hub, "model_info", lambda _: about)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return fetched


_PARTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
_BOTH = ["config.json", "model.safetensors", "open_clip_model.safetensors", "open_clip_config.json", "onnx/config.json"]


@pytest.mark.parametrize(
    ("files", "left_out"),
    [
        ([*_BOTH, "pytorch_model.bin"], {"model.safetensors", "onnx/config.json", "pytorch_model.bin"}),
        ([*_PARTS, "config.json", "merges.txt", "README.md"], {"README.md"}),
    ],
)
def test_weights_are_fetched_once_of_whichever_naming(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], left_out: set[str]
) -> None:
    fetched = _repository(monkeypatch, tmp_path, files)
    assert download("hf:me/clip") == tmp_path
    assert set(fetched) == {*files} - left_out


_PUSHED = ["README.md", "bundle/config.json", "bundle/model.safetensors", "config.json", "tokenizer.json"]
_ONNX = ["diptych/config.json", "onnx/text_model.onnx", "example.py"]


@pytest.mark.parametrize(
    ("files", "has_torch", "patterns"),
    [
        ([*_PUSHED, *_ONNX], True, {"bundle/*"}),
        ([*_PUSHED, *_ONNX], False, {"config.json", "tokenizer.json", "onnx/*", "diptych/*"}),
        (["config.json", *_ONNX], True, {"config.json", "onnx/*", "diptych/*"}),
    ],
)
def test_of_a_pushed_model_only_one_form_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], has_torch: bool, patterns: set[str]
) -> None:
    fetched = _repository(monkeypatch, tmp_path, files)
    monkeypatch.setattr("diptych.bundle.hub.has_torch", lambda: has_torch)
    assert download("hf:me/clip") == (tmp_path / "bundle" if patterns == {"bundle/*"} else tmp_path)
    assert set(fetched) == patterns


def test_a_bundle_alone_needs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in ("bundle/config.json", "README.md")])
    monkeypatch.setattr(huggingface_hub, "model_info", lambda _: about)
    monkeypatch.setattr("diptych.bundle.hub.has_torch", lambda: False)
    with pytest.raises(ConfigError, match=r"has no ONNX files, so it needs PyTorch: pip install 'diptych\[train\]'"):
        download("hf:me/clip")


@pytest.mark.parametrize(("config", "has_torch"), [("bundle/config.json", True), ("diptych/config.json", False)])
def test_a_pushed_model_in_the_cache_is_used_once_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, has_torch: bool
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    cached = {config: str(tmp_path / config)}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: cached.get(name))
    monkeypatch.setattr("diptych.bundle.hub.has_torch", lambda: has_torch)
    folder = tmp_path / "bundle" if has_torch else tmp_path
    (tmp_path / config).parent.mkdir()
    (tmp_path / config).write_text(json.dumps({"files": {"weights": "0" * 64}}))
    with pytest.raises(BundleError, match="is not in the cache"):
        download("hf:me/clip")
    (folder / "weights").touch()
    assert download("hf:me/clip") == folder
