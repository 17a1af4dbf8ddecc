"""How models differ on the same samples."""

from pathlib import Path

import numpy as np
import pytest

from diptych.core.errors import ConfigError, DataError
from diptych.data.open_source import open_source
from diptych.data.sources.subset import Subset
from diptych.evaluation.compare import bootstrap, compare_retrieval, compare_zero_shot
from diptych.evaluation.encoded import SourceEncoder
from diptych.evaluation.retrieval import evaluate_retrieval
from diptych.evaluation.zero_shot import evaluate_zero_shot
from diptych.inference.loaded import LoadedBundle

SHAPES = Subset(open_source("shapes:200"), range(60))


def test_intervals_are_as_wide_as_the_normal_ones() -> None:
    generator = np.random.default_rng(1)
    hits = [(generator.random(400) < share).astype(float) for share in (0.5, 0.6)]
    own, differences = bootstrap(hits, resamples=4000)
    for interval, sample in zip(own, hits, strict=True):
        expected = 1.96 * sample.std() / np.sqrt(len(sample))
        assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.1)
        assert interval.value == sample.mean()
    paired = hits[1] - hits[0]
    assert (differences[1].high - differences[1].low) / 2 == pytest.approx(1.96 * paired.std() / 20, rel=0.1)
    assert (differences[0].low, differences[0].high) == (0, 0)


def test_zero_shot_models_side_by_side(clip: LoadedBundle) -> None:
    encoder = SourceEncoder(clip.embedder)
    one = evaluate_zero_shot(encoder, SHAPES, split="x", templates=("a {}",))
    two = evaluate_zero_shot(encoder, SHAPES, split="x", templates=("zzz {} qqq",))
    found = compare_zero_shot(["one", "two"], [one, two])
    assert [interval.value for interval in found.own] == [one.report.top1, two.report.top1]
    assert found.differences[1].value == pytest.approx(two.report.top1 - one.report.top1)
    only = found.only(0, 1)
    assert set(only) == set(np.flatnonzero((one.hits == 1) & (two.hits == 0)).tolist())
    for row in only[:2]:
        assert found.describe(row, 0, 1) == f"{one.classes[one.labels[row]]}, not {two.classes[two.predicted[row]]}"
    assert found.protocol["prompt_hash"] == "; ".join(
        f"{name}: {each.report.protocol['prompt_hash']}" for name, each in (("one", one), ("two", two))
    )
    assert found.protocol["transform"] == one.report.protocol["transform"]
    with pytest.raises(ConfigError, match="at least two"):
        compare_zero_shot(["one"], [one])


@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")
def test_retrieval_models_side_by_side(clip: LoadedBundle, flickr_folder: Path) -> None:
    source, encoder = open_source(f"flickr30k:{flickr_folder}"), SourceEncoder(clip.embedder)
    result = evaluate_retrieval(encoder, source, split="all")
    found = compare_retrieval(["a", "b"], [result, result])
    assert found.own[0].value == result.report.image_to_text.r1
    assert found.only(0, 1) == []
    fewer = evaluate_retrieval(encoder, Subset(source, range(3)), split="all")
    with pytest.raises(DataError, match="a and b were not measured on the same samples"):
        compare_retrieval(["a", "b"], [result, fewer])
