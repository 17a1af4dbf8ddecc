"""transformers.js computes the ids and the embeddings of a bundle from its ONNX folder. It runs under Node."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from diptych.bundle.folder import Bundle
from diptych.export.comparison import draw_images
from diptych.export.examples import TRANSFORMERS_JS
from diptych.export.onnx_folder import export_onnx
from diptych.images.tensors import normalize
from diptych.inference.loaded_bundle import LoadedBundle
from diptych.runtime.onnx_folder import load_onnx
from tests.export.conftest import Exported
from tests.export.makers import CONVNET, SIDE, TEXTS, VIT, picture, ranked, small_bundle
from tests.tokenizers.makers import HARD_TEXTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "deploy.md"
PACKAGES = {
    "private": True,
    "dependencies": {"@huggingface/transformers": TRANSFORMERS_JS},
    "overrides": {"sharp": "0.34.5"},  # npm does not install the library of newer ones under Debian 12's Node 18.
}
SCRIPT = Path(__file__).with_name("embeddings.mjs")


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The installed packages. Where Node is not installed the test is skipped; with REQUIRE_NODE set, it fails.

    `--ignore-scripts`: the script of one package downloads files that these tests do not need.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        lacking = "Node is not installed (Debian: apt-get install nodejs npm)"
        if os.environ.get("REQUIRE_NODE"):
            pytest.fail(lacking)
        pytest.skip(lacking)
    content = json.dumps(PACKAGES)
    cache = Path(tempfile.gettempdir()) / f"diptych-node-{sha256(content.encode()).hexdigest()[:12]}-{os.getuid()}"
    cache.mkdir(exist_ok=True)
    with FileLock(cache / "lock"):
        if not (cache / "complete").exists():
            (cache / "package.json").write_text(content)
            flags = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
            subprocess.run(["npm", "install", *flags], cwd=cache, check=True, timeout=600)
            (cache / "complete").touch()
    return cache / "node_modules"


def _computed(script: Path, folder: Path, image: Path, texts: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(
        ["node", str(script), str(folder), str(image)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _check(bundle: Bundle, folder: Path, node_modules: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(node_modules)  # Node looks for packages next to a script and above.
    script, image = tmp_path / "embeddings.mjs", picture(tmp_path / "photo.png", side=SIDE)
    shutil.copy(SCRIPT, script)
    found = _computed(script, folder, image, HARD_TEXTS)
    loaded = LoadedBundle(bundle)
    loaded.embedder.on_cut = lambda _: None
    pixels = normalize(torch.from_numpy(loaded.embedder.pixels(image))[None], bundle.config.pixels)
    np.testing.assert_allclose(found["pixels"], pixels.flatten(), atol=1e-5)
    np.testing.assert_allclose(found["image_emb"], loaded.encode_images([image]), atol=1e-4)
    np.testing.assert_allclose(found["text_emb"], loaded.encode_texts(HARD_TEXTS), atol=1e-4)
    encoded = bundle.tokenizer.encode(HARD_TEXTS)
    for text, theirs, ours, length in zip(HARD_TEXTS, found["ids"], encoded.ids, encoded.lengths, strict=True):
        is_cut = int(length) == encoded.ids.shape[1]  # transformers.js cuts the end token off; the graph restores it.
        assert theirs[: -1 if is_cut else None] == ours[: -1 if is_cut else None].tolist(), text
    assert encoded.num_cut >= 2


def test_a_learned_vocabulary_and_a_convnet(exported: Exported, node_modules: Path, tmp_path: Path) -> None:
    _check(exported.bundle, exported.folder, node_modules, tmp_path)


def test_clips_vocabulary_and_a_vision_transformer(node_modules: Path, tmp_path: Path) -> None:
    bundle = small_bundle("clip-bpe", VIT)
    export_onnx(bundle, tmp_path / "onnx")
    _check(bundle, tmp_path / "onnx", node_modules, tmp_path)


def test_the_example(exported: Exported, node_modules: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(node_modules)
    shutil.copytree(exported.folder, tmp_path / "onnx")
    image = picture(tmp_path / "photo.png", side=SIDE)
    loaded = LoadedBundle(exported.bundle)
    loaded.embedder.on_cut = lambda _: None
    ours = dict(zip(TEXTS, loaded.similarity([image], TEXTS).cosine[0].tolist(), strict=True))
    theirs = ranked(["node", tmp_path / "onnx/example.mjs", image, *TEXTS])
    assert theirs == pytest.approx(ours, abs=1e-4)
    assert [*theirs] == sorted(theirs, key=theirs.__getitem__, reverse=True)


def test_int8_is_selected_by_the_config(node_modules: Path, tmp_path: Path) -> None:
    bundle, folder = small_bundle("character", CONVNET), tmp_path / "onnx"
    export_onnx(bundle, folder, precision="int8", force=True, images=draw_images(8))
    (tmp_path / "node_modules").symlink_to(node_modules)
    image, texts = picture(tmp_path / "photo.png", side=SIDE), ["a dog", "", "two dogs run"]
    shutil.copy(SCRIPT, tmp_path / SCRIPT.name)
    found = _computed(tmp_path / SCRIPT.name, folder, image, texts)
    loaded = LoadedBundle(load_onnx(folder))
    for theirs, ours in (
        (found["image_emb"], loaded.encode_images([image])),
        (found["text_emb"], loaded.encode_texts(texts)),
    ):
        assert np.einsum("ne,ne->n", theirs, ours).min() > 0.999


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def _site(folder: Path) -> Iterator[str]:
    """The address of a server of a folder's files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_page_of_the_guide(exported: Exported, node_modules: Path, tmp_path: Path, browser: "Browser") -> None:
    """It computes in the browser, and sends no request to another site."""
    (tmp_path / "node_modules").symlink_to(node_modules)
    shutil.copytree(exported.folder, tmp_path / "mine-onnx")
    page_text = re.search(r"```html\n(.*?)```", GUIDE.read_text("utf-8"), flags=re.DOTALL)
    assert page_text is not None
    (tmp_path / "index.html").write_text(page_text[1], "utf-8")
    image, texts = picture(tmp_path / "photo.png", side=SIDE), ["a dog", "a red circle"]
    with _site(tmp_path) as address, browser.new_context() as context:
        page, requests = context.new_page(), []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{address}/index.html")
        page.get_by_text("Choose a picture.").wait_for(timeout=120_000)
        page.set_input_files("input", image)
        page.get_by_text(texts[-1]).wait_for(timeout=120_000)
        lines = page.locator("pre").inner_text().splitlines()
    assert {url.startswith((f"{address}/", "blob:")) for url in requests} == {True}
    theirs = {text: float(cosine) for cosine, _, text in (line.partition("  ") for line in lines)}
    ours = dict(zip(texts, LoadedBundle(exported.bundle).similarity([image], texts).cosine[0].tolist(), strict=True))
    assert theirs == pytest.approx(ours, abs=1e-4)
