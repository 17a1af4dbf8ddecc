"""What every index promises: in a folder, and in PostgreSQL."""

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.core.errors import BusyError, IndexingError
from diptych.index.entry import FileStat
from diptych.index.filters import parse_filter
from diptych.index.open_index import create_index, index_exists, open_index, open_or_create_index
from diptych.index.protocol import Index
from tests.index.pictures import DIM, add, compact, entry, unit


def _groups(index: Index, threshold: float) -> list[tuple[str, list[str]]]:
    return [(group.kind, [picture.key for picture in group.pictures]) for group in index.duplicates(threshold)]


def test_what_is_added_is_found(index: Index, place: str) -> None:
    assert isinstance(index, Index)
    vectors = unit(10)
    for number, answer in enumerate(index.search(vectors, top=3)):
        expected = np.argsort(-(vectors @ vectors[number]), kind="stable")[:3]
        assert [found.entry.key for found in answer] == [f"/photos/{row}.jpg" for row in expected]
        assert answer[0].score == pytest.approx(1)
    assert index.entries()[3].captions == ("caption 3",)
    with open_index(place) as again:
        assert (again.dim, again.model, again.bundle, len(again)) == (DIM, "m", "b", 10)
        assert again.search(vectors[:1], top=99)[0][0].entry == index.entries()[0]
        assert again.stamps() == {f"/photos/{i}.jpg": FileStat(size=i, modified_ns=i * 10**9) for i in range(10)}
    assert (index.digest_of("/photos/4.jpg"), index.digest_of("/nowhere.jpg")) == ("d4", None)
    assert (index.has_vector("d4"), index.has_vector("d10")) == (True, False)
    assert index.verify() == []


def test_counts_of_pictures_that_were_left_out(index: Index) -> None:
    assert index.left_out() == {}
    index.set_left_out({"/photos/a": {".heic": 2}, "/other": {".cr2": 1}})
    index.set_left_out({"/photos": {".heic": 3, ".psd": 1}})  # It holds the folder that was counted before.
    index.set_left_out({"/photos/b": {".psd": 1}})  # Counted with /photos.
    assert index.left_out() == {".cr2": 1, ".heic": 3, ".psd": 1}
    with open_index(index.place) as again:
        assert again.left_out() == index.left_out()
    index.set_left_out({"/photos": {}, "/other": {".cr2": 2}})
    assert index.left_out() == {".cr2": 2}
    assert index.verify() == []


def test_the_common_folder(index: Index) -> None:
    assert index.common_folder() == "/photos"
    index.remove(f"/photos/{number}.jpg" for number in range(1, 10))
    assert index.common_folder() == "/photos"  # Of one picture, its own folder.
    add(index, [entry(20, key="/photosets/a.jpg", digest="d0")], {})
    assert index.common_folder() is None
    index.remove(["/photos/0.jpg", "/photosets/a.jpg"])
    assert index.common_folder() is None


def test_copies_share_a_vector_and_are_all_found(index: Index) -> None:
    add(index, [entry(20, digest="d4"), entry(21, digest="d4")], {})
    size = index.size()
    assert size.pop("bytes") > 0
    assert size == {"entries": 12, "vectors": 10, "unused": 0, "unreadable": 0}
    found = index.search(unit(10)[4:5], top=3)[0]
    assert [hit.entry.key for hit in found] == ["/photos/20.jpg", "/photos/21.jpg", "/photos/4.jpg"]
    assert _groups(index, 0.999) == [("identical files", ["/photos/20.jpg", "/photos/21.jpg", "/photos/4.jpg"])]


def test_of_equal_vectors_the_first_that_came_is_the_first(index: Index) -> None:
    same = unit(10)[6]
    add(index, [entry(31), entry(30), entry(29, digest="d31")], {"d31": same, "d30": same})
    keys = [f"/photos/{number}.jpg" for number in (6, 29, 31, 30)]
    for opened in (index, open_index(index.place)):
        assert [hit.entry.key for hit in opened.search(same[None], top=4)[0]] == keys
        assert _groups(opened, 1.0) == [
            ("identical files", keys[1:3]),
            ("similar according to this model", [keys[0], keys[1], keys[3]]),
        ]
    opened.close()


def test_duplicates_are_told_by_hash_and_by_vector(index: Index) -> None:
    """Of 64 bits, three may differ; hashes that agree by chance, at a cosine below 0.9, are not of the same picture."""
    rotated = unit(10)[:4].copy()
    rotated[0] = _at_cosine(unit(10)[0], 0.95)
    rotated[1] = _at_cosine(unit(10)[1], 0.5)
    rotated[2] = _at_cosine(unit(10)[2], 0.95)
    high = 2**64 - 1
    hashes = {0: high, 1: 5, 2: 9, 3: 77}
    add(index, [entry(number, phash=hashes[number]) for number in range(4)], {})
    near = {0: high ^ 0b111, 1: 5, 2: 9 ^ 0b11110000, 3: 77}
    add(index, [entry(20 + n, phash=near[n]) for n in range(4)], {f"d{20 + n}": rotated[n] for n in range(4)})
    assert index.entries(parse_filter("path = '/photos/20.jpg'"))[0].phash == high ^ 0b111
    pairs = [["/photos/0.jpg", "/photos/20.jpg"], ["/photos/3.jpg", "/photos/23.jpg"]]
    assert _groups(index, 0.99) == [("same picture", pair) for pair in pairs]
    similar = ("similar according to this model", ["/photos/2.jpg", "/photos/22.jpg"])
    assert _groups(index, 0.94) == [*(("same picture", pair) for pair in pairs), similar]
    (first, *_) = index.duplicates(0.99)
    assert [picture.cosine for picture in first.pictures] == pytest.approx([1, 0.95], abs=1e-5)
    index.set_phashes({"d22": 9})
    assert _groups(index, 0.94) == [("same picture", pair) for pair in (pairs[0], list(similar[1]), pairs[1])]
    assert index.verify() == []
    given = index.duplicates(0.94, phashes={"d4": 1, "d22": 4})  # Those that are stored count.
    assert given == index.duplicates(0.94)


def _at_cosine(vector: NDArray[np.float32], cosine: float) -> NDArray[np.float32]:
    other = unit(1, seed=3)[0]
    across = other - (other @ vector) * vector
    across /= np.linalg.norm(across)
    return np.asarray(cosine * vector + (1 - cosine**2) ** 0.5 * across, dtype=np.float32)


def _add_many_alike(index: Index) -> NDArray[np.float32]:
    """Add 320 pictures of 9 vectors, in an order that their keys do not tell; the queries are near some of them."""
    draw = np.random.default_rng(1)
    kinds, numbers = unit(9, seed=2), draw.permutation(np.arange(1000, 1320)).tolist()
    kind = {number: int(draw.integers(9)) for number in numbers}
    for start in range(0, 320, 80):
        entries = [entry(number, width=number) for number in numbers[start : start + 80]]
        entries += [entry(number + 1000, digest=f"d{number}") for number in numbers[start : start + 80 : 7]]
        add(index, entries, {f"d{number}": kinds[kind[number]] for number in numbers[start : start + 80]})
    return unit(6, seed=2)


@pytest.mark.parametrize("coded", [False, True])
def test_pages_that_follow_each_other_are_one_large_request(
    index: Index, coded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diptych.index.exact.has_fast_int8", lambda: coded)
    monkeypatch.setattr("diptych.index.exact._FEW", 0)
    queries = _add_many_alike(index)
    for selected in (None, parse_filter("width >= 1010")):
        num = len(index.entries(selected))
        whole = index.search(queries, top=num, selected=selected)
        assert [len({hit.entry.key for hit in answer}) for answer in whole] == [num] * 6
        assert all(
            [hit.score for hit in answer] == sorted((hit.score for hit in answer), reverse=True) for answer in whole
        )
        for size in (20, 64):
            for start in range(0, num, size):
                page = index.search(queries, top=start + size, selected=selected)
                assert [answer[start:] for answer in page] == [answer[start : start + size] for answer in whole]


def test_a_score_does_not_depend_on_the_other_queries(index: Index) -> None:
    queries = _add_many_alike(index)
    for top in (1, 30, 400):
        together = index.search(queries, top=top)
        assert [index.search(queries[[number]], top=top)[0] for number in range(6)] == together
        assert index.search(queries[3:5], top=top) == together[3:5]


def test_equal_vectors_have_equal_scores_in_the_order_in_which_they_came(index: Index) -> None:
    queries = _add_many_alike(index)
    hits = index.search(queries, top=400)[2]
    by_score: dict[float, list[str]] = {}
    for hit in hits:
        by_score.setdefault(hit.score, []).append(hit.entry.digest)
    came = [f"d{number}" for number in np.random.default_rng(1).permutation(np.arange(1000, 1320)).tolist()]
    assert len(by_score) == 9 + 10  # One for each vector, and the ten that were there before.
    for digests in by_score.values():
        assert len(digests) == 1 or digests == sorted(digests, key=came.index)


def test_an_empty_index_answers(place: str) -> None:
    with create_index(place, dim=DIM, model="m", bundle="b") as index:
        assert index.search(unit(2), top=3) == [[], []]
        assert (index.duplicates(0.5), index.entries(), index.verify()) == ([], [], [])
        assert (compact(index), len(index)) == (0, 0)


def test_what_is_removed_is_not_found_and_goes_when_compacted(index: Index, place: str) -> None:
    before = {hit.entry.key: hit.score for hit in index.search(unit(10)[:1], top=10)[0]}
    gone = [f"/photos/{i}.jpg" for i in range(0, 10, 2)]
    assert index.remove([*gone, "/nowhere.jpg"]) == 5
    assert (index.size()["unused"], index.has_vector("d0")) == (5, True)
    found = index.search(unit(10)[:1], top=5)[0]
    left = {key: score for key, score in before.items() if key not in gone}
    assert {hit.entry.key: hit.score for hit in found} == pytest.approx(left)
    with open_index(place) as reader:
        assert compact(index) == 5
        assert compact(index) == 0
        for opened in (index, reader):
            (again,) = opened.search(unit(10)[:1], top=5)
            assert [hit.entry for hit in again] == [hit.entry for hit in found]
    assert index.verify() == []


def test_pictures_that_cannot_be_read_are_known_until_they_change(index: Index) -> None:
    stamp = FileStat(size=5, modified_ns=7)
    add(index, [], {}, broken=[("/photos/bad.jpg", stamp, "is not a picture")])
    assert index.stamps()["/photos/bad.jpg"] == stamp
    assert index.broken() == {"/photos/bad.jpg": "is not a picture"}
    add(index, [entry(30, key="/photos/bad.jpg")], {"d30": unit(1)[0]}, gone=["/photos/3.jpg"])
    assert index.broken() == {}
    assert (len(index), index.digest_of("/photos/3.jpg")) == (10, None)


def test_nothing_is_half_added(index: Index) -> None:
    with pytest.raises(IndexingError, match="has no vector"):
        add(index, [entry(50), entry(51)], {"d50": unit(1)[0]})
    with pytest.raises(IndexingError, match="vectors of 8 numbers"):
        add(index, [entry(50)], {"d50": np.ones(3, dtype=np.float32)})
    with pytest.raises(IndexingError, match=r"cannot be written .*; it is as it was"):
        add(index, [entry(60), entry(60)], {"d60": unit(1)[0]})  # The same key twice.
    with pytest.raises(IndexingError, match=r"cannot be written .*; it is as it was"):
        add(index, [entry(61, key="/photos/\udce9.jpg")], {"d61": unit(1)[0]})  # A name that is no text.
    with pytest.raises(IndexingError, match=r"cannot be written .*; it is as it was"):
        add(index, [entry(0)], {"d1": unit(1)[0]})  # A vector that is there.
    assert (len(index), index.has_vector("d60"), index.has_vector("d61")) == (10, False, False)
    add(index, [entry(50)], {"d50": unit(1, seed=3)[0]})
    assert index.verify() == []
    assert index.search(unit(1, seed=3), top=1)[0][0].entry.key == "/photos/50.jpg"


def test_vectors_and_texts_come_back_as_they_were(index: Index) -> None:
    odd = np.array([1, 1 / 3, 1e-40, -0.0, np.pi, 2**-149, -7e-8, 3e38], dtype=np.float32)
    told = entry(
        70, captions=("'quoted' \"twice\"", "Ünï 写真 🦊\x00\t%_\\"), key="/photos/Ünï 写真 🦊\\'\".jpg", taken=None
    )
    add(index, [told], {"d70": odd})
    assert index.vectors(["d70"])["d70"].tobytes() == odd.tobytes()
    assert index.entries(parse_filter("path like '%🦊%'")) == [told]
    with pytest.raises(IndexingError, match="has no vector of d71"):
        index.vectors(["d71"])["d71"]


def test_one_writes_at_a_time(index: Index, place: str) -> None:
    busy = f"^{re.escape(index.place)}: is being written by process {os.getpid()} on "
    with open_index(place) as other:
        for second in (index, other):
            with index.writing(), pytest.raises(BusyError, match=busy), second.writing(wait_s=0.05):
                pass
        with other.writing(wait_s=0.05):
            assert index.search(unit(1), top=1)
        with pytest.raises(KeyError), index.writing():
            raise KeyError
        with other.writing(wait_s=0.05):
            pass


def test_a_second_writer_waits_for_the_first(index: Index, place: str) -> None:
    written = list[str]()
    with open_index(place) as other:

        def second() -> None:
            with other.writing(wait_s=20):
                written.append("second")

        thread = threading.Thread(target=second)
        with index.writing():
            thread.start()
            thread.join(0.3)
            written.append("first")
        thread.join()
    assert written == ["first", "second"]


def test_readers_see_whole_changes(index: Index, place: str) -> None:
    def write() -> None:
        with open_index(place) as writer, writer.writing():
            for batch in range(20):
                numbers = range(100 + 4 * batch, 104 + 4 * batch)
                vectors = dict(zip((f"d{number}" for number in numbers), unit(4, seed=batch + 1), strict=True))
                gone = [f"/photos/{number - 4}.jpg" for number in numbers]
                writer.add([entry(number) for number in numbers], vectors, gone=gone if batch % 2 else ())
                writer.compact()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set[int]()
    while thread.is_alive():
        found = index.search(unit(1), top=999)[0]
        assert len({hit.entry.key for hit in found}) == len(found)
        seen |= {len(found), len(index)}
        assert len(index.search(unit(1), top=999, selected=parse_filter("size >= 100"))[0]) % 4 == 0
        assert sum(len(group.pictures) for group in index.duplicates(-1)) % 4 == 2
    thread.join()
    assert {num % 4 for num in seen} == {2}
    assert (len(index), index.verify()) == (10 + 4 * 10, [])


def test_places_that_hold_no_index(place: str) -> None:
    assert not index_exists(place)
    with pytest.raises(IndexingError, match="holds no index; make one with: diptych index add"):
        open_index(place)
    create_index(place, dim=2, model="m", bundle="b").close()
    assert index_exists(place)
    with pytest.raises(IndexingError, match="holds an index already"):
        create_index(place, dim=2, model="m", bundle="b")


def test_names_sidecars_and_targets_are_kept(index: Index, place: str) -> None:
    sidecar = FileStat(size=3, modified_ns=2**60)
    add(index, [entry(20, digest="d4", sidecar=sidecar, target="/elsewhere/20.jpg")], {})
    index.rename_model(("new", "m"))
    with open_index(place) as again:
        assert (again.model, again.models) == ("new", ("new", "m"))
        assert again.sidecars() == {"/photos/20.jpg": sidecar}
        assert again.targets() == {"/photos/20.jpg": "/elsewhere/20.jpg"}
        assert again.with_digest("d4")[0].target == "/elsewhere/20.jpg"
    index.rename_model(("newer",))
    with open_index(place) as again:
        assert again.models == ("newer",)
    assert (index.verify(), index.remarks()) == ([], [])


def test_of_several_that_create_it_at_once_one_does(place: str) -> None:
    def make(_: int) -> str:
        try:
            create_index(place, dim=DIM, model="m", bundle="b", aliases=["old"]).close()
        except IndexingError as error:
            return str(error).partition(": ")[2]
        return "made"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(make, range(4))) == [*["holds an index already"] * 3, "made"]
    with open_index(place) as made:
        assert (made.models, made.verify()) == (("m", "old"), [])


def test_of_several_that_open_or_create_it_at_once_all_have_it(place: str) -> None:
    barrier = threading.Barrier(4)

    def make(number: int) -> int:
        barrier.wait()
        with open_or_create_index(place, dim=DIM, model="m", bundle="b") as made, made.writing(wait_s=60):
            made.add([entry(number)], {f"d{number}": unit(4)[number]})
            return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(make, range(4))) == [0, 1, 2, 3]
    with open_index(place) as made:
        assert (len(made), made.verify()) == (4, [])
