"""Whole sources as embeddings, and what is kept of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.bundle.folder import require_bundle
from diptych.core.errors import NotFiniteError
from diptych.data.open_source import open_source
from diptych.evaluation.cache import EmbeddingCache, tower_hash
from diptych.evaluation.encoded import SourceEncoder
from diptych.inference.loaded import LoadedBundle, load
from diptych.models.clip import CLIP


@pytest.fixture
def encoded_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each batch had that a model encoded."""
    calls = list[int]()
    whole = CLIP.encode_image

    def counting(self: CLIP, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return whole(self, pixels)

    monkeypatch.setattr(CLIP, "encode_image", counting)
    return calls


@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")  # Said once for each embedder, which tests share.
def test_nothing_is_encoded_twice(
    clip: LoadedBundle, flickr_folder: Path, tmp_path: Path, encoded_images: list[int]
) -> None:
    source, cache = open_source(f"flickr30k:{flickr_folder}"), EmbeddingCache(tmp_path / "cache")
    first = SourceEncoder(clip.embedder, cache=cache).encode_pairs(source)
    assert sum(encoded_images) == 4
    again = SourceEncoder(clip.embedder, cache=cache).encode_pairs(source)
    assert sum(encoded_images) == 4
    np.testing.assert_array_equal(first.image_emb, again.image_emb)
    np.testing.assert_array_equal(first.text_emb, again.text_emb)
    Image.new("RGB", (40, 40), (250, 240, 9)).save(flickr_folder / "images" / "2.jpg")  # Another picture of that name.
    changed = SourceEncoder(clip.embedder, cache=cache).encode_pairs(source)
    assert sum(encoded_images) == 8
    assert not np.array_equal(changed.image_emb[1], first.image_emb[1])


def test_another_models_embeddings_are_others(clip: LoadedBundle, tiny_bundle: Path, tmp_path: Path) -> None:
    cache, source = EmbeddingCache(tmp_path / "cache"), open_source("shapes:20")
    mine = SourceEncoder(clip.embedder, cache=cache).encode_images(source)
    other = load(tiny_bundle, device="cpu")
    with torch.no_grad():
        next(require_bundle(other.bundle).model.image_tower.parameters()).add_(0.1)
    fresh = SourceEncoder(other.embedder).encode_images(source).emb
    assert not np.array_equal(fresh, mine.emb)
    np.testing.assert_array_equal(SourceEncoder(other.embedder, cache=cache).encode_images(source).emb, fresh)
    np.testing.assert_array_equal(SourceEncoder(clip.embedder, cache=cache).encode_images(source).emb, mine.emb)


def test_a_damaged_or_full_cache_costs_only_time(clip: LoadedBundle, tmp_path: Path) -> None:
    folder, source = tmp_path / "cache", open_source("shapes:20")
    first = SourceEncoder(clip.embedder, cache=EmbeddingCache(folder)).encode_images(source)
    (file,) = folder.glob("image-*.npy")
    file.write_bytes(file.read_bytes()[:100])
    again = SourceEncoder(clip.embedder, cache=EmbeddingCache(folder, max_bytes=1)).encode_images(source)
    np.testing.assert_array_equal(first.emb, again.emb)
    SourceEncoder(clip.embedder, cache=EmbeddingCache(folder, max_bytes=1)).encode_texts(["a", "b"])
    assert [path.name[:4] for path in folder.iterdir()] == ["text"]  # What was not used for longest went.
    (tmp_path / "file").write_bytes(b"")
    blocked = EmbeddingCache(tmp_path / "file" / "cache")
    assert len(SourceEncoder(clip.embedder, cache=blocked).encode_images(source).rows) == len(source)


def test_unreadable_images_are_left_out_and_named(clip: LoadedBundle, flickr_folder: Path, tmp_path: Path) -> None:
    (flickr_folder / "images" / "2.jpg").write_bytes(b"")
    source = open_source(f"flickr30k:{flickr_folder}")
    for _ in range(2):
        images = SourceEncoder(clip.embedder, cache=EmbeddingCache(tmp_path / "cache")).encode_images(source)
        assert [images.keys[i] for i in range(3)] == [source.key(i) for i in (0, 2, 3)]
        ((key, _),) = images.skipped
        assert key == source.key(1)
    assert images.picture(1).size == (60, 40)


@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")
def test_what_is_no_number_is_named(tiny_bundle: Path, flickr_folder: Path) -> None:
    source = open_source(f"flickr30k:{flickr_folder}")
    for tower, what in (("image_tower", "4 of 4 image"), ("text_tower", "8 of 8 text")):
        broken = load(tiny_bundle, device="cpu")
        with torch.no_grad():
            getattr(require_bundle(broken.bundle).model, tower).norm_post.weight.fill_(float("nan"))
        with pytest.raises(NotFiniteError, match=rf"{what} embeddings are not finite numbers"):
            SourceEncoder(broken.embedder).encode_pairs(source)


def test_one_caption_an_image(clip: LoadedBundle, flickr_folder: Path) -> None:
    source = open_source(f"flickr30k:{flickr_folder}")
    pairs = SourceEncoder(clip.embedder).encode_pairs(source, captions="first")
    assert pairs.captions == tuple(source.captions(i)[0] for i in range(4))
    assert pairs.image_of_text.tolist() == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")
def test_progress_is_told(clip: LoadedBundle, flickr_folder: Path) -> None:
    told: dict[str, list[int]] = {}

    @contextmanager
    def track(what: str, total: int | None) -> Iterator[Callable[[], object]]:
        told[what] = [total or 0, 0]

        def advance() -> None:
            told[what][1] += 1

        yield advance

    SourceEncoder(clip.embedder, track=track).encode_pairs(open_source(f"flickr30k:{flickr_folder}"))
    assert told == {"images": [4, 4], "texts": [8, 8]}


def test_every_kind_of_tensor_tells_towers_apart() -> None:
    """Digests are compared with stored ones: a cache on disk is that of earlier processes."""
    norm = torch.nn.BatchNorm2d(3)
    assert norm.num_batches_tracked is not None
    assert tower_hash(norm, "setting") == "1da091b0e4c9b87c1802255c213115f6"
    assert tower_hash(norm, "other") == "c1a23b12117768131031844ffc17e1b1"
    norm.num_batches_tracked += 1
    assert tower_hash(norm, "setting") == "f15055ab71d555919196043d3a558f5f"
    assert tower_hash(norm.half(), "setting") == "afdd432091ad12e134bb342ba46614f3"
