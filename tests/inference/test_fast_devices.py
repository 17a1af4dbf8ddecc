"""What an embedder does on a GPU, on a CPU that stands in for one: half precision, and decoding in processes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.bundle.folder import load_bundle
from diptych.core.sample import ImageInput
from diptych.images.pool import DecodePool
from diptych.inference.embedder import Embedder
from diptych.inference.explain import explain
from diptych.inference.loaded import LoadedBundle
from diptych.models import towers

TEXTS = ["a red circle", "two dogs", "a red square"]


@pytest.fixture
def paths(photos: Path) -> list[Path]:
    return sorted(photos.glob("*.png"))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[DecodePool]:
    """Embedders decode in processes; all pools that they open."""
    opened = list[DecodePool]()

    create = DecodePool.__init__

    def noted(pool: DecodePool, num_processes: int) -> None:
        assert num_processes == 3
        create(pool, num_processes)
        opened.append(pool)

    monkeypatch.setattr(DecodePool, "__init__", noted)
    monkeypatch.setattr(towers, "decodes_in_processes", lambda _device: True)
    monkeypatch.setattr(towers, "num_decoders", lambda _device: 3)
    return opened


def _children() -> set[str]:
    """The process ids of the children of all threads of this process."""
    found = set[str]()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # The thread has ended; its children now belong to another thread.
            found.update(path.read_text(encoding="ascii").split())
    return found


def test_half_precision_is_near_and_of_unit_length(tiny_bundle: Path, paths: list[Path]) -> None:
    bundle = load_bundle(tiny_bundle)
    exact, half = Embedder(bundle), Embedder(bundle, precision="bf16")
    assert (exact.towers.dtype_name, half.towers.dtype_name) == ("float32", "bfloat16")
    for ours, full in (
        (half.encode_images(paths), exact.encode_images(paths)),
        (half.encode_texts(TEXTS), exact.encode_texts(TEXTS)),
    ):
        assert ours.dtype == np.float32
        assert not np.array_equal(ours, full)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(ours, full, atol=0.02)


def test_without_a_precision_the_device_decides(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def resolve(setting: str, device: torch.device) -> str:
        asked.append((setting, device.type))
        return "bf16"

    monkeypatch.setattr(towers, "resolve_precision", resolve)
    assert Embedder(load_bundle(tiny_bundle)).towers.dtype_name == "bfloat16"
    assert asked == [("auto", "cpu")]
    assert Embedder(load_bundle(tiny_bundle), precision="fp32").towers.dtype_name == "float32"


def test_an_explanation_stays_float32(tiny_bundle: Path, paths: list[Path]) -> None:
    bundle = load_bundle(tiny_bundle)
    exact = explain(Embedder(bundle), paths[0], TEXTS[:1])
    half = explain(Embedder(bundle, precision="bf16"), paths[0], TEXTS[:1])
    np.testing.assert_allclose(half.cosine, exact.cosine, atol=0.02)
    assert half.heat.max() == pytest.approx(1)


def test_processes_decode_after_the_first_batch_and_end(
    clip: LoadedBundle, paths: list[Path], as_on_a_gpu: list[DecodePool]
) -> None:
    before, during, given = _children(), set[str](), paths * 4

    def pictures() -> Iterator[ImageInput]:
        for path in given:
            during.update(_children() - before)
            yield path

    encoded = Embedder(clip.bundle, batch_size=4).encode_images(pictures())
    assert len(as_on_a_gpu) == 1
    assert len(during) in {1, 2, 3}  # Not more than the pool has; fewer if they are fast.
    assert _children() == before
    batches = [clip.embedder.encode_images(given[start : start + 4]) for start in range(0, len(given), 4)]
    np.testing.assert_array_equal(encoded, np.concatenate(batches))


def test_one_batch_starts_no_process(
    clip: LoadedBundle, paths: list[Path], as_on_a_gpu: list[DecodePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecodePool, "pixels", lambda *_, **__: pytest.fail("decoded in a process"))
    encoded = Embedder(clip.bundle, batch_size=8).encode_images(paths)
    np.testing.assert_array_equal(encoded, clip.embedder.encode_images(paths))
    assert all(pool.processes == [] for pool in as_on_a_gpu)
