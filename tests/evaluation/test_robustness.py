"""Disturbances, and figures under them."""

from pathlib import Path

import numpy as np
import pytest

from diptych.data.open_source import open_source
from diptych.data.sources.subset import Subset
from diptych.evaluation.disturbances import DISTURBANCES, STRENGTHS
from diptych.evaluation.encoded import SourceEncoder
from diptych.evaluation.robustness import evaluate_robustness
from diptych.evaluation.zero_shot import evaluate_zero_shot
from diptych.inference.loaded import LoadedBundle


def _picture() -> np.ndarray:
    rows, columns = np.mgrid[0:48, 0:64]
    picture: np.ndarray = np.stack([rows * 3, columns * 2, (rows + columns) % 40 * 4], axis=2).astype(np.uint8)
    return picture


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_disturbance_grows_and_repeats(name: str) -> None:
    picture, before = _picture(), _picture()
    distances = []
    for strength in STRENGTHS:
        disturbed = DISTURBANCES[name](picture, strength)
        assert disturbed.shape == picture.shape
        assert disturbed.dtype == np.dtype(np.uint8)
        np.testing.assert_array_equal(disturbed, DISTURBANCES[name](picture, strength))
        distances.append(float(np.abs(disturbed.astype(float) - picture).mean()))
    assert distances == sorted(distances)
    assert distances[0] > 0
    np.testing.assert_array_equal(picture, before)


def test_labelled_data_is_measured_by_accuracy(clip: LoadedBundle) -> None:
    source, encoder = Subset(open_source("shapes:200"), range(40)), SourceEncoder(clip.embedder)
    result = evaluate_robustness(encoder, source, split="x", templates=("a {}",), disturbances=("noise", "blur"))
    clean = evaluate_zero_shot(encoder, source, split="x", templates=("a {}",)).report.top1
    assert result.clean == clean
    assert {name: len(values) for name, values in result.disturbed.items()} == {"noise": 5, "blur": 5}
    assert result.measure == "zero-shot top 1"
    assert result.sheet().size[0] > 600


@pytest.mark.filterwarnings("ignore:texts longer than")  # Said once per embedder, which tests share.
def test_captioned_data_is_measured_by_recall(clip: LoadedBundle, flickr_folder: Path) -> None:
    result = evaluate_robustness(
        SourceEncoder(clip.embedder),
        open_source(f"flickr30k:{flickr_folder}"),
        split="all",
        templates=("{}",),
        disturbances=("brightness",),
    )
    assert result.measure == "mean R@1 of both directions"
    assert all(0 <= value <= 1 for value in result.disturbed["brightness"])
