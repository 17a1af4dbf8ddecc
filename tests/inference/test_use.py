"""The four things a bundle is for."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import ConfigError, DiptychError, DiptychWarning, ImageError
from diptych.core.sample import ImageInput
from diptych.data.open_source import open_source
from diptych.images.decode import decode
from diptych.inference.classify import class_embeddings
from diptych.inference.loaded import LoadedBundle, load
from diptych.inference.rank import rank_images_for_texts

TEXTS = ["a red circle", "", "a large green triangle on a blue background", "blue", "a small square"]


def _drawings(num: int) -> list[ImageInput]:
    source = open_source("shapes:40")
    return [source[i].image for i in range(num)]


def test_images_of_every_form_embed_alike(clip: LoadedBundle, photos: Path) -> None:
    path = photos / "a.png"
    image = decode(path)
    emb = clip.encode_images([path, str(path), path.read_bytes(), image, np.asarray(image)])
    assert emb.shape == (5, 16)
    assert emb.dtype == np.float32
    assert (emb == emb[0]).all()
    np.testing.assert_allclose(np.linalg.norm(emb, axis=1), 1, atol=1e-5)


def test_a_generator_is_encoded_in_order_and_read_no_further_than_needed(tiny_bundle: Path) -> None:
    clip = load(tiny_bundle, device="cpu", batch_size=4)
    images = _drawings(23)
    expected = np.concatenate([clip.encode_images([image]) for image in images])
    np.testing.assert_allclose(clip.encode_images(image for image in images), expected, atol=1e-5)
    taken: list[int] = []

    def endless() -> object:
        for number in range(10_000):
            taken.append(number)
            yield images[0] if number else b"broken"

    with pytest.raises(ImageError):
        clip.encode_images(endless())  # type: ignore[arg-type]
    assert len(taken) <= 8  # The chunk that failed and the one behind it.


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_changes_nothing(clip: LoadedBundle, tiny_bundle: Path, batch_size: int) -> None:
    other = load(tiny_bundle, device="cpu", batch_size=batch_size)
    images = _drawings(7)
    np.testing.assert_allclose(other.encode_images(images), clip.encode_images(images), atol=1e-5)
    np.testing.assert_allclose(other.encode_texts(TEXTS), clip.encode_texts(TEXTS), atol=1e-5)


def test_texts_come_back_in_their_order(clip: LoadedBundle) -> None:
    expected = np.concatenate([clip.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(clip.encode_texts(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(clip.encode_texts(TEXTS[::-1]), expected[::-1], atol=1e-5)
    assert len(np.unique(expected.round(4), axis=0)) == len(TEXTS)


def test_nothing_gives_no_rows(clip: LoadedBundle) -> None:
    assert clip.encode_images([]).shape == (0, 16)
    assert clip.encode_texts([]).shape == (0, 16)


def test_of_equal_texts_one_is_computed(clip: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]]
    expected = clip.encode_texts(TEXTS[:2])[[0, 1, 0, 0]]
    encode, advance = Mock(wraps=clip.bundle.tokenizer.encode), Mock()
    monkeypatch.setattr(clip.bundle.tokenizer, "encode", encode)
    np.testing.assert_array_equal(clip.embedder.encode_texts(texts, advance=advance), expected)
    encode.assert_called_once_with((TEXTS[0], TEXTS[1]))
    assert advance.call_count == 4


def test_a_broken_image_is_a_nan_row_or_an_error(clip: LoadedBundle) -> None:
    images = _drawings(3)
    images[1] = b"broken"
    seen: list[int] = []
    emb = clip.embedder.encode_images(images, on_error=lambda position, _: seen.append(position))
    assert seen == [1]
    assert np.isnan(emb).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(ImageError, match="<6 bytes>"):
        clip.encode_images(images)


def test_similarity(clip: LoadedBundle) -> None:
    images = _drawings(3)
    result = clip.similarity(images, TEXTS)
    assert result.cosine.shape == result.probability.shape == (3, 5)
    assert (result.texts, len(result.images)) == (tuple(TEXTS), 3)
    expected = clip.encode_images(images) @ clip.encode_texts(TEXTS).T
    np.testing.assert_allclose(result.cosine, expected, atol=1e-6)
    powers = np.exp(clip.embedder.logit_scale * expected.astype(np.float64))
    np.testing.assert_allclose(result.probability, powers / powers.sum(1, keepdims=True), atol=1e-5)


def test_classify_ranks_by_the_mean_of_the_prompts(clip: LoadedBundle) -> None:
    images, classes, templates = _drawings(2), ["red circle", "blue square", "green triangle"], ("a {}", "{} on white")
    results = clip.classify(images, classes, templates=templates)
    means = []
    for name in classes:
        prompts = clip.encode_texts([template.replace("{}", name) for template in templates])
        means.append(prompts.mean(0) / np.linalg.norm(prompts.mean(0)))
    cosine = clip.encode_images(images) @ np.stack(means).T
    for row, result in enumerate(results):
        assert [score.name for score in result.scores] == [classes[i] for i in np.argsort(-cosine[row])]
        assert sum(score.probability for score in result.scores) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose([s.cosine for s in result.scores], np.sort(cosine[row])[::-1], atol=1e-5)


def test_a_class_name_with_braces_is_just_a_name(clip: LoadedBundle) -> None:
    assert class_embeddings(clip.embedder, ["{0}", "{x}", "}{"], ("a {}",)).shape == (3, 16)


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ([], ("a {}",), "the list of classes is empty"),
        (["a", "b", "a"], ("a {}",), "given more than once: a"),
        (["a", " "], ("a {}",), "empty name"),
        (["a"], ("a photo",), "template 'a photo' has no {} for the class name"),
        (["a"], (), "no template given"),
    ],
)
def test_classify_refuses(clip: LoadedBundle, classes: list[str], templates: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clip.classify(_drawings(1), classes, templates=templates)


def test_rank_images_of_a_folder(clip: LoadedBundle, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    ranking = clip.rank_images("a red circle", photos)
    assert {Path(result.item).name for result in ranking.results} == {f"{n}.png" for n in "abcde"} | {"f.jpg"}
    scores = [result.score for result in ranking.results]
    assert scores == sorted(scores, reverse=True)
    ((name, reason),) = ranking.skipped
    assert name == str(photos / "broken.jpg")
    assert "broken.jpg" in reason
    for result in ranking.results:
        expected = clip.similarity([result.item], ["a red circle"]).cosine[0, 0]
        assert result.score == pytest.approx(float(expected), abs=1e-5)
    assert clip.rank_images("a red circle", str(photos), top=2).results == ranking.results[:2]


def test_rank_positions_count_broken_images_too(clip: LoadedBundle) -> None:
    images = [b"broken", *_drawings(3)]
    ranking = clip.rank_images("blue", images)
    assert sorted(result.position for result in ranking.results) == [1, 2, 3]
    best = ranking.results[0]
    assert clip.rank_images("blue", [images[best.position]]).results[0].score == pytest.approx(best.score, abs=1e-5)


def test_rank_several_texts_equals_one_by_one(clip: LoadedBundle) -> None:
    images = _drawings(6)
    for ranking in rank_images_for_texts(clip.embedder, ["red", "a blue square"], images, top=3):
        alone = clip.rank_images(ranking.query, images, top=3)
        assert [r.position for r in ranking.results] == [r.position for r in alone.results]


def test_rank_texts(clip: LoadedBundle) -> None:
    image = _drawings(1)[0]
    ranking = clip.rank_texts(image, TEXTS, top=3)
    cosine = clip.similarity([image], TEXTS).cosine[0]
    assert [result.position for result in ranking.results] == np.argsort(-cosine)[:3].tolist()
    assert [result.item for result in ranking.results] == [TEXTS[result.position] for result in ranking.results]


def test_equal_scores_keep_their_order(clip: LoadedBundle) -> None:
    image = Image.new("RGB", (32, 32))
    one_by_one = LoadedBundle(clip.bundle, batch_size=1)  # In a batch, the same picture may differ in its last digit.
    assert [r.position for r in one_by_one.rank_images("x", [image] * 4).results] == [0, 1, 2, 3]


def test_use_refuses_nothing_and_rubbish(clip: LoadedBundle, tmp_path: Path) -> None:
    image = _drawings(1)
    with pytest.raises(DiptychError, match="no image given"):
        clip.similarity([], ["x"])
    with pytest.raises(DiptychError, match="no text given"):
        clip.similarity(image, [])
    with pytest.raises(DiptychError, match="no text given"):
        clip.rank_texts(image[0], [])
    with pytest.raises(DiptychError, match="the text to search for is empty"):
        clip.rank_images("  ", image)
    with pytest.raises(DiptychError, match="top is 0"):
        clip.rank_images("x", image, top=0)
    with pytest.raises(ImageError, match="none of 2 images can be read; the first: <1 bytes>"):
        clip.rank_images("x", [b"1", b"22"])
    with pytest.raises(ImageError, match="holds no pictures"):
        clip.rank_images("x", tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        clip.rank_texts(tmp_path / "gone.png", ["x"])
    with pytest.raises(ConfigError, match="batch_size"):
        load(clip.path or "", batch_size=0)


def test_texts_that_lose_their_tail_are_reported_once(tiny_bundle: Path) -> None:
    clip = load(tiny_bundle, device="cpu")
    with pytest.warns(DiptychWarning, match="texts longer than 24 tokens were truncated: 1"):
        clip.encode_texts(["a red circle", "a red circle " * 30])
    clip.encode_texts(["a red circle " * 30])  # Warnings are errors here.


def test_none_of_these(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    clip = load(bundle, device="cpu")
    images, classes = _drawings(4), ["red circle", "blue square"]
    assert clip.classify(images, classes)[0].threshold is None
    (low, *_) = clip.classify(images, classes, threshold=-1)
    assert low.best == low.scores[0]
    assert all(answer.best is None for answer in clip.classify(images, classes, threshold=1))
    kept = clip.bundle.metrics["retrieval"]["pairs"]
    assert clip.classify(images, classes, threshold="auto")[0].threshold == kept["threshold"]
    clip.bundle.metrics.clear()
    with pytest.raises(ConfigError, match="has no validation scores"):
        clip.classify(images, classes, threshold="auto")


def test_similarity_is_drawn(clip: LoadedBundle, tmp_path: Path) -> None:
    result = clip.similarity(_drawings(3), TEXTS)
    result.plot(tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as drawn:
        assert min(drawn.size) > 300
    with pytest.raises(ConfigError, match="cannot be written"):
        result.plot(tmp_path / "none" / "matrix.png")
    with pytest.raises(ConfigError, match="cannot be written"):
        result.plot(tmp_path / "matrix.doc")
