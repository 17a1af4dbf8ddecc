"""Near-equal pictures are folded into the best of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.cli.main import main
from diptych.core.errors import ConfigError
from diptych.index.filters import parse_filter
from diptych.index.open_index import create_index, open_index
from diptych.index.protocol import Index
from diptych.inference.loaded import LoadedBundle
from diptych.search.similar import fold, search_groups
from tests.index.pictures import DIM, add, entry, unit

_NUM_SHOTS = 4


def nearby(vectors: NDArray[np.float32], cosine: float, seed: int) -> NDArray[np.float32]:
    """Unit vectors with this cosine to each."""
    other = unit(len(vectors), seed)
    across = other - (other * vectors).sum(axis=1, keepdims=True) * vectors
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    return (cosine * vectors + np.sqrt(1 - cosine**2) * across).astype(np.float32)


@pytest.fixture
def index(place: str) -> Iterator[Index]:
    """300 scenes: each four times, with cosines of 0.99 to the first; the first also as a copy."""
    scenes = unit(300)
    shots = [scenes, *(nearby(scenes, 0.99, seed) for seed in range(1, _NUM_SHOTS))]
    with create_index(place, dim=DIM, model="m", bundle="b") as made:
        for shot, vectors in enumerate(shots):
            entries = [entry(shot * 1000 + scene, width=shot) for scene in range(300)]
            add(made, entries, {one.digest: vector for one, vector in zip(entries, vectors, strict=True)})
        add(made, [entry(9000 + scene, digest=f"d{scene}", width=9) for scene in range(300)], {})
        yield made


def expected_groups(index: Index, query: NDArray[np.float32], threshold: float, window: int) -> list[list[str]]:
    """Hit by hit, as the rule says it."""
    (found,) = index.search(query[None], top=window)
    vectors = index.vectors([hit.entry.digest for hit in found])
    groups: list[list[str]] = []
    leaders: list[NDArray[np.float32]] = []
    for hit in found:
        own = vectors[hit.entry.digest]
        near = [number for number, leader in enumerate(leaders) if float(own @ leader) >= threshold - 1e-6]
        if near:
            groups[near[0]].append(hit.entry.key)
        else:
            groups.append([hit.entry.key])
            leaders.append(own)
    return groups


def keys_of(index: Index, query: NDArray[np.float32], top: int, threshold: float = 0.95) -> list[list[str]]:
    found = search_groups(index, query, top=top, threshold=threshold)
    return [[one.hit.entry.key, *(hit.entry.key for hit in one.similar)] for one in found]


@pytest.mark.parametrize("threshold", [0.9, 0.95, 1.0])
def test_groups_follow_the_rule(index: Index, threshold: float) -> None:
    query = unit(1, seed=7)[0]
    expected = expected_groups(index, query, threshold, 1000)
    assert keys_of(index, query, 20, threshold) == expected[:20]
    if threshold == 1.0:  # Copies share a vector; only they are folded.
        assert {len(group) for group in expected} == {1, 2}


def test_pages_join_to_the_whole(index: Index) -> None:
    query = unit(1, seed=8)[0]
    whole = keys_of(index, query, 60)
    assert len(whole) == 60
    assert max(map(len, whole)) > 3
    for top in (1, 10, 40):
        assert keys_of(index, query, top) == whole[:top]


def test_more_groups_than_the_first_hits_have(index: Index) -> None:
    query = unit(1, seed=9)[0]
    num = len(expected_groups(index, query, 0.95, 1500))
    assert num > len(expected_groups(index, query, 0.95, 1000))
    found = keys_of(index, query, 1500)
    assert len(found) == num
    assert sum(map(len, found)) == len(index)


def test_a_filter_comes_before_the_groups(index: Index) -> None:
    query = unit(1, seed=10)[0]
    found = search_groups(index, query, top=50, selected=parse_filter("width = 9"))
    assert {hit.entry.width for one in found for hit in (one.hit, *one.similar)} == {9}


def test_an_empty_index_has_no_groups(place: str) -> None:
    with create_index(place, dim=DIM, model="m", bundle="b") as empty:
        assert search_groups(empty, unit(1)[0], top=5) == []


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan"), float("inf")])
def test_thresholds_that_are_refused(tmp_path: Path, threshold: float) -> None:
    with (
        create_index(str(tmp_path / "index"), dim=DIM, model="m", bundle="b") as index,
        pytest.raises(ConfigError, match="within"),
    ):
        search_groups(index, unit(1)[0], top=5, threshold=threshold)


def test_folding_is_not_chained() -> None:
    """The second is near the first and the third, and the third is not near the first."""
    angles = np.deg2rad([0, 15, 30])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert fold(vectors, 0.95).tolist() == [0, 0, 2]
    many = np.concatenate([unit(600), unit(600)])
    assert fold(many, 1.0).tolist() == [*range(600), *range(600)]


def test_the_command(
    tiny_bundle: Path, clip: LoadedBundle, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        shutil.copy(photos / "a.png", photos / f"copy-{number}.png")
    place = str(tmp_path / "index")
    assert main(["index", "add", place, str(photos), "--bundle", str(tiny_bundle)]) == 0
    capsys.readouterr()
    words = ["search", place, "a red circle", "--group-similar", "--similar-cosine", "1"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with open_index(place) as index:
        expected = search_groups(index, clip.encode_texts(["a red circle"])[0], top=20, threshold=1)
    assert [one["entry"]["key"] for one in found] == [one.hit.entry.key for one in expected]
    assert [[hit["entry"]["key"] for hit in one["similar"]] for one in found] == [
        [hit.entry.key for hit in one.similar] for one in expected
    ]
    assert len(found) == 6
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.count(str(photos)) == 6
    assert "+3" in said
    for wrong, reason in (
        (["--similar-cosine", "0.9"], "needs --group-similar"),
        (["--group-similar", "--similar-cosine", "nan"], "finite number"),
    ):
        assert main(["search", place, "a", *wrong]) == 2
        assert reason in capsys.readouterr().err
