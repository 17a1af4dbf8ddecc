"""What serves large indexes: parts joined, structures that find nearly the nearest, half precision, codes."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.core.errors import ConfigError, IndexingError
from diptych.index import build_signs, exact
from diptych.index.address import is_address
from diptych.index.create_local import create_local_index
from diptych.index.entry import FileStat
from diptych.index.filters import parse_filter
from diptych.index.local import LocalIndex
from diptych.index.merge import merge
from diptych.index.open_index import create_index, open_index
from diptych.index.protocol import Index
from tests.index.pictures import DIM, add, add_ten, build, compact, entry, keys_of, unit

MANY = 600


def _add(index: Index, numbers: range, vectors: NDArray[np.float32]) -> None:
    entries = [entry(number, width=number) for number in numbers]
    add(index, entries, {made.digest: vectors[number] for made, number in zip(entries, numbers, strict=True)})


@pytest.fixture
def large(tmp_path: Path) -> Iterator[LocalIndex]:
    """Six hundred."""
    with create_local_index(tmp_path / "large", dim=DIM, model="m", bundle="b") as made:
        _add(made, range(MANY), unit(MANY))
        yield made


def test_codes_follow_the_vectors(large: LocalIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = keys_of(large.search(unit(5, seed=1), top=7))
    monkeypatch.setattr(exact, "_FEW", 0)
    nums: list[int] = []
    score = exact.scores_of

    def counting(*given: Any) -> Any:
        nums.append(len(given[3]))
        return score(*given)

    def num_scored() -> int:
        """Pairs whose cosine was computed since the last call; codes rule out the others."""
        num = sum(nums)
        nums.clear()
        return num

    monkeypatch.setattr(exact, "has_fast_int8", lambda: True)
    monkeypatch.setattr(exact, "scores_of", counting)
    assert keys_of(large.search(unit(5, seed=1), top=7)) == plain
    assert 5 * 7 <= num_scored() < 5 * MANY // 2
    selected = parse_filter("width < 300")
    some = keys_of(large.search(unit(5, seed=1), top=7, selected=selected))
    large.remove([f"/photos/{number}.jpg" for number in range(300, MANY)])
    compact(large)
    num_scored()
    assert keys_of(large.search(unit(5, seed=1), top=7)) == some
    assert 5 * 7 <= num_scored() < 5 * 300 // 2
    assert large.verify() == []


def test_codes_that_are_lost_or_wrong_are_made_again(large: LocalIndex) -> None:
    content = (large.folder / "codes-0.i8").read_bytes()
    for number, damaged in enumerate((content[:-9], b"\x01" * len(content))):
        (large.folder / f"codes-{number}.i8").write_bytes(damaged)
        assert ["the next index add rebuilds them" in fault for fault in large.verify()] == [True]
        assert build(large, None) is None
        assert not list(large.folder.glob(f"codes-{number}.*"))
        assert (large.folder / f"codes-{number + 1}.i8").read_bytes() == content
        assert large.verify() == []
    (large.folder / "codes-2.i8").unlink()
    _add(large, range(MANY, MANY + 5), unit(MANY + 5))
    assert len(large.search(unit(1), top=3)[0]) == 3
    build(large, None)
    assert large.verify() == []


def test_half_the_size(tmp_path: Path, large: LocalIndex) -> None:
    with create_index(tmp_path / "half", dim=DIM, model="m", bundle="b", kind="float16") as half:
        _add(half, range(MANY), unit(MANY))
        assert (tmp_path / "half" / "vectors-0.f16").stat().st_size == MANY * DIM * 2
        whole, found = large.search(unit(9, seed=1), top=1), half.search(unit(9, seed=1), top=1)
        np.testing.assert_allclose([a[0].score for a in whole], [b[0].score for b in found], atol=2e-3)
        assert half.verify() == []
        assert half.vectors(["d3"])["d3"].dtype == np.float32
        half.remove(["/photos/1.jpg"])
        assert compact(half) == 1
    with open_index(tmp_path / "half") as again:
        assert len(again) == MANY - 1
        assert again.verify() == []
    with pytest.raises(ConfigError, match="stores float32, not float16"):
        create_index("postgresql://ann@db/x", dim=DIM, model="m", bundle="b", kind="float16")


def test_nearly_the_nearest(large: LocalIndex) -> None:
    plain = keys_of(large.search(unit(40, seed=1), top=5))
    about = build(large, "signs")
    assert about is not None
    assert (about.kind, about.num, about.recall) == ("signs", MANY, 1.0)
    with LocalIndex(large.folder) as reader:
        assert keys_of(reader.search(unit(40, seed=1), top=5)) == plain
        _add(large, range(MANY, MANY + 5), unit(MANY + 5))  # Those that came later are found, too.
        assert keys_of(reader.search(unit(MANY + 5)[MANY:], top=1)) == [[f"/photos/{MANY + i}.jpg"] for i in range(5)]
        exactly = reader.search(unit(3, seed=2), top=5, selected=parse_filter("width < 50"))
        assert all(hit.entry.width is not None and hit.entry.width < 50 for answer in exactly for hit in answer)
        assert len(reader.search(unit(1), top=MANY + 5)[0]) == MANY + 5
    assert build(large, None) is None
    assert keys_of(large.search(unit(40, seed=1), top=5)) == plain
    assert not list(large.folder.glob("nearly-*"))


def test_nearly_is_dropped_when_the_vectors_are_written_anew(large: LocalIndex) -> None:
    build(large, "signs")
    large.remove([f"/photos/{number}.jpg" for number in range(100)])
    compact(large)
    assert not list(large.folder.glob("nearly-*"))
    assert large.search(unit(MANY)[[200]], top=1)[0][0].entry.key == "/photos/200.jpg"


def test_what_cannot_be_built(large: LocalIndex, tmp_path: Path) -> None:
    with create_index(tmp_path / "empty", dim=DIM, model="m", bundle="b") as empty:
        with pytest.raises(ConfigError, match="the index is empty"):
            build(empty, "signs")
        build(empty, None)
    with pytest.raises(ConfigError, match="hnsw is for an index in PostgreSQL; in a folder, use signs"):
        build(large, "hnsw")


def test_signs_that_are_slower_than_the_exact_scan_are_refused(
    large: LocalIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was built before stays."""
    about = build(large, "signs")
    monkeypatch.setattr(build_signs, "MIN_SPEEDUP", 1e9)
    with pytest.raises(
        ConfigError,
        match=r"of the 10 nearest of 600 vectors, \d+ must be compared, which takes [\d.]+ ms a query; the exact scan takes",
    ):
        build(large, "signs")
    assert (large.built(), large.verify(), large.remarks()) == (about, [], [])


def test_whatever_was_built_all_that_was_asked_for_is_found(place: str) -> None:
    with create_index(place, dim=DIM, model="m", bundle="b") as index:
        _add(index, range(MANY), unit(MANY))
        if is_address(place):
            with suppress(ConfigError):  # With 600 pictures, the exact search may be the faster one.
                build(index, "hnsw")
        else:
            build(index, "signs")
        assert len(index.search(unit(1), top=100)[0]) == 100
        assert len(index.search(unit(1), top=100, selected=parse_filter("width < 60"))[0]) == 60
        build(index, None)
        assert keys_of(index.search(unit(MANY)[[7]], top=1)) == [["/photos/7.jpg"]]


def test_parts_are_joined(place: str, tmp_path: Path) -> None:
    vectors = unit(30)
    with create_index(place, dim=DIM, model="m", bundle="b") as whole:
        add_ten(whole)
        parts = [create_index(tmp_path / f"part-{i}", dim=DIM, model="m", bundle="b") for i in range(2)]
        _add(parts[0], range(5, 20), vectors)
        _add(parts[1], range(20, 30), vectors)
        broken = ("/photos/bad.jpg", FileStat(size=1, modified_ns=2), "is not a picture")
        add(parts[1], [entry(40, digest="d3")], {"d3": unit(10)[3]}, broken=[broken])
        for _ in range(2):  # Again, nothing changes.
            assert merge(whole, parts) == 26
            assert len(whole) == 31
            assert whole.size()["vectors"] == 30
            assert whole.broken() == {"/photos/bad.jpg": "is not a picture"}
            assert whole.stamps()["/photos/bad.jpg"] == broken[1]
        assert keys_of(whole.search(vectors[[25]], top=1)) == [["/photos/25.jpg"]]
        assert whole.verify() == []
        with create_index(tmp_path / "renamed", dim=DIM, model="new", bundle="b", aliases=["m"]) as renamed:
            assert merge(whole, [renamed]) == 0
        with (
            create_index(tmp_path / "other", dim=DIM, model="n", bundle="b") as other,
            pytest.raises(IndexingError, match="they do not compare"),
        ):
            merge(whole, [other])
        for part in parts:
            part.close()
