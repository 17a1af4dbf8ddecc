"""Hugging Face's image processor gives the normalized pixels of our transform from `preprocessor_config.json`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.bundle.processor import processor_config
from diptych.export.comparison import draw_images
from diptych.export.model_config import model_config
from diptych.images.tensors import normalize
from diptych.images.transforms import PixelConfig, evaluation_pixels
from diptych.models.config import CLIPConfig, TextConfig
from tests import peers
from tests.export.makers import VIT
from tests.tokenizers.makers import make_tokenizer

PIXELS = {
    "CLIP's": PixelConfig(),
    "others": PixelConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation="bilinear", crop_rounding="down"),
}


@pytest.mark.parametrize("name", list(PIXELS))
def test_transformers_gives_the_same_pixels(name: str, tmp_path: Path) -> None:
    config = CLIPConfig(image=VIT, pixels=PIXELS[name])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor_config(config)))
    processor = peers.transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    images = [*draw_images(8), Image.new("RGB", (64, 64), (1, 2, 3)), draw_images(1)[0].resize((100, 31))]
    theirs = processor(images, return_tensors="np")["pixel_values"]
    for image, given in zip(images, theirs, strict=True):
        pixels = evaluation_pixels(image, image_px=config.image.image_px, config=config.pixels)
        ours = normalize(torch.from_numpy(pixels)[None], config.pixels)[0].numpy()
        assert given.shape == (3, 64, 64)
        np.testing.assert_allclose(given, ours, atol=1e-5)


def test_a_rectangle_is_resized_without_a_crop(tmp_path: Path) -> None:
    config = CLIPConfig(image=replace(VIT, image_px=(32, 64)))
    content = processor_config(config)
    assert content["size"] == {"height": 32, "width": 64}
    assert content["do_center_crop"] is False
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    processor = peers.transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert processor(draw_images(1), return_tensors="np")["pixel_values"].shape == (1, 3, 32, 64)


def test_the_config_names_the_special_ids() -> None:
    tokenizer = make_tokenizer("clip-bpe")
    text = TextConfig(tokenizer="clip-bpe", vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length)
    config = CLIPConfig(embed_dim=16, image=VIT, text=text)
    content = model_config(config, tokenizer, dtype="int8", external_data=["text_model_int8.onnx"])
    loaded = peers.transformers.CLIPConfig.from_dict(content)
    assert (loaded.projection_dim, loaded.text_config.max_position_embeddings) == (16, 24)
    assert (loaded.text_config.bos_token_id, loaded.text_config.eos_token_id) == (49406, 49407)
    assert loaded.vision_config.image_size == 64
    assert content["transformers.js_config"]["use_external_data_format"] == {"text_model_int8.onnx": True}
