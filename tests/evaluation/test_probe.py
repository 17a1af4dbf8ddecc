"""Classifiers on frozen embeddings."""

import sys

import numpy as np
import pytest

from diptych.core.errors import ConfigError, DataError
from diptych.data.open_source import open_source
from diptych.data.sources.splits import take_split
from diptych.data.sources.subset import Subset
from diptych.evaluation.encoded import SourceEncoder
from diptych.evaluation.probe import COARSE, evaluate_knn, evaluate_probe, nearest_votes, search_c, validation_mask
from diptych.inference.loaded import LoadedBundle

SHAPES = open_source("shapes:400")


def test_the_search_goes_halfway_around_the_best() -> None:
    asked = list[float]()

    def accuracy(c: float) -> float:
        asked.append(c)
        return -abs(np.log10(c) - 0.6)

    assert search_c(accuracy) == pytest.approx(10**0.625)  # The nearest of eight a decade.
    assert sorted(asked[:7]) == pytest.approx(sorted(COARSE))
    assert len(asked) == len(set(asked)) <= 15
    assert search_c(lambda _: 0.5) == pytest.approx(1e-6)  # Of equals the strongest decay.


def test_a_probe_learns_what_the_embeddings_hold(clip: LoadedBundle) -> None:
    train, val = take_split(SHAPES, "train"), take_split(SHAPES, "val")
    encoder = SourceEncoder(clip.embedder)
    report = evaluate_probe(encoder, train, val, split="val", train_split="train")
    assert report.top1 > 0.1  # Guessing gets 6.7 %.
    assert report.sweep[report.c] == max(report.sweep.values())
    assert report.protocol["trained_on"] == f"{len(train)} images of train"
    assert evaluate_probe(encoder, train, val, split="val", train_split="train") == report
    neighbours = evaluate_knn(encoder, train, val, split="val", train_split="train", neighbours=5)
    assert neighbours.top1 > 0.1


def test_votes_equal_the_slow_twin() -> None:
    generator = np.random.default_rng(0)
    stored, queries = (generator.normal(size=(num, 4)).astype(np.float32) for num in (30, 9))
    stored, queries = (emb / np.linalg.norm(emb, axis=1, keepdims=True) for emb in (stored, queries))
    labels = generator.integers(0, 3, 30)
    expected = []
    for query in queries:
        cosine = stored @ query
        nearest = np.argsort(-cosine)[:7]
        votes = [sum(np.exp(cosine[i] / 0.07) for i in nearest if labels[i] == label) for label in range(3)]
        expected.append(int(np.argmax(votes)))
    ours = nearest_votes(stored, labels, queries, num_classes=3, neighbours=7, temperature=0.07)
    assert ours.tolist() == expected


def test_what_cannot_be_probed(clip: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, val = SourceEncoder(clip.embedder), take_split(SHAPES, "val")
    with pytest.raises(DataError, match=r"the split 'few' has 4 samples of . classes; a probe needs ten of two"):
        evaluate_probe(encoder, Subset(SHAPES, range(4)), val, split="val", train_split="few")
    with pytest.raises(ConfigError, match="neighbours is 20; the split 'few' has 4 images"):
        evaluate_knn(encoder, Subset(SHAPES, range(4)), val, split="val", train_split="few")
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ConfigError, match=r"pip install 'diptych\[probe\]'"):
        evaluate_probe(encoder, take_split(SHAPES, "train"), val, split="val", train_split="train")


def test_held_back_samples_leave_one_of_each_class() -> None:
    labels = np.array([0] * 10 + [1, 1] + list(range(2, 10)))
    for seed in range(200):
        held_back = validation_mask(labels, seed=seed)
        assert held_back.sum() == 2
        assert set(labels[~held_back]) == set(range(10))
    with pytest.raises(DataError, match="each class has one sample"):
        validation_mask(np.arange(10), seed=0)


def test_of_large_classes_a_random_tenth_is_held_back() -> None:
    expected = np.random.default_rng(3).permutation(100) < 10
    assert (validation_mask(np.arange(100) % 2, seed=3) == expected).all()


def test_two_classes_of_which_one_is_rare_are_probed(clip: LoadedBundle) -> None:
    train = take_split(SHAPES, "train")
    first, other = sorted({label for i in range(len(train)) if (label := train.label(i)) is not None})[:2]
    common = [i for i in range(len(train)) if train.label(i) == first][:10]
    rare = next(i for i in range(len(train)) if train.label(i) == other)
    few = Subset(train, sorted([*common, rare]))
    encoder = SourceEncoder(clip.embedder)
    for seed in range(10):  # Some of them would have held back the rare one, and left one class to fit.
        report = evaluate_probe(encoder, few, few, split="val", train_split="train", seed=seed)
        assert 0 <= report.top1 <= 1
