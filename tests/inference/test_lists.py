"""One thing where several are expected, and numbers that are none, are refused at every entry of the Python API."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import ConfigError, DiptychError
from diptych.index.open_index import open_index
from diptych.inference.explain import explain
from diptych.inference.loaded import LoadedBundle
from diptych.inference.query import Query, Term, parse_query, unit_sums
from diptych.inference.rank import rank_images_for_texts
from diptych.search.collection import open_or_create, update

PICTURE = Image.new("RGB", (40, 30), "red")
CALLS: dict[str, tuple[str, Callable[[Any, Path], object]]] = {
    "similarity, texts": (
        "texts is one str, not several: write ['a dog']",
        lambda c, _: c.similarity([PICTURE], "a dog"),
    ),
    "similarity, query": ("texts is one Query", lambda c, _: c.similarity([PICTURE], parse_query("a dog"))),
    "similarity, path": ("images is one str, not several", lambda c, p: c.similarity(str(p / "a.png"), ["a dog"])),
    "similarity, bytes": ("images is one bytes", lambda c, p: c.similarity((p / "a.png").read_bytes(), ["a dog"])),
    "similarity, picture": ("images is one Image, not several", lambda c, _: c.similarity(PICTURE, ["a dog"])),
    "classify": ("classes is one str, not several: write ['dog']", lambda c, _: c.classify([PICTURE], "dog")),
    "classify, templates": (
        "templates is one str, not several: write ['a {}']",
        lambda c, _: c.classify([PICTURE], ["dog", "cat"], templates="a {}"),
    ),
    "rank_texts": ("texts is one str", lambda c, _: c.rank_texts(PICTURE, "a dog")),
    "rank_images": ("images is one bytes", lambda c, p: c.rank_images("red", (p / "a.png").read_bytes())),
    "rank_images_for_texts": ("texts is one str", lambda c, p: rank_images_for_texts(c.encoder, "red", p)),
    "explain": ("texts is one str", lambda c, _: explain(c.embedder, PICTURE, "a dog")),
    "encode_images": ("images is one str", lambda c, p: c.encode_images(str(p / "a.png"))),
    "encode_images, path": ("images is one PosixPath", lambda c, p: c.encode_images(p / "a.png")),
    "encode_texts": ("texts is one str", lambda c, _: c.encode_texts("a dog")),
    "encode_texts, lists": ("text 1 is not a string but list: ['dog']", lambda c, _: c.encode_texts(["a", ["dog"]])),
    "rank_images, texts": (
        "text must be a single text or query; it is a list: ['a dog']",
        lambda c, p: c.rank_images(["a dog"], p),
    ),
    "encode_queries": ("queries is one str", lambda c, _: c.encode_queries("a dog")),
    "encode_queries, query": ("queries is one Query", lambda c, _: c.encode_queries(parse_query("a dog"))),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", CALLS)
def test_one_thing_is_no_list(clip: LoadedBundle, photos: Path, name: str) -> None:
    says, call = CALLS[name]
    with pytest.raises(DiptychError) as error:
        call(clip, photos)
    assert str(error.value).startswith(says)


@pytest.mark.usefixtures("unchecked")
def test_one_thing_is_no_list_for_an_index(clip: LoadedBundle, photos: Path, place: str) -> None:
    with (
        open_or_create(place, clip) as index,
        pytest.raises(DiptychError, match="folders is one PosixPath, not several"),
    ):
        update(index, clip, photos)  # type: ignore[arg-type]
    with open_index(place) as index:
        with pytest.raises(DiptychError, match="keys is one str, not several"):
            index.remove("a.png")
        with pytest.raises(DiptychError, match="digests is one str, not several"):
            index.vectors("d4")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1e50, 100.5])
def test_weights_of_a_query_are_within_100(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"the weight of 'red' is .*; it must lie within \[-100, 100\]"):
        Term(kind="text", value="red", weight=weight)


def test_weights_may_have_an_exponent(clip: LoadedBundle) -> None:
    query = parse_query("1e2*red - 2.5E-1*blue")
    assert query == Query((Term(kind="text", value="red", weight=100), Term(kind="text", value="blue", weight=-0.25)))
    red, blue = clip.encode_texts(["red", "blue"])
    expected = 100 * red - 0.25 * blue
    np.testing.assert_allclose(clip.encode_queries([query])[0], expected / np.linalg.norm(expected), atol=1e-6)
    with pytest.raises(ConfigError, match="the sum of the query's terms is not a finite vector: red"):
        unit_sums(np.full((1, 4), np.inf, dtype=np.float32), ["red"])


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), 1.5])
def test_a_threshold_is_a_cosine(clip: LoadedBundle, threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"threshold is .*; it must lie within \[-1, 1\]"):
        clip.classify([PICTURE], ["dog", "cat"], threshold=threshold)
