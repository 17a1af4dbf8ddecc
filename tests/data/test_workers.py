"""Batches are the same for any number of worker processes, for every kind of source: what is open is forked with them."""

import io
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.batches.loader import DataConfig, TrainingExamples, training_batches
from diptych.data.open_source import open_source
from diptych.data.sources.protocol import Source
from diptych.images.augment import AugmentConfig
from diptych.images.transforms import PixelConfig
from diptych.tokenizers.character import CharacterTokenizer
from tests.data.makers import CIFARS, SOURCE_KINDS, cifar_archive, picture_bytes, python_files, spec_of

_STEPS, _BATCH_SIZE = 12, 4


def _large_zip(folder: Path) -> str:
    """128 pictures of noise, each a few reads long, so that readers meet."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "large.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(128):
            content = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, "PNG")
            file.writestr(f"{'cat' if i % 2 else 'dog'}/{i}.png", content.getvalue())
    return f"class-folder:{folder / 'large.zip'}"


def _parquet(folder: Path) -> str:
    """Four pictures in a parquet file."""
    from datasets import Dataset

    rows = {"image": picture_bytes(folder.parent / "drawn", 4), "caption": [f"caption {i}" for i in range(4)]}
    Dataset.from_dict(rows).to_parquet(folder / "set.parquet")
    return f"hf:{folder / 'set.parquet'}"


def _cifar_archive(folder: Path) -> str:
    return f"cifar10:{cifar_archive(python_files(CIFARS['cifar10'], folder / 'cifar'))}"


_MORE: dict[str, Callable[[Path], str]] = {
    "class-folder in a large zip": _large_zip,
    "hf of parquet": _parquet,
    "cifar10 in an archive": _cifar_archive,
}


@pytest.fixture(params=[*SOURCE_KINDS, *_MORE])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "set"
    if request.param not in _MORE:
        return spec_of(request.param, request, folder)
    folder.mkdir()
    return _MORE[request.param](folder)


def _read(source: Source, workers: int) -> list[tuple[object, ...]]:
    examples = TrainingExamples(
        source,
        config=DataConfig(workers=workers),
        augment=AugmentConfig(),
        pixels=PixelConfig(),
        image_px=16,
        seed=0,
    )
    batches = training_batches(
        examples, CharacterTokenizer.train(["abc"], context_length=64), batch_size=min(_BATCH_SIZE, len(source))
    )
    return [
        (batch.keys, batch.captions, batch.skipped, batch.pixels.numpy().tobytes()) for batch in islice(batches, _STEPS)
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_are_equal_for_any_number_of_workers(spec: str) -> None:
    source = open_source(spec)
    expected = _read(source, 0)
    assert not any(skipped for _, _, skipped, _ in expected)
    for workers in (1, 2, 4, 8):
        assert _read(source, workers) == expected, f"{workers} workers"
