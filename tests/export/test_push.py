"""`diptych push` against a hub on this machine: what is uploaded, what is not, and what others load from it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from diptych.bundle.folder import Bundle, load_bundle, save_bundle
from diptych.cli.main import main
from diptych.core.errors import ConfigError
from diptych.data.open_source import open_source
from diptych.export.comparison import TowerComparison
from diptych.export.push import push
from diptych.export.report import check_deviation
from diptych.export.shareable import shareable
from diptych.inference.loaded import load
from tests.export.makers import VIT, small_bundle
from tests.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer

_EMBED = """
import sys, numpy, diptych
clip = diptych.load(sys.argv[1])
numpy.save(sys.argv[2], clip.encode_texts(["a dog", "a red circle"]))
print(type(clip.embedder.bundle).__name__)
"""
_WITHOUT_TORCH = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, at which this process is logged in."""
    (tmp_path / "hub").mkdir()
    server = HubServer(tmp_path / "hub")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    yield server
    server.close()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_bundle(small_bundle("learned-bpe", VIT), tmp_path / "saved")
    return tmp_path / "saved"


def _load(hub: HubServer, home: Path, code: str, *words: str | Path) -> str:
    """The output of a program. It runs in its own process, because `huggingface_hub` reads the environment at import."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _push(*words: str | Path) -> int:
    return main(["push", *map(str, words)])


def _assert_refused(capsys: pytest.CaptureFixture[str], message: str, *words: str | Path) -> str:
    """The message of a push that is refused in one line."""
    assert _push(*words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    return said


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_what_is_pushed_others_load(
    hub: HubServer, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _push(saved, "hf:me/clip") == 0
    assert 'diptych.load("hf:me/clip")' in capsys.readouterr().out
    pushed = _names(hub.folder / "me" / "clip")
    in_bundle = {f"bundle/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md")}
    assert in_bundle < pushed
    assert {"README.md", "config.json", "onnx/text_model.onnx", "diptych/config.json", "example.py"} < pushed
    expected = load(saved).encode_texts(["a dog", "a red circle"])
    for prelude, kind, tolerance in (("", "Bundle", 0.0), (_WITHOUT_TORCH, "OnnxModel", 1e-5)):
        out = tmp_path / f"{kind}.npy"
        assert _load(hub, tmp_path / kind, prelude + _EMBED, "hf:me/clip", out) == kind
        np.testing.assert_allclose(np.load(out), expected, atol=tolerance)
    fetched = [line for line in hub.asked if line.startswith("GET /me/clip/resolve")]
    for name in ("model.safetensors", "text_model.onnx"):
        assert [line for line in fetched if line.endswith(f"/{name}")] != []
    large = [line for line in fetched if line.endswith((".safetensors", ".onnx", ".onnx_data"))]
    assert len(large) == len(set(large))  # The bundle for one program, the ONNX files for the other.


def test_a_dry_run_sends_nothing(hub: HubServer, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _push(saved, "hf:me/clip", "--dry-run", "--no-onnx") == 0
    assert hub.asked == []
    said = capsys.readouterr().out
    assert "bundle/model.safetensors" in said
    assert "onnx/" not in said
    assert "Nothing was uploaded" in said


def test_a_card_on_the_hub_stays_and_old_files_go(hub: HubServer, saved: Path) -> None:
    model = hub.folder / "me" / "clip"
    (model / "bundle").mkdir(parents=True)
    (model / "onnx").mkdir()
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    for old in ("bundle/config.json", "onnx/vision_model.onnx", "config.json", "mine.txt"):
        (model / old).write_text("{}")
    assert _push(saved, "hf:me/clip", "--no-onnx") == 0
    assert (model / "README.md").read_text() == "---\nlicense: mit\n---\n"
    in_bundle = {f"bundle/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md")}
    assert _names(model) == {"README.md", "mine.txt", *in_bundle}
    assert load_bundle(model / "bundle").identity == load_bundle(saved).identity


def test_another_model_is_not_replaced_and_a_public_one_stays_public(
    hub: HubServer, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("other", "public"):
        (hub.folder / "me" / name).mkdir(parents=True)
    (hub.folder / "me" / "other" / "config.json").write_text("{}")
    message = "hf:me/other: contains a model that `diptych push` did not write; choose another name"
    _assert_refused(capsys, message, saved, "hf:me/other", "--no-onnx")
    message = "hf:me/public: is public; make it private on its page"
    _assert_refused(capsys, message, saved, "hf:me/public", "--private", "--no-onnx")
    assert not any("/commit/" in line for line in hub.asked)
    assert _push(saved, "hf:me/new", "--private", "--no-onnx") == 0


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "hf:me/clip: the hub needs a token that may write; log in with `hf auth login`"),
        ("hf_wrong" + "x" * 20, "hf:me/clip: the hub needs a token that may write"),
        (READ_TOKEN, "hf:me/clip: your token may not write there"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_a_token_must_be_allowed_to_write(
    saved: Path, token: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    said = _assert_refused(capsys, message, saved, "hf:me/clip", "--no-onnx")
    assert token == "" or token not in said


@pytest.mark.parametrize(
    "address", ["me/clip", "hf:clip", "hf:me/clip/x", "hf:me/", "hf:me/a..b", "hf:https://host/me/clip"]
)
def test_an_address_is_a_user_and_a_name(saved: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    _assert_refused(capsys, f"{address}: is not an address on the hub; an example is hf:user/name", saved, address)


@pytest.mark.usefixtures("hub")
def test_a_hub_that_cannot_be_reached(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    _assert_refused(capsys, "hf:me/clip: the hub cannot be reached (", saved, "hf:me/clip", "--no-onnx")


def test_the_hubs_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'diptych\[hub\]'"):
        push(small_bundle("character", VIT), "hf:me/clip", onnx=False)


def test_a_model_that_cannot_be_exported_goes_without_onnx() -> None:
    def refuse(bundle: Bundle, folder: Path) -> None:
        raise ConfigError("the operator x has no translation")

    result = push(small_bundle("character", VIT), "hf:me/clip", dry_run=True, write_onnx=refuse)
    assert result.without_onnx == "the operator x has no translation"
    assert {name.partition("/")[0] for name in result.files} == {"README.md", "bundle"}


def test_a_model_that_deviates_after_the_export_goes_without_onnx() -> None:
    def deviate(bundle: Bundle, folder: Path) -> None:
        far = TowerComparison(num=1, max_difference=0.5, min_cosine=0.9)
        check_deviation(far, far, precision="fp32", force=False, folder=folder)

    result = push(small_bundle("character", VIT), "hf:me/clip", dry_run=True, write_onnx=deviate)
    assert result.without_onnx is not None
    assert result.without_onnx.startswith("the export was removed, because its embeddings differ from the model's")
    assert {name.partition("/")[0] for name in result.files} == {"README.md", "bundle"}


def test_an_onnx_folder_is_not_pushed_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "onnx" / "diptych").mkdir(parents=True)
    (tmp_path / "onnx" / "diptych" / "config.json").write_text("{}")
    _assert_refused(capsys, "is an ONNX export; push the bundle", tmp_path / "onnx", "hf:me/clip")


def test_nothing_private_is_uploaded(hub: HubServer, tiny_bundle: Path, finished_run: Path, tmp_path: Path) -> None:
    """A trained bundle with evaluations of private data: no caption, no folder, no secret is in any file."""
    bundle = load_bundle(tiny_bundle)
    source = json.loads((tiny_bundle / "config.json").read_text("utf-8"))["origin"]["data"]
    samples = open_source(source)
    captions = {caption for number in range(len(samples)) for caption in samples[number].captions}
    data = "csv:/home/ann/my photos/captions.csv"
    metrics = {
        **bundle.metrics,
        "zero_shot": {"top1": 0.5, "per_class": {"Aunt Jane": 1.0}},
        "evaluations": {
            f"Retrieval, {data}": {"summary": "R@1 7.0 / 6.0 %", "protocol": {"split": "val", "data": data}}
        },
    }
    origin = {
        **bundle.origin,
        "init": str(finished_run.resolve() / "bundle"),
        "data": "shards:https://ann:pw@host/a.tar?token=abc1",
        "val_data": "csv:clients/Acme/a.csv",
    }
    save_bundle(replace(bundle, metrics=metrics, origin=origin), tmp_path / "bundle")
    assert _push(tmp_path / "bundle", "hf:me/clip") == 0
    files = {
        path: path.read_bytes().decode("utf-8", "ignore") for path in (hub.folder / "me").rglob("*") if path.is_file()
    }
    assert len(captions) > 5
    private = [
        "/home/ann",
        "my photos",
        str(tmp_path),
        str(finished_run.resolve().parent),
        "ann:pw",
        "abc1",
        "Aunt Jane",
        "Acme",
        *captions,
    ]
    found = {(path.name, words) for path, content in files.items() for words in private if words in content}
    assert found == set()
    card = (hub.folder / "me" / "clip" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: diptych\npipeline_tag: zero-shot-image-classification\n")
    assert "license" not in card
    assert "Retrieval, csv:captions.csv: R@1 7.0 / 6.0 %" in card
    assert 'diptych.load("hf:me/clip")' in card


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("csv:/home/ann/my photos/a.csv", "csv:a.csv"),
        ("flickr8k:/data/flickr8k", "flickr8k:flickr8k"),
        ("0.5*csv:/home/a.csv+0.5*coco:~/coco/val", "0.5*csv:a.csv+0.5*coco:val"),
        ("csv:../ann/a.csv", "csv:a.csv"),
        (r"csv:C:\Users\Ann\a.csv", "csv:a.csv"),
        (r"\\server\share\a.csv", "a.csv"),
        ("file:///home/ann/a.csv", "a.csv"),
        ("/a.csv", "a.csv"),
        ("shards:https://host/photos/a.tar", "shards:https://host/photos/a.tar"),
        ("hf:user/name", "hf:user/name"),
        ("R@1 7.0 / 6.0 %, 12 pairs/s", "R@1 7.0 / 6.0 %, 12 pairs/s"),
        ("ViT-B/32 at 3/4", "ViT-B/32 at 3/4"),
        ("csv:clients/Acme/a.csv", "csv:a.csv"),
        ("private/ann.csv", "ann.csv"),
        ("clients/Acme", "Acme"),
        ("$HOME/ann/x", "x"),
        (r"home\ann\x.csv", "x.csv"),
        (r"%USERPROFILE%\ann\x", "x"),
        ("csv:clients/O'Brien, Inc/a.csv", "csv:a.csv"),
        ("class-folder:clients/Acme/", "class-folder:Acme"),
        ("mix: 0.7*csv:${HOME}/a.csv + 0.3*hf:user/name", "mix: 0.7*csv:a.csv + 0.3*hf:user/name"),
        ("0.5*a/b.csv+0.5*c/d/", "0.5*b.csv+0.5*d"),
        ("hf:clients/a.parquet", "hf:a.parquet"),
        ("Retrieval, private/ann.csv", "Retrieval, ann.csv"),
        ("csv:Acme/2024/12", "csv:12"),
        ("csv:Acme/12 pairs/s/a.csv", "csv:a.csv"),
        ("csv:Acme/ViT-B/32/a.csv", "csv:a.csv"),
        ("csv:Acme / Co/a.csv", "csv:a.csv"),
    ],
)
def test_the_folders_of_paths_are_left_out(given: str, expected: str) -> None:
    assert shareable(given) == expected
    assert shareable({given: [given]}) == {expected: [expected]}
