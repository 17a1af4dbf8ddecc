"""Synthetic indexes for `growth.py`: vectors similar to CLIP embeddings, paths, dates, captions and a tiny model."""

import random
import time
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diptych.bundle.folder import Bundle, save_bundle
from diptych.core.errors import ConfigError
from diptych.index.entry import Entry, FileStat
from diptych.index.open_index import create_index
from diptych.inference.loaded import LoadedBundle, load
from diptych.models.clip import CLIP
from diptych.presets import preset
from diptych.tokenizers.hashing import HashingTokenizer

DIM, BATCH = 512, 20_000
_NUM_TEXTS = 264


@dataclass(frozen=True, kw_only=True)
class Collection:
    """An index of `num` pictures in a temporary folder."""

    num: int
    index: Path
    texts: NDArray[np.float32]
    """Queries that were not used to build the index."""
    clip: LoadedBundle
    """The model of the index."""
    build_s: float
    """Seconds that the sign bits took, measurement of their recall included."""

    def vectors(self) -> NDArray[np.float16]:
        """Return all vectors, memory-mapped."""
        (path,) = self.index.glob("vectors-*.f16")
        return np.memmap(path, dtype="<f2", mode="r", shape=(self.num, DIM))


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalize the vectors in place and return them."""
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


class _Drawing:
    """Draws vectors of pictures and texts (see the docstring of `growth.py`)."""

    def __init__(self, num: int) -> None:
        self._rng = np.random.default_rng(0)
        spread = (np.arange(DIM) + 5.0) ** -0.5
        self._spread = (spread / np.linalg.norm(spread)).astype(np.float32)
        self._turn = np.linalg.qr(self._rng.standard_normal((DIM, DIM)))[0].astype(np.float32).T
        self._means = unit(self._rng.standard_normal((2, DIM), dtype=np.float32))
        self._topics = self._content(max(256, num // 100))

    def _content(self, num: int) -> NDArray[np.float32]:
        drawn = self._rng.standard_normal((num, DIM), dtype=np.float32) * self._spread
        return (drawn @ self._turn).astype(np.float32, copy=False)

    def _mixtures(self, num: int) -> NDArray[np.float32]:
        first, second = self._rng.integers(len(self._topics), size=(2, num))
        return np.float32(0.8) * self._topics[first] + np.float32(0.6) * self._topics[second]

    def pictures(self, num: int) -> NDArray[np.float32]:
        """Return the vectors of `num` new pictures."""
        return unit(0.7 * self._means[0] + 0.7 * self._mixtures(num))

    def texts(self, num: int) -> NDArray[np.float32]:
        """Return the vectors of `num` new texts."""
        return unit(0.75 * self._means[1] + 0.66 * (0.5 * self._mixtures(num) + 0.87 * self._content(num)))


def make(num: int, place: Path) -> Collection:
    """Write an index of `num` pictures, with sign bits if they are faster than exact search."""
    drawing, clip = _Drawing(num), _write_bundle(place.parent)
    made = create_index(str(place), dim=DIM, model=clip.identity, bundle=str(clip.path), kind="float16")
    with made as index, index.writing():
        for start in range(0, num, BATCH):
            numbers = range(start, min(start + BATCH, num))
            entries = [drawn_entry(n) for n in numbers]
            index.add(entries, dict(zip((e.digest for e in entries), drawing.pictures(len(numbers)), strict=True)))
        texts = drawing.texts(_NUM_TEXTS)
        began = time.perf_counter()
        try:
            print(f"{num:,}: {index.build('signs', queries=texts[64:])}", flush=True)
        except ConfigError as error:
            print(f"{num:,}: {error}", flush=True)
        build_s = time.perf_counter() - began
    return Collection(num=num, index=place, texts=texts[:64], clip=clip, build_s=build_s)


def _write_bundle(folder: Path) -> LoadedBundle:
    """Return a tiny model with random weights and `DIM`-dimensional embeddings; its cost does not depend on the index size."""
    torch.manual_seed(0)
    small = preset("shapes-demo")
    config = replace(small, embed_dim=DIM, text=replace(small.text, tokenizer="hashing", vocab_size=1000))
    tokenizer = HashingTokenizer(vocab_size=config.text.vocab_size, context_length=config.text.context_length)
    save_bundle(Bundle(model=CLIP(config), tokenizer=tokenizer), folder / "bundle")
    return load(folder / "bundle", device="cpu")


def drawn_entry(number: int) -> Entry:
    """Return the entry of a picture in the folder of one of 24 years, of up to 10 MB; every second one has a caption."""
    draw = random.Random(number)
    year, day = 2000 + number % 24, f"{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
    caption = " ".join(f"word{draw.randrange(2000)}" for _ in range(10))
    return Entry(
        key=f"/pictures/{year}/album-{number // 500:05d}/IMG_{number:08d}.jpg",
        digest=blake2b(str(number).encode(), digest_size=16).hexdigest(),
        stamp=FileStat(size=draw.randrange(10**7), modified_ns=10**18 + number),
        width=draw.choice((640, 1024, 4000)),
        height=480,
        taken=f"{year}-{day} 12:00:00",
        captions=(caption,) if number % 2 else (),
        phash=draw.getrandbits(64),
    )
