"""Without torch, everything that does not need it works, and everything else names the missing extra."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import diptych
from diptych.export.shareable import shareable
from diptych.inference.loaded import load
from diptych.inference.loaded_bundle import LoadedBundle
from diptych.search.collection import open_or_create, update

NUM_PHOTOS = 6
"""Number of pictures of the fixture `photos`."""
NEEDS = "which is not installed: pip install 'diptych[train]'"


def _python(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "faulthandler", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def _diptych(*words: str | Path) -> str:
    done = _python("-m", "tests.runtime.without_torch", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _error(*words: str | Path) -> str:
    done = _python("-m", "tests.runtime.without_torch", *words)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_commands_print_what_they_print_with_the_bundle(
    clip: LoadedBundle, onnx_folder: Path, photos: Path, tmp_path: Path
) -> None:
    paths = sorted(photos.glob("*.png"))
    found = json.loads(_diptych("similarity", onnx_folder, paths[0], "a red circle", "a dog", "--json"))
    expected = clip.similarity([paths[0]], ["a red circle", "a dog"])
    np.testing.assert_allclose(found["cosine"], expected.cosine, atol=1e-5)
    np.testing.assert_allclose(found["probability"], expected.probability, atol=1e-4)

    index = tmp_path / "index"
    with open_or_create(index, clip) as opened:
        update(opened, clip, [photos])
        vector = clip.encode_queries(["a red circle"])
        hits = opened.search(vector, top=3)[0]
    assert f"{NUM_PHOTOS} as before" in _diptych("index", "add", index, photos, "--bundle", onnx_folder)
    answer = json.loads(_diptych("search", index, "a red circle", "--top", "3", "--bundle", onnx_folder, "--json"))
    assert [hit["entry"]["key"] if "entry" in hit else hit["key"] for hit in answer] == [hit.entry.key for hit in hits]

    ranked = _diptych("rank-images", onnx_folder, photos, "a red circle")
    assert str(clip.rank_images("a red circle", photos).results[0].item) in ranked
    classes = json.loads(_diptych("classify", onnx_folder, paths[0], "--classes", "circle", "square", "--json"))
    assert classes
    assert "sheet.png" in _diptych("search", index, "été", "--sheet", tmp_path / "sheet.png", "--bundle", onnx_folder)


def test_what_needs_an_extra_names_it(tiny_bundle: Path, onnx_folder: Path, photos: Path, tmp_path: Path) -> None:
    picture = next(photos.glob("*.png"))
    assert NEEDS in _error("train", "--data", "shapes:64", "--out", tmp_path / "run")
    assert NEEDS in _error("similarity", tiny_bundle, picture, "a dog")
    assert "is not an ONNX export" in _error("similarity", tiny_bundle, picture, "a dog")
    assert NEEDS in _error("explain", onnx_folder, picture, "a dog", "--out", tmp_path / "heat.png")
    assert NEEDS in _error("export", tiny_bundle, "--to", "open-clip", "--out", tmp_path / "out")


def test_the_library_and_the_server(onnx_folder: Path, photos: Path, tmp_path: Path, clip: LoadedBundle) -> None:
    program = f"""
from tests.runtime.without_torch import ABSENT, hide
hide()
import sys
from pathlib import Path
import numpy as np
import diptych
from starlette.testclient import TestClient
from diptych.search.collection import open_or_create, update
from diptych.server.app import create_app
from diptych.server.limits import Limits

clip = diptych.load({str(onnx_folder)!r})
photos = sorted(Path({str(photos)!r}).glob("*.png"))
np.savez({str(tmp_path / "found.npz")!r}, images=clip.encode_images(photos), texts=clip.encode_texts(["a dog", ""]),
         queries=clip.encode_queries([diptych.parse_query('"a dog" - 0.5*"a cat"')]))
try:
    diptych.train
except diptych.DiptychError as error:
    print(error)
with open_or_create({str(tmp_path / "index")!r}, clip) as index:
    update(index, clip, [photos[0].parent])
    app = create_app(clip, index, limits=Limits(), keys=[], hosts=["testserver"], has_absolute_paths=True)
    with TestClient(app) as client:
        info = client.get("/v1/info").json()
        found = client.post("/v1/search", json={{"text": "a dog"}}).json()["results"]
        heat = client.get(f"/v1/images/{{found[0]['id']}}/heat?text=dog")
        print(len(found), info["device"], info["heat_maps"], heat.status_code, client.get("/").status_code)
assert not ABSENT & {{*sys.modules}}
"""
    done = _python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"diptych.train needs PyTorch, {NEEDS}",
        f"{NUM_PHOTOS} cpu (ONNX Runtime, float32) False 404 200",
    ]
    found = np.load(tmp_path / "found.npz")
    paths = sorted(photos.glob("*.png"))
    np.testing.assert_allclose(found["images"], clip.encode_images(paths), atol=1e-5)
    np.testing.assert_allclose(found["texts"], clip.encode_texts(["a dog", ""]), atol=1e-5)
    query = diptych.parse_query('"a dog" - 0.5*"a cat"')
    np.testing.assert_allclose(found["queries"], clip.encode_queries([query]), atol=1e-5)


def test_the_bundle_and_its_export_are_one_model(clip: LoadedBundle, onnx_folder: Path) -> None:
    light = load(onnx_folder)
    assert light.identities == clip.identities
    assert light.encoder.logit_scale == pytest.approx(clip.encoder.logit_scale, rel=1e-6)
    assert light.bundle.metrics == shareable(clip.bundle.metrics)
    assert light.bundle.origin == shareable(clip.bundle.origin)
