"""Hugging Face's CLIP folders with uncommon processors and epsilons: embeddings from JPEG files are the peer's."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.bundle.open_bundle import export_bundle, open_bundle
from diptych.inference.embedder import Embedder
from tests import peers
from tests.parity.models import hugging_face_model
from tests.parity.siglip_folders import photos

WHOLE = {"size": {"height": 48, "width": 48}, "do_center_crop": False}
PROCESSORS: dict[str, dict[str, Any]] = {
    "squashed": WHOLE,
    "larger than the crop": {"size": {"shortest_edge": 55}, "crop_size": 48},
    "Lanczos": {"size": {"shortest_edge": 48}, "crop_size": 48, "resample": 1},
    "Lanczos, squashed": {**WHOLE, "resample": 1},
    "levels": {**WHOLE, "do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [70.0, 68.0, 71.0]},
}


@pytest.mark.parametrize("name", list(PROCESSORS))
@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_embeddings_from_files_are_the_peers(name: str, eps: float, tmp_path: Path) -> None:
    model = hugging_face_model(layer_norm_eps=eps)
    model.save_pretrained(tmp_path / "theirs")
    processor = peers.transformers.CLIPImageProcessorPil(**PROCESSORS[name])
    processor.save_pretrained(tmp_path / "theirs")
    files = []
    for photo in photos():
        written = io.BytesIO()
        photo.save(written, "JPEG")
        files.append(written.getvalue())
    pixels = processor([Image.open(io.BytesIO(file)) for file in files], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    bundle = open_bundle(tmp_path / "theirs")
    found = Embedder(bundle).encode_images(files)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    export_bundle(bundle, "hugging-face", tmp_path / "out")
    again = open_bundle(tmp_path / "out")
    assert again.identities() == bundle.identities()
    np.testing.assert_array_equal(Embedder(again).encode_images(files), found)
