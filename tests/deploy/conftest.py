"""The mounts of a container: an ONNX export and an index."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from diptych.inference.loaded import load
from diptych.search.collection import open_or_create, update


class Mounts(NamedTuple):
    """Folders that are mounted at /model and /index."""

    model: Path
    photos_index: Path


@pytest.fixture
def mounts(onnx_folder: Path, photos: Path, tmp_path: Path) -> Mounts:
    """An fp32 export of the tiny bundle, and an index of six photos made with the bundle."""
    model, index = tmp_path / "model", tmp_path / "index"
    shutil.copytree(onnx_folder, model)
    clip = load(model)
    with open_or_create(index, clip) as opened:
        update(opened, clip, [photos])
    return Mounts(model, index)
