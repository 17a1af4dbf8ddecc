"""Damaged, hostile and incomplete exports get one line; identities keep precisions apart."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.bundle.checksums import seal
from diptych.bundle.onnx_layout import ONNX_CONFIG
from diptych.bundle.open_bundle import open_bundle
from diptych.core.errors import BundleError, ConfigError, IndexingError
from diptych.core.files import sha256_of
from diptych.inference.loaded import load
from diptych.inference.loaded_bundle import LoadedBundle
from diptych.runtime.onnx_config import graph_names
from diptych.runtime.onnx_folder import load_onnx
from diptych.search.check_model import check_model
from diptych.search.collection import open_or_create, update


@pytest.fixture
def folder(onnx_folder: Path, tmp_path: Path) -> Path:
    """A copy of the export."""
    return Path(shutil.copytree(onnx_folder, tmp_path / "copy"))


def _edit(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the config and seal it again, as somebody who means harm would."""
    path = folder / ONNX_CONFIG
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    path.write_text(json.dumps(seal(content)), encoding="utf-8")


KEYS = [
    "precision",
    "opset",
    "model",
    "logit_scale",
    "identity",
    "aliases",
    "files",
    "metrics",
    "origin",
    "onnx_format",
]
VALUES: list[Any] = [None, [], {}, "x", -1, float("nan"), 10**400, "absent"]
VALID = {("aliases", "[]"), ("metrics", "{}"), ("origin", "{}")}
WRONG = [(key, value) for key in KEYS for value in VALUES if (key, str(value)) not in VALID]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: f"{value!s:.12}")
def test_a_wrong_value_is_one_line(folder: Path, key: str, value: Any) -> None:
    _edit(folder, lambda content: content.pop(key) if value == "absent" else content.update({key: value}))
    with pytest.raises(BundleError) as caught:
        load_onnx(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x", "onnx/../../x", "onnx/" + "x" * 5000])
def test_no_file_outside_of_the_folder_is_read(folder: Path, name: str) -> None:
    _edit(folder, lambda content: content["files"].update({name: "0"}))
    with pytest.raises(BundleError, match="which is no file of an export"):
        load_onnx(folder)


def test_every_graph_has_a_checksum(folder: Path) -> None:
    _edit(folder, lambda content: content["files"].pop("onnx/text_model.onnx"))
    with pytest.raises(BundleError, match=r"has no checksum of onnx/text_model\.onnx"):
        load_onnx(folder)


@pytest.mark.parametrize("name", [*graph_names("fp32"), "diptych/tokenizer.json", ONNX_CONFIG])
def test_half_an_export(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"incomplete export; {name} is missing: export the bundle again"):
        load(folder)


def test_a_flipped_byte(folder: Path) -> None:
    path = folder / "onnx/text_model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is damaged: its SHA-256"):
        load_onnx(folder)


def _seal_file(folder: Path, name: str) -> None:
    _edit(folder, lambda content: content["files"].update({name: sha256_of(folder / name)}))


def test_a_graph_that_is_none(folder: Path) -> None:
    name = "onnx/text_model.onnx"
    (folder / name).write_bytes(b"no graph")
    _seal_file(folder, name)
    with pytest.raises(BundleError, match="ONNX Runtime cannot read it") as caught:
        load(folder).encode_texts(["a dog"])
    assert "\n" not in str(caught.value)


def test_graphs_that_are_swapped(folder: Path) -> None:
    image, text = (folder / name for name in graph_names("fp32"))
    image.rename(folder / "other")
    text.rename(image)
    (folder / "other").rename(text)
    for name in graph_names("fp32"):
        _seal_file(folder, name)
    with pytest.raises(BundleError, match="does not fit the config of its export"):
        load(folder).embedder.towers.open()


def test_a_tokenizer_of_another_size(folder: Path) -> None:
    _edit(folder, lambda content: content["model"]["text"].update(vocab_size=299))
    with pytest.raises(BundleError, match="its tokenizer has"):
        load_onnx(folder)


def test_a_newer_opset(folder: Path) -> None:
    _edit(folder, lambda content: content.update(opset=99))
    with pytest.raises(
        BundleError, match=r"has opset 99, and this Diptych supports up to \d+; export the bundle again"
    ):
        load_onnx(folder)


def test_settings_of_a_bundle_are_refused(onnx_folder: Path, tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="precision is set when the bundle is exported"):
        load(onnx_folder, precision="int8")
    with pytest.raises(ConfigError, match="unknown provider"):
        load(onnx_folder, provider="cudx")
    with pytest.raises(ConfigError, match="has no provider"):
        load(tiny_bundle, provider="cpu")
    with pytest.raises(BundleError, match="is an ONNX export, which cannot be trained or converted"):
        open_bundle(onnx_folder)


def _as_int8(folder: Path, checksum: str) -> LoadedBundle:
    """The export with names of an int8 export. Its graphs are those of fp32, which the identity does not know."""
    for name, other in zip(graph_names("fp32"), graph_names("int8"), strict=True):
        for suffix in ("", "_data"):
            if (folder / f"{name}{suffix}").exists():
                shutil.copy(folder / f"{name}{suffix}", folder / f"{name}{suffix}".replace(name, other))

    def edit(content: dict[str, Any]) -> None:
        content["precision"] = "int8"
        files = {name: value for name, value in content["files"].items() if not name.startswith("onnx/")}
        graphs = {name: sha256_of(folder / name) for name in graph_names("int8")}
        content["files"] = {**files, **graphs, f"onnx/{checksum}": sha256_of(folder / f"onnx/{checksum}")}

    (folder / f"onnx/{checksum}").write_text(checksum, encoding="utf-8")
    _edit(folder, edit)
    return load(folder)


def test_precisions_share_searches_but_no_index(
    clip: LoadedBundle, onnx_folder: Path, photos: Path, tmp_path: Path
) -> None:
    first, second = (_as_int8(Path(shutil.copytree(onnx_folder, tmp_path / name)), name) for name in ("one", "two"))
    assert first.identity != second.identity
    assert all(light.identity.startswith(f"{clip.identity}-int8-") for light in (first, second))
    with open_or_create(tmp_path / "index", first) as index:
        update(index, first, [photos])
        assert index.model == first.identity
        for light in (clip, first, second, load(onnx_folder)):
            check_model(index, light)
    for other in (clip, second):
        with pytest.raises(IndexingError, match="it can search the index, but not add to it"):
            open_or_create(tmp_path / "index", other)


def test_copies_and_forks_open_their_own_sessions(onnx_folder: Path) -> None:
    light = load(onnx_folder)
    expected = light.encode_texts(["a dog"])
    copied = pickle.loads(pickle.dumps(light.bundle.towers()))
    ((_, found_by_copy),) = copied.encode_texts(light.bundle.tokenizer.encode(["a dog"]), batch_size=1)
    assert np.array_equal(found_by_copy, expected)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, light.encode_texts(["a dog"]).tobytes())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(np.frombuffer(found, dtype=np.float32)[None], expected)
