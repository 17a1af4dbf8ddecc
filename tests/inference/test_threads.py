"""One model in several threads: each call returns what it returns alone, bit for bit."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from diptych.bundle.folder import Bundle
from diptych.core.formatting import plain
from diptych.inference.embedder import Embedder
from diptych.inference.explain import explain
from diptych.inference.loaded import LoadedBundle, load
from diptych.inference.query import parse_query
from diptych.models.clip import CLIP
from diptych.models.config import ConvNetConfig, ResNetConfig, ViTConfig
from diptych.tokenizers import clip_bpe
from diptych.tokenizers.character import CharacterTokenizer
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from diptych.tokenizers.hashing import HashingTokenizer
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from diptych.tokenizers.protocol import Tokenizer
from tests.conftest import TINY_MODEL

NUM_THREADS, ROUNDS = 4, 5
TEXTS = [
    f"a {size} {color} circle number {number}" for size in ("small", "large") for color in "rgb" for number in "12"
]


def pictures(num: int) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (40 + i, 60, 3), dtype=np.uint8) for i in range(num)]


def check_in_threads(calls: list[Callable[[], Any]]) -> None:
    """Each thread makes all calls several times, starting with another one; results must equal those of one thread."""
    expected = [plain(call()) for call in calls]
    begin = Barrier(NUM_THREADS)

    def work(number: int) -> None:
        begin.wait()
        for turn in range(ROUNDS * len(calls)):
            which = (turn + number) % len(calls)
            assert plain(calls[which]()) == expected[which]

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


def test_all_uses_of_a_loaded_model_share_nothing(tiny_bundle: Path, photos: Path) -> None:
    expected, clip = load(tiny_bundle, device="cpu", batch_size=4), load(tiny_bundle, device="cpu", batch_size=4)
    assert clip.identity == expected.identity
    paths = sorted(photos.glob("*.png"))
    arrays = pictures(6)
    query = parse_query('"a red circle" - 0.5*"large"')
    check_in_threads(
        [
            lambda: clip.encode_images(paths),
            lambda: clip.encode_texts(TEXTS),
            lambda: clip.encode_queries([query, "two dogs"]),
            lambda: clip.similarity(arrays, TEXTS[:3]),
            lambda: clip.similarity(photos, [query]),
            lambda: clip.classify(paths, ["red", "blue"], templates=["a {}", "one {} thing"]),
            lambda: clip.rank_images(query, photos, top=3),
            lambda: clip.rank_texts(paths[0], TEXTS),
            lambda: clip.identity,
        ]
    )


def _tokenizers() -> list[Tokenizer]:
    captions = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    return [
        ClipBPETokenizer(context_length=24),
        HashingTokenizer(vocab_size=300, context_length=24),
        LearnedBPETokenizer.train(captions, vocab_size=300, context_length=24),
        CharacterTokenizer.train(captions, context_length=24),
    ]


@pytest.mark.parametrize("tokenizer", _tokenizers(), ids=lambda tokenizer: tokenizer.kind)
def test_tokenizers_share_nothing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_bpe, "_MAX_CACHED_CHUNKS", 5)  # The cache is emptied all the time.
    words = [[f"a {chr(97 + i)}{chr(97 + i * j % 26)}ish don't café" for i in range(10)] for j in range(5)]
    check_in_threads([partial(tokenizer.encode, some) for some in words])
