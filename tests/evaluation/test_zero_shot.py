"""Zero-shot figures of models that are known, and data that cannot be measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.core.errors import ConfigError, DataError
from diptych.core.sample import Sample
from diptych.data.sources.protocol import Source
from diptych.data.sources.templates import named_templates, resolve_templates
from diptych.evaluation.calibration import calibration
from diptych.evaluation.encoded import EncodedImages, SourceEncoder
from diptych.evaluation.rendering import render_zero_shot
from diptych.evaluation.zero_shot import ZeroShot, evaluate_zero_shot
from diptych.inference.loaded import LoadedBundle

NAMES = ("ant", "bee", "cow", "dog")


class _Labelled(Source):
    """Blank pictures with labels."""

    classes = NAMES

    def __init__(self, labels: Sequence[int | None]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            key=self.key(index), image=np.zeros((4, 4, 3), np.uint8), captions=("x",), label=self.labels[index]
        )

    def captions(self, _index: int) -> tuple[str, ...]:
        return ("x",)

    def key(self, index: int) -> str:
        return f"sample {index}"

    def label(self, index: int) -> int | None:
        return self.labels[index]


class _Known(SourceEncoder):
    """A model that says to each picture and each text what it is told to say."""

    def __init__(self, clip: LoadedBundle, image_emb: NDArray[Any], text_emb: dict[str, NDArray[Any]]) -> None:
        super().__init__(clip.embedder)
        self.image_emb = image_emb.astype(np.float32)
        self.text_emb = text_emb

    def encode_images(self, source: Source, **_: Any) -> EncodedImages:
        return EncodedImages(source=source, rows=tuple(range(len(source))), emb=self.image_emb, skipped=())

    def encode_texts(self, texts: Sequence[str]) -> NDArray[Any]:
        return np.stack([self.text_emb[text] for text in texts]).astype(np.float32)


def _measured(clip: LoadedBundle, labels: list[int], image_emb: NDArray[Any]) -> ZeroShot:
    texts = {f"a {name}": np.eye(4)[i] for i, name in enumerate(NAMES)}
    return evaluate_zero_shot(_Known(clip, image_emb, texts), _Labelled(labels), split="x", templates=("a {}",))


def test_a_perfect_model_is_always_right_and_a_constant_one_as_often_as_guessing(clip: LoadedBundle) -> None:
    labels = [0, 1, 2, 3] * 5
    perfect = _measured(clip, labels, np.eye(4)[labels]).report
    assert (perfect.top1, perfect.top5, perfect.mean_per_class) == (1, 1, 1)
    constant = _measured(clip, labels, np.ones((20, 4)) / 2).report
    assert (constant.top1, constant.mean_per_class, constant.chance) == (0.25, 0.25, 0.25)


def test_figures_do_not_depend_on_order(clip: LoadedBundle) -> None:
    generator = np.random.default_rng(0)
    labels, emb = generator.integers(0, 4, 30), generator.normal(size=(30, 4))
    order = generator.permutation(30)
    one = _measured(clip, labels.tolist(), emb)
    other = _measured(clip, labels[order].tolist(), emb[order])
    assert one.report.top1 == other.report.top1
    assert one.report.per_class == other.report.per_class
    assert one.report.calibration_error == pytest.approx(other.report.calibration_error)
    np.testing.assert_array_equal(one.confusion(), other.confusion())
    assert one.confusion().sum() == 30
    assert np.trace(one.confusion()) == one.hits.sum()


def test_a_class_is_the_mean_of_its_prompts_unit_embeddings(clip: LoadedBundle) -> None:
    texts = {
        f"{word} {name}": np.eye(4)[(i + shift) % 4] for shift, word in enumerate("ab") for i, name in enumerate(NAMES)
    }
    model = _Known(clip, (np.eye(4)[[0, 1]] + np.eye(4)[[1, 2]]) / np.sqrt(2), texts)
    result = evaluate_zero_shot(model, _Labelled([0, 1]), split="x", templates=("a {}", "b {}"))
    assert result.report.top1 == 1
    logits = np.array([1, 0.5, 0, 0.5]) * clip.embedder.logit_scale
    assert result.probability[0] == pytest.approx(np.exp(logits[0]) / np.exp(logits).sum(), rel=1e-4)


def test_classes_of_one_name_are_told_apart(clip: LoadedBundle) -> None:
    texts = {"ant": np.eye(3)[0], "crane": np.eye(3)[1], "dog": np.eye(3)[2]}
    model = _Known(clip, np.eye(3)[[1, 1, 2]], texts)
    result = evaluate_zero_shot(
        model, _Labelled([1, 2, 3]), split="x", templates=("{}",), classes=("ant", "crane", "crane", "dog")
    )
    assert result.report.per_class == {"crane (class 1)": 1, "crane (class 2)": 0, "dog": 1}
    assert result.report.mean_per_class == pytest.approx(2 / 3)
    render_zero_shot(result).sections[1].pictures[0].draw()


def test_labels_that_tell_nothing(clip: LoadedBundle) -> None:
    encoder = SourceEncoder(clip.embedder)
    for labels, says in (
        ([0, None], "some samples have no label, the first of them sample 1"),
        ([0, 7], "sample 1 has the label 7; the data has classes 0 to 3"),
        ([-1], "sample 0 has the label -1"),
    ):
        with pytest.raises(DataError, match=says):
            evaluate_zero_shot(encoder, _Labelled(labels), split="x", templates=("{}",))
    with pytest.raises(DataError, match="2 of 4 classes have no sample in this split: cow, dog"):
        evaluate_zero_shot(encoder, _Labelled([0, 1]), split="x", templates=("{}",), all_must_occur=True)


def test_calibration_equals_the_slow_twin() -> None:
    generator = np.random.default_rng(0)
    probability = generator.random(200).astype(np.float32)
    right = generator.random(200) < probability
    expected = 0.0
    for number in range(15):
        inside = (probability >= number / 15) & (probability < (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(probability[inside].mean() - right[inside].mean())
    assert calibration(probability, right).error == pytest.approx(expected, rel=1e-5)


def test_templates_by_text_by_name_and_by_file(tmp_path: Any) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one {}\n\ntwo {}\n", encoding="utf-8")
    assert resolve_templates(["a {}", str(file)]) == ("a {}", "one {}", "two {}")
    sizes = {name: len(resolve_templates([name])) for name in named_templates()}
    assert sizes == {"cifar-18": 18, "imagenet-7": 7, "imagenet-80": 80}
    assert set(resolve_templates(["imagenet-7"])) <= set(resolve_templates(["imagenet-80"]))
    with pytest.raises(ConfigError, match="imagenet-80"):
        resolve_templates(["imagenet-8"])
