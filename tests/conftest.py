"""What several rooms' tests share: a trained tiny bundle, drawn photos on disk, a way past the shape checks."""

import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import jaxtyping
import pytest
import torch
from hypothesis import settings as hypothesis_settings
from PIL import Image, ImageDraw

from diptych.bundle.open_bundle import open_bundle
from diptych.cli.output import console
from diptych.core.settings import override
from diptych.data.batches.loader import DataConfig
from diptych.export.onnx_folder import export_onnx
from diptych.images.augment import AugmentConfig
from diptych.inference.loaded import LoadedBundle, load
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig
from diptych.training.run import train
from diptych.training.validation import ValidationConfig
from tests import TestNumber
from tests.servers import Server, postgresql, postgresql_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

hypothesis_settings.register_profile("house", max_examples=40, deadline=None, derandomize=True, database=None)
hypothesis_settings.load_profile("house")

TINY_MODEL = CLIPConfig(
    embed_dim=16,
    image=ViTConfig(image_px=32, patch_px=16, width=16, layers=1, heads=2),
    text=TextConfig(vocab_size=300, context_length=24, width=16, layers=1, heads=2),
)
TINY_RUN = TrainConfig(
    recipe="tiny",
    model=TINY_MODEL,
    data=DataConfig(source="shapes:256", workers=0),
    augment=AugmentConfig(flip=0.5),
    optimizer=OptimizerConfig(lr=2e-3),
    schedule=ScheduleConfig(epochs=None, steps=10, warmup_steps=2),
    batch_size=16,
    device="cpu",
    validation=ValidationConfig(times=2, samples=32),
)

_NOBODY = 65534


def pytest_runtest_setup() -> None:
    """Check the first calls of each function again."""
    TestNumber.now += 1


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Debian's Chromium. Where it is not installed the test is skipped; with REQUIRE_CHROMIUM set, it fails."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        lacking = "Chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("REQUIRE_CHROMIUM"):
            pytest.fail(lacking)
        pytest.skip(lacking)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _on_the_path() -> Iterator[None]:
    """As in an activated environment: commands in messages begin with `diptych`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the annotation checks: what a user sees who passes the wrong type."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def tiny_run() -> TrainConfig:
    """Ten steps on drawn shapes."""
    return TINY_RUN


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run."""
    run = tmp_path_factory.mktemp("tiny") / "run"
    train(TINY_RUN, run)
    return run


@pytest.fixture
def fresh_console() -> None:
    """The console holds the stream that was standard output when it was made."""
    console.cache_clear()


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than ten steps do."""
    monkeypatch.setattr("diptych.training.report.curves.draw_curves", lambda *_, **__: None)


@pytest.fixture(scope="session")
def tiny_bundle(finished_run: Path) -> Path:
    """The folder of a tiny trained bundle; leave it as it is."""
    return finished_run / "bundle"


@pytest.fixture(scope="session")
def onnx_folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle as an ONNX export in fp32; leave it as it is."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    export_onnx(open_bundle(tiny_bundle), folder)
    return folder


@pytest.fixture(scope="session")
def clip(tiny_bundle: Path) -> LoadedBundle:
    """The tiny bundle, loaded."""
    return load(tiny_bundle, device="cpu")


@pytest.fixture(scope="session")
def character_run() -> TrainConfig:
    """The tiny run, read letter by letter."""
    return override(TINY_RUN, {"model.text.tokenizer": "character", "model.text.context_length": 64})


def draw_photos(folder: Path, names: list[str]) -> None:
    """Pictures that differ from one another and are not square."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        image = Image.new("RGB", (60, 40), (20 * number % 256, 90, 200))
        ImageDraw.Draw(image).ellipse((number * 3, 5, number * 3 + 20, 30), fill=(240, 40 * number % 256, 30))
        image.save(folder / name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with six pictures, one of them in a subfolder."""
    folder = tmp_path / "photos"
    draw_photos(folder, [f"{name}.png" for name in "abcde"])
    draw_photos(folder / "more", ["f.jpg"])
    return folder


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """A PostgreSQL with pgvector, started when it is first asked for."""
    with postgresql(with_vector=True) as address:
        yield address


@pytest.fixture(scope="module")
def own_database() -> Iterator[Server]:
    """A PostgreSQL with pgvector that no other file of tests uses."""
    with postgresql_server(with_vector=True) as started:
        yield started


@pytest.fixture(params=["folder", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an index can be made."""
    if request.param == "folder":
        return str(tmp_path / "index")
    return f"{request.getfixturevalue('database')}?index=i{uuid4().hex}"


@pytest.fixture
def flickr_folder(tmp_path: Path) -> Path:
    """A small Flickr dump: four photos of two captions, the CSV's broken row, and Karpathy's splits."""
    folder = tmp_path / "flickr"
    names = ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    draw_photos(folder / "images", names)
    rows = [f"{name}| {number}|  Photo {name[0]} , caption {number} ." for name in names for number in (0, 1)]
    rows[3] = "2.jpg| 1   A dog runs across the grass ."  # As in Flickr30k's results.csv, line 19,999.
    (folder / "results.csv").write_text("image_name| comment_number| comment\n" + "\n".join(rows) + "\n", "utf-8")
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": "photo one"}]}
        for name, split in zip(names, ("train", "train", "val", "test"), strict=True)
    ]
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images}), "utf-8")
    return folder


@pytest.fixture
def json_file(tmp_path: Path) -> Path:
    """A caption file over four pictures, with labels."""
    draw_photos(tmp_path / "set", ["a.png", "b.png", "c.png", "d.png"])
    rows = [
        {"image": f"{name}.png", "caption": f"picture {name}", "label": label}
        for name, label in zip("abcd", ("dog", "cat", "dog", "cat"), strict=True)
    ]
    path = tmp_path / "set" / "captions.json"
    path.write_text(json.dumps(rows), "utf-8")
    return path


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read all; nobody may not."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def open_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that others than its owner may enter, too, which pytest's own are not."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("XDG_CACHE_HOME", f"{name}/cache")
        yield Path(name)
