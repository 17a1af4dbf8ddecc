"""One model in several threads: each call returns what it returns alone, bit for bit."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from diptych.bundle.folder import Bundle
from diptych.inference.embedder import Embedder
from diptych.inference.explain import explain
from diptych.inference.loaded import LoadedBundle
from diptych.models.clip import CLIP
from diptych.models.config import ConvNetConfig, ResNetConfig, ViTConfig
from diptych.tokenizers.hashing import HashingTokenizer
from tests.conftest import TINY_MODEL

NUM_THREADS, ROUNDS = 4, 12
TEXTS = [
    f"a {size} {color} circle number {number}" for size in ("small", "large") for color in "rgb" for number in "12"
]


def pictures(num: int) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (40 + i, 60, 3), dtype=np.uint8) for i in range(num)]


def check_in_threads(calls: list[Callable[[], Any]]) -> None:
    """Each thread makes all calls several times, starting with another one; results must equal those of one thread."""
    expected = [call() for call in calls]
    begin = Barrier(NUM_THREADS)

    def work(number: int) -> None:
        begin.wait()
        for turn in range(ROUNDS * len(calls)):
            which = (turn + number) % len(calls)
            np.testing.assert_equal(calls[which](), expected[which])

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(work, range(NUM_THREADS)))


@pytest.mark.parametrize(
    "image",
    [
        ViTConfig(image_px=32, patch_px=8, width=16, layers=2, heads=2),
        ViTConfig(image_px=32, patch_px=8, width=16, layers=2, heads=2, pooling="attention"),
        ResNetConfig(image_px=64, layers=(1, 1, 1, 1), width=8, heads=4),
        ConvNetConfig(image_px=64, widths=(8, 16), layers=(1, 1)),
    ],
)
def test_explain_and_encode_share_nothing(image: ViTConfig | ResNetConfig | ConvNetConfig) -> None:
    torch.manual_seed(0)
    config = replace(TINY_MODEL, image=image, text=replace(TINY_MODEL.text, tokenizer="hashing"))
    embedder = Embedder(
        Bundle(model=CLIP(config).eval(), tokenizer=HashingTokenizer(vocab_size=300, context_length=24))
    )
    first, second, *others = pictures(8)

    def heat(picture: NDArray[np.uint8], texts: list[str]) -> Any:
        found = explain(embedder, picture, texts)
        return found.heat, found.cosine

    check_in_threads(
        [
            lambda: heat(first, TEXTS[:1]),
            lambda: embedder.encode_images(others),
            lambda: heat(second, TEXTS[3:6]),
            lambda: embedder.encode_texts(TEXTS),
        ]
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_an_image_that_is_not_yet_loaded_may_be_shared_by_calls(clip: LoadedBundle, tmp_path: Path, form: str) -> None:
    path, exif = tmp_path / "one", Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pictures(1)[0]).resize((400, 300)).save(path, form, exif=exif)
    expected = clip.encode_images([path])
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in range(40):
            begin = Barrier(NUM_THREADS)
            with Image.open(path) as image:

                def work(image: Image.Image, begin: Barrier) -> NDArray[np.float32]:
                    begin.wait()
                    return clip.encode_images([image])

                calls = [pool.submit(work, image, begin) for _ in range(NUM_THREADS)]
                for call in calls:
                    np.testing.assert_array_equal(call.result(), expected)
