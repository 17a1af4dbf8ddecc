"""Sign bits: what the passes leave, how much they read, and how the number of vectors that they leave is chosen."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.cli.main import main
from diptych.index import build_signs, exact, products, signs
from diptych.index.approximate import AnnInfo, Approximate, FileId
from diptych.index.create_local import create_local_index
from diptych.index.exact import encode, nearest
from diptych.index.local import LocalIndex
from diptych.index.signs import Signs, smallest, write
from diptych.inference.loaded import LoadedBundle
from diptych.search.collection import open_or_create, update
from diptych.search.sample_texts import sample_texts
from tests.index.pictures import DIM, add, add_ten, entry, of_length_one, unit

NUM, NUM_QUERIES = 20_000, 20
_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@pytest.fixture(scope="module")
def gap() -> _Pair:
    """Pictures and texts, each with an own mean, and a falling spectrum: as a CLIP has them."""
    rng = np.random.default_rng(0)
    spread = (np.arange(128) + 3.0) ** -0.5
    spread /= np.linalg.norm(spread)
    means = of_length_one(rng.standard_normal((2, 128)))
    topics = rng.standard_normal((NUM + 10 * NUM_QUERIES, 128))
    pictures = of_length_one(0.7 * means[0] + 0.7 * topics * spread)
    texts = of_length_one(0.75 * means[1] + 0.65 * (0.5 * topics + 0.85 * rng.standard_normal(topics.shape)) * spread)
    return pictures[:NUM], texts[NUM:]


def _opened(path: Path, about: AnnInfo) -> Approximate:
    return Approximate(FileId.of(path), about)


def test_the_first_pass_leaves_the_smallest_weighted_distances(
    tmp_path: Path, gap: _Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As computed bit by bit, whatever the blocks and threads."""
    vectors, queries = gap[0][:1000, :100], gap[1][:3, :100]
    rotation, mean, decoder = signs._fit(vectors)
    assert rotation.shape == (128, 100)  # Whole words.
    is_set = vectors @ rotation.T > rotation @ mean
    weights = queries @ decoder.T
    codes = np.digitize(weights / weights.std(axis=1, keepdims=True), [-1, 0, 1])
    estimates = (2 * codes - 3) @ np.where(is_set, 1, -1).T
    for block, cores in ((8192, 1), (256, 3)):
        monkeypatch.setattr(signs, "_BLOCK", block)
        monkeypatch.setattr(signs, "num_cores", lambda cores=cores: cores)
        write(vectors, tmp_path / "bits")
        made = Signs(tmp_path / "bits")
        for num in (1, 77, 1000, 2000):
            for estimate, rows in zip(estimates, made.nearest(queries, num), strict=True):
                assert rows.tolist() == sorted(np.lexsort((np.arange(1000), -estimate))[:num].tolist())
        asked = np.array([[5, 999, -1], [0, 1, 2], [500, 500, 600]])
        expected = [
            [0 if row < 0 else (estimate >= estimate[row]).sum() for row in rows]
            for estimate, rows in zip(estimates, asked, strict=True)
        ]
        assert made.ranks(queries, asked).tolist() == expected


def test_the_smallest_come_in_order_and_of_equals_the_first() -> None:
    rng = np.random.default_rng(1)
    for num in (1, 5, 99, 100, 101):
        values = rng.integers(10, size=100)
        assert smallest(values, num).tolist() == sorted(np.lexsort((np.arange(100), values))[:num].tolist())


def test_texts_are_found_although_their_mean_is_another(tmp_path: Path, gap: _Pair) -> None:
    """Of other texts than those that the effort was chosen with, and better than by plain Hamming distances."""
    vectors, texts = gap
    about = build_signs.build(vectors, tmp_path / "bits", codes=encode(vectors), queries=texts[: 9 * NUM_QUERIES])
    assert about.effort < NUM / 6
    assert about.recall >= 0.998
    others = texts[9 * NUM_QUERIES :]
    expected = nearest(vectors, others, top=10)[0]
    rows = _opened(tmp_path / "bits", about).search(vectors, others, top=10, codes=encode(vectors))[0]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(expected, rows, strict=True)]) >= 0.98
    centered, mean = vectors - vectors.mean(axis=0), vectors.mean(axis=0)
    plain = ((centered > 0) @ np.where(others > mean, 1, -1).T).T
    rank = [np.sum(of_query >= of_query[row]) for of_query, rows in zip(plain, expected, strict=True) for row in rows]
    assert np.quantile(rank, 0.998) > 2 * about.effort
    hard = np.eye(128, dtype=np.float32)[-20:]  # In these directions, the vectors differ least.
    assert build_signs.build(vectors, tmp_path / "hard", queries=hard).effort > about.effort


def test_answers_are_the_same_with_and_without_codes_alone_and_together(tmp_path: Path, gap: _Pair) -> None:
    vectors, texts = gap[0].astype(np.float16), gap[1][:20]
    about = build_signs.build(vectors, tmp_path / "bits")
    made, codes = _opened(tmp_path / "bits", about), encode(vectors)
    rows, scores = made.search(vectors, texts, top=100, codes=codes)
    for top, which in ((10, slice(0, 20)), (100, slice(3, 4)), (37, slice(5, 20))):
        for some in (codes, None):
            again = made.search(vectors, texts[which], top=top, codes=some)
            np.testing.assert_array_equal(again[0], rows[which, :top])
            np.testing.assert_array_equal(again[1], scores[which, :top])
    assert made.search(vectors, texts[:0], top=5)[0].shape == (0, 5)
    assert made.search(vectors, texts, top=0)[0].shape == (20, 0)


def test_of_thousands_of_equals_the_first_are_found(tmp_path: Path) -> None:
    """Placeholders: more than the passes leave."""
    vectors = np.concatenate([unit(200), np.repeat(unit(1, seed=3), 3000, axis=0), unit(200, seed=4)])
    about = build_signs.build(vectors, tmp_path / "bits")
    query = of_length_one(unit(1, seed=3) + 0.1 * unit(1, seed=5))
    rows, scores = _opened(tmp_path / "bits", about).search(vectors, query, top=100)
    expected = nearest(vectors, query, top=100)
    assert (rows.tolist(), scores.tolist()) == (expected[0].tolist(), expected[1].tolist())


def test_what_is_not_a_number_is_not_found(tmp_path: Path) -> None:
    vectors = unit(500)
    vectors[[3, 40]] = np.nan
    about = build_signs.build(vectors, tmp_path / "bits")
    rows, _ = _opened(tmp_path / "bits", about).search(vectors, unit(5, seed=1), top=100)
    np.testing.assert_array_equal(rows, nearest(vectors, unit(5, seed=1), top=100)[0])
    assert not np.isin(rows, [3, 40, -1]).any()


class _Counted(np.ndarray[Any, Any]):
    """An array that notes how many rows are read at a time."""

    read: list[int]

    @classmethod
    def of(cls, array: NDArray[Any]) -> "_Counted":
        counted = array.view(cls)
        counted.read = []
        return counted

    def __getitem__(self, which: Any) -> Any:
        rows = np.asarray(self)[which]
        self.read.append(len(rows))
        return rows


def test_bits_are_written_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "_BLOCK", 256)
    monkeypatch.setattr(signs, "_SAMPLE", 1000)
    counted = _Counted.of(unit(NUM))
    write(counted, tmp_path / "bits")
    assert max(counted.read) <= 1000
    assert sum(counted.read) <= NUM + 1000
    assert (tmp_path / "bits").stat().st_size < 8 * (NUM + 256) + 8 * 64 * DIM


def test_only_what_the_passes_leave_is_read(tmp_path: Path, gap: _Pair) -> None:
    """A first search on a cold disk reads 64 bits, of 128 numbers, of each vector, and few codes and floats."""
    vectors, texts = gap
    about = build_signs.build(vectors, tmp_path / "bits")
    made, codes = _opened(tmp_path / "bits", about), encode(vectors)
    floats, integers = _Counted.of(vectors), _Counted.of(codes.integers)
    made.search(floats, texts[:1], top=10, codes=replace(codes, integers=integers))
    assert (sum(integers.read), sum(floats.read)) == (about.effort, 400)


def test_a_longer_tail_is_searched_and_reported(
    tmp_path: Path, clip: LoadedBundle, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "index")
    with open_or_create(place, clip) as index:
        update(index, clip, [photos / "more"])
        num = index.size()["vectors"]
    assert main(["index", "build", place, "--approximate"]) == 0
    assert f"signs of {num} vectors, {num} compared: 100.0 % of the 10 nearest" in capsys.readouterr().out
    assert main(["index", "add", place, str(photos)]) == 0
    assert "has no sign bits: diptych index build" in capsys.readouterr().out
    assert main(["index", "stats", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["search"].startswith(f"signs of {num} vectors")
    with LocalIndex(Path(place)) as index:
        queries = clip.encode_images([entry.key for entry in index.entries()])
        assert [hits[0].entry.digest for hits in index.search(queries, top=1)] == [e.digest for e in index.entries()]
    assert main(["index", "remove", place, str(photos)]) == 0
    assert f"without sign bits. Build them again: diptych index build {place} --approximate" in capsys.readouterr().out
    assert main(["index", "build", place, "--ann", "signs"]) == 2  # The option of earlier versions.
    assert main(["index", "build", place]) == 0
    capsys.readouterr()
    assert main(["index", "stats", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["search"] == "exact"


def test_captions_of_the_index_are_the_texts_of_the_measurement(tmp_path: Path) -> None:
    with create_local_index(tmp_path / "index", dim=DIM, model="m", bundle="b") as index:
        add(index, [entry(70)], {"d70": unit(1)[0]})
        general = sample_texts(index, 150)
        assert (len(general), len(set(general))) == (150, 150)
        add_ten(index)
        assert sample_texts(index) == [f"caption {number}" for number in range(10)]
        assert sample_texts(index, 3) == ["caption 0", "caption 1", "caption 2"]


@pytest.mark.parametrize("spread", [0.012, 0.004])
def test_codes_that_rule_out_little_are_given_up(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines of a narrow collection differ by no more than the errors of codes; the plain products leave few candidates."""
    monkeypatch.setattr(exact, "has_fast_int8", lambda: True)
    rng = np.random.default_rng(7)
    vectors = of_length_one(of_length_one(rng.standard_normal((1, 64))) + spread * rng.standard_normal((NUM, 64)))
    queries, scored = of_length_one(rng.standard_normal((16, 64))), list[int]()
    whole = exact.scores_of

    def counting(*given: Any) -> Any:
        scored.append(len(given[3]))
        return whole(*given)

    monkeypatch.setattr(exact, "scores_of", counting)
    rows = nearest(vectors, queries, top=10, codes=encode(vectors))[0]
    assert sum(scored) < 0.02 * len(queries) * NUM
    np.testing.assert_array_equal(rows, nearest(vectors, queries, top=10)[0])


def test_float16_gives_the_same_scores_as_its_values_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_ROWS", 7)
    vectors = unit(500).astype(np.float16)
    found, expected = (
        nearest(vectors, unit(9, seed=1), top=20),
        nearest(vectors.astype(np.float32), unit(9, seed=1), top=20),
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda content: content[:-8],
    "long": lambda content: content + b"8 bytes ",
    "empty": lambda _: b"",
    "of another kind": lambda content: b"d" * 16 + content[16:],
    "a number below one": lambda content: content[:16] + bytes(8) + content[24:],
}


@pytest.mark.parametrize("damage", list(_DAMAGES))
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bits"
    write(unit(50), path)
    Signs(path)
    path.write_bytes(_DAMAGES[damage](path.read_bytes()))
    with pytest.raises(OSError, match="bits"):
        Signs(path)
