"""Shapes: I images, X texts, E embedding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diptych.core.errors import ConfigError, DataError
from diptych.data.open_source import open_source
from diptych.data.sources.splits import take_split
from diptych.data.sources.subset import Subset
from diptych.evaluation import ranks as ranks_of_tiles
from diptych.evaluation.encoded import SourceEncoder
from diptych.evaluation.retrieval import Recall, evaluate_retrieval, retrieval_ranks
from diptych.evaluation.zero_shot import evaluate_zero_shot
from diptych.inference.loaded import LoadedBundle

Array = NDArray[Any]


def _random(num_images: int, seed: int, levels: int = 0) -> tuple[Array, Array, Array]:
    """Embeddings, one to four texts an image; with `levels`, so coarse that scores tie."""
    generator = np.random.default_rng(seed)
    owner = np.repeat(np.arange(num_images), generator.integers(1, 5, num_images))
    image, text = (generator.normal(size=(num, 4)).astype(np.float32) for num in (num_images, len(owner)))
    if levels:
        return np.sign(image) / 2, np.sign(text) / 2, owner
    text += image[owner]
    return image / np.linalg.norm(image, axis=1)[:, None], text / np.linalg.norm(text, axis=1)[:, None], owner


def retrieval_recalls(image: Array, text: Array, owner: Array) -> tuple[Recall, Recall]:
    first, second = retrieval_ranks(image, text, owner)
    return first.recall(), second.recall()


def _slow(queries: Array, candidates: Array, positives: list[set[int]]) -> tuple[list[int], list[float]]:
    """Rank of the best positive and average precision, a negative of the same score before it; one score at a time."""
    ranks, precisions = [], []
    for query, mine in zip(queries, positives, strict=True):
        scores = [float(np.float32(query @ candidate)) for candidate in candidates]
        strangers = sorted(
            sum(1 for j, score in enumerate(scores) if j not in mine and score >= scores[i]) for i in mine
        )
        ranks.append(1 + strangers[0])
        precisions.append(float(np.mean([k / (k + before) for k, before in enumerate(strangers, start=1)])))
    return ranks, precisions


@given(num_images=st.integers(2, 14), seed=st.integers(0, 200), coarse=st.booleans())
def test_recalls_equal_the_slow_twin(num_images: int, seed: int, coarse: bool) -> None:
    image, text, owner = _random(num_images, seed, 2 if coarse else 0)
    by_image = [set(np.flatnonzero(owner == i).tolist()) for i in range(num_images)]
    slow = (_slow(image, text, by_image), _slow(text, image, [{int(i)} for i in owner]))
    for recall, (ranks, precisions), candidates in zip(
        retrieval_recalls(image, text, owner), slow, (len(text), num_images), strict=True
    ):
        expected = [sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)]
        assert [recall.r1, recall.r5, recall.r10] == pytest.approx(expected)
        assert recall.median_rank == float(np.median(ranks))
        assert recall.mean_rank == pytest.approx(np.mean(ranks))
        assert recall.mean_average_precision == pytest.approx(np.mean(precisions))
        assert (recall.num_queries, recall.num_candidates) == (len(ranks), candidates)


@pytest.mark.parametrize("shuffled", [False, True])
def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch, shuffled: bool) -> None:
    image, text, owner = _random(20, 0)
    if shuffled:
        order = np.random.default_rng(0).permutation(len(text))
        text, owner = text[order], owner[order]
    whole = retrieval_recalls(image, text, owner)
    monkeypatch.setattr(ranks_of_tiles, "TILE_IMAGES", 7)
    monkeypatch.setattr(ranks_of_tiles, "TILE_TEXTS", 9)
    assert retrieval_recalls(image, text, owner) == whole


def test_copies_tie_in_whatever_tile_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, _ = _random(1, 4)
    monkeypatch.setattr(ranks_of_tiles, "TILE_IMAGES", 16)
    monkeypatch.setattr(ranks_of_tiles, "TILE_TEXTS", 16)
    images, texts = np.repeat(image, 50, axis=0), np.repeat(text[:1], 50, axis=0)
    for recall in retrieval_recalls(images, texts, np.arange(50)):
        assert (recall.r10, recall.median_rank) == (0.0, 50.0)


def test_recalls_do_not_depend_on_order() -> None:
    image, text, owner = _random(15, 3)
    generator = np.random.default_rng(1)
    images, texts = generator.permutation(15), generator.permutation(len(text))
    new_row = np.argsort(images)
    assert retrieval_recalls(image[images], text[texts], new_row[owner[texts]]) == retrieval_recalls(image, text, owner)


def test_a_perfect_model_finds_all_and_a_constant_one_nothing() -> None:
    eye, ones = np.eye(12, dtype=np.float32), np.ones((12, 12), dtype=np.float32)
    owner = np.arange(12)
    for recall in retrieval_recalls(eye, eye, owner):
        assert (recall.r1, recall.r5, recall.r10, recall.median_rank) == (1.0, 1.0, 1.0, 1.0)
    for recall in retrieval_recalls(ones, ones, owner):
        assert (recall.r1, recall.r5, recall.r10, recall.median_rank) == (0.0, 0.0, 0.0, 12.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    image, text, owner = _random(4, 0)
    text[2, 1] = value
    with pytest.raises(DataError, match=rf"1 of {len(text)} text embeddings are not numbers; the first is number 2"):
        retrieval_recalls(image, text, owner)


def test_evaluate_retrieval_says_how_it_measured(clip: LoadedBundle, flickr_folder: Path) -> None:
    (flickr_folder / "images" / "2.jpg").write_bytes(b"")
    report = evaluate_retrieval(
        SourceEncoder(clip.embedder), open_source(f"flickr30k:{flickr_folder}"), split="all"
    ).report
    protocol = report.protocol
    assert (protocol["images"], protocol["texts"], protocol["skipped_images"], protocol["split"]) == (3, 6, 1, "all")
    assert (report.image_to_text.num_queries, report.text_to_image.num_queries) == (3, 6)
    assert report.mean_r1 == (report.image_to_text.r1 + report.text_to_image.r1) / 2
    for name in "1234":
        (flickr_folder / "images" / f"{name}.jpg").write_bytes(name.encode())
    with pytest.raises(DataError, match="none of 4 images can be read"):
        evaluate_retrieval(SourceEncoder(clip.embedder), open_source(f"flickr30k:{flickr_folder}"), split="all")


def test_zero_shot_equals_classify(clip: LoadedBundle) -> None:
    source = Subset(take_split(open_source("shapes"), "val"), range(45))
    report = evaluate_zero_shot(
        SourceEncoder(clip.embedder), source, split="val", templates=("a {}", "a small {}")
    ).report
    samples = [source[i] for i in range(45)]
    answers = clip.classify([s.image for s in samples], source.classes, templates=("a {}", "a small {}"))
    names = [source.classes[s.label or 0] for s in samples]
    hits = [answer.scores[0].name == name for answer, name in zip(answers, names, strict=True)]
    five = [name in [s.name for s in answer.scores[:5]] for answer, name in zip(answers, names, strict=True)]
    assert report.top1 == pytest.approx(np.mean(hits))
    assert report.top5 == pytest.approx(np.mean(five))
    assert set(report.per_class) == set(names)
    assert report.mean_per_class == pytest.approx(np.mean(list(report.per_class.values())))
    assert report.chance == 1 / 18
    assert (report.protocol["images"], report.protocol["templates"]) == (45, 2)
    other = evaluate_zero_shot(SourceEncoder(clip.embedder), source, split="val", templates=("{}",)).report
    assert other.protocol["prompt_hash"] != report.protocol["prompt_hash"]
    assert other.protocol["split_hash"] == report.protocol["split_hash"]


def test_zero_shot_refuses(clip: LoadedBundle, flickr_folder: Path, json_file: Path) -> None:
    flickr = open_source(f"flickr30k:{flickr_folder}")
    with pytest.raises(DataError, match="the data has no labels"):
        evaluate_zero_shot(SourceEncoder(clip.embedder), flickr, split="all", templates=("{}",), classes=["a"])
    labelled = open_source(f"json:{json_file}")
    with pytest.raises(DataError, match="3 class names given, but the data has 2 classes"):
        evaluate_zero_shot(
            SourceEncoder(clip.embedder), labelled, split="all", templates=("{}",), classes=["a", "b", "c"]
        )
    with pytest.raises(ConfigError, match=r"has no \{\}"):
        evaluate_zero_shot(SourceEncoder(clip.embedder), labelled, split="all", templates=("x",))
    renamed = evaluate_zero_shot(
        SourceEncoder(clip.embedder), labelled, split="all", templates=("{}",), classes=["x", "y"]
    )
    assert set(renamed.report.per_class) == {"x", "y"}
