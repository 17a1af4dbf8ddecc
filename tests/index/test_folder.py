"""The folder of an index under an open reader: deleted, made again, not to be written, shared by threads, left by a kill."""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.core.errors import DiptychWarning, IndexingError
from diptych.core.files import sha256_of
from diptych.index import build_signs
from diptych.index.approximate import AnnInfo, AnnKind, Approximate, FileId
from diptych.index.create_local import create_local_index
from diptych.index.exact import nearest
from diptych.index.filters import parse_filter
from diptych.index.local import LocalIndex
from diptych.index.open_index import create_index
from diptych.index.tables import set_about
from diptych.index.vector_file import VectorFile
from tests.conftest import as_nobody
from tests.index.databases import changed_database
from tests.index.pictures import DIM, add, add_ten, build, compact, entry, unit

NUM = 600


def _make(folder: Path, vectors: NDArray[np.float32], *, first: int = 0, model: str = "m") -> LocalIndex:
    made = create_local_index(folder, dim=vectors.shape[1], model=model, bundle="b")
    numbers = range(first, first + len(vectors))
    add(made, [entry(n, width=n) for n in numbers], {f"d{n}": v for n, v in zip(numbers, vectors, strict=True)})
    return made


def _digests(index: LocalIndex, vectors: NDArray[np.float32]) -> list[str]:
    return [answer[0].entry.digest for answer in index.search(vectors, top=1)]


@pytest.mark.parametrize("ann", [None, "signs"])
def test_an_index_that_is_made_again_is_searched(tmp_path: Path, ann: AnnKind | None) -> None:
    """Also where the structures of the two have the same name, number of vectors and recall."""
    old, new = unit(NUM), unit(NUM, seed=5)
    with _make(tmp_path / "index", old) as made:
        build(made, ann)
    with LocalIndex(tmp_path / "index") as reader:
        assert _digests(reader, old[:50]) == [f"d{n}" for n in range(50)]
        shutil.rmtree(tmp_path / "index")
        with pytest.raises(IndexingError, match="holds no index"):
            reader.search(old[:1], top=1)
        writer = _make(tmp_path / "index", new, first=1000)
        build(writer, ann)
        assert _digests(reader, new[:50]) == [f"d{n}" for n in range(1000, 1050)]
        assert len(reader.entries()) == len(reader) == NUM
        assert reader.digest_of("/photos/3.jpg") is None
        with reader.writing():
            reader.add([entry(1)], {"d1": old[1]})
        assert _digests(writer, old[[1]]) == ["d1"]
        writer.close()
    with LocalIndex(tmp_path / "index") as again:
        assert (len(again), again.verify()) == (NUM + 1, [])


def test_an_index_of_another_model_in_its_place_is_refused(local_index: LocalIndex, tmp_path: Path) -> None:
    _make(tmp_path / "other", unit(10), model="n").close()
    _make(tmp_path / "wide", np.eye(DIM + 1, dtype=np.float32)).close()
    same = create_local_index(tmp_path / "same", dim=DIM, model="newer", bundle="c", aliases=["m"])
    add(same, [entry(77)], {"d77": unit(1)[0]})
    same.close()
    local_index.folder.rename(tmp_path / "gone")
    for name in ("other", "wide"):
        (tmp_path / name).rename(local_index.folder)
        for _ in range(2):
            with pytest.raises(IndexingError, match="was replaced by an index of another model"):
                local_index.search(unit(1), top=1)
        local_index.folder.rename(tmp_path / name)
    (tmp_path / "same").rename(local_index.folder)
    assert _digests(local_index, unit(1)) == ["d77"]
    assert (local_index.models, local_index.bundle) == (("newer", "m"), "c")


def test_who_writes_an_index_that_is_replaced_is_told(local_index: LocalIndex, tmp_path: Path) -> None:
    with local_index.writing():
        local_index.folder.rename(tmp_path / "gone")
        _make(local_index.folder, unit(10)).close()
        with pytest.raises(IndexingError, match="was deleted or replaced while it was written"):
            local_index.add([entry(99)], {"d99": unit(1)[0]})
    with LocalIndex(local_index.folder) as again:
        assert (len(again), again.verify()) == (10, [])


def test_a_change_of_files_is_refused_without_the_lock(local_index: LocalIndex) -> None:
    with pytest.raises(IndexingError, match=r"add must be called within `with index.writing\(\):`"):
        local_index.add([entry(20)], {"d20": unit(1)[0]})
    for change in (local_index.compact, local_index.repair, lambda: local_index.build(None)):
        with pytest.raises(IndexingError, match="must be called within"):
            change()
    with local_index.writing(), ThreadPoolExecutor(1) as pool:
        refused = pool.submit(local_index.add, [entry(20)], {"d20": unit(1)[0]}).exception()
    assert isinstance(refused, IndexingError)
    assert (len(local_index), local_index.verify()) == (10, [])


def test_threads_share_an_index(local_index: LocalIndex) -> None:
    """What three write and two read meanwhile is whole, and nothing is lost."""
    vectors = unit(400, seed=3)

    def write(thread: int) -> None:
        for number in range(100 + 12 * thread, 112 + 12 * thread, 4):
            with local_index.writing(wait_s=60):
                some = range(number, number + 4)
                local_index.add([entry(n, width=n) for n in some], {f"d{n}": vectors[n] for n in some})

    def read() -> set[int]:
        seen = set[int]()
        for _ in range(60):
            found = local_index.search(unit(1), top=999)[0]
            seen |= {len(found), len(local_index.entries()), len(local_index)}
            seen.add(
                2 + len(local_index.search(unit(1), top=999, selected=parse_filter("width >= 1000 or size >= 100"))[0])
            )
        return seen

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        list(pool.map(write, range(3)))
        assert {num % 4 for reader in readers for num in reader.result()} == {2}
    assert _digests(local_index, vectors[100:136]) == [f"d{n}" for n in range(100, 136)]
    assert (len(local_index), local_index.verify()) == (46, [])


@pytest.mark.parametrize("change", ["compact", "build"])
def test_what_a_kill_leaves_is_removed_by_the_next_writer(
    local_index: LocalIndex, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the database counts the new files, and after it, before the old ones are removed."""
    local_index.remove(["/photos/3.jpg"])
    files = sorted(path.name for path in local_index.folder.iterdir() if path.name != "lock")
    expected = local_index.search(unit(10), top=9)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("diptych.index.local.set_about", "diptych.index.vector_file.VectorFile.unlink_codes"):
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            with pytest.raises(KeyboardInterrupt):
                compact(local_index) if change == "compact" else build(local_index, "signs")
        (local_index.folder / ".codes-9.i8.0a1b2c3d.tmp").write_bytes(b"left")
        left = {path.name for path in local_index.folder.iterdir()} - {*files, "lock", ".codes-9.i8.0a1b2c3d.tmp"}
        remarks = [remark for remark in local_index.remarks() if "is left from a change that was interrupted" in remark]
        assert left or remarks
        assert local_index.verify() == []
        assert local_index.search(unit(10), top=9) == expected
        with local_index.writing():
            pass
        assert (local_index.verify(), local_index.remarks()) == ([], [])
        num_files = len(
            [path for path in local_index.folder.iterdir() if path.name.startswith(("vectors", "codes", "nearly", "."))]
        )
        assert num_files == 3 + (local_index.built() is not None)


@pytest.fixture
def built(tmp_path: Path) -> Iterator[LocalIndex]:
    """Six hundred, of which many are alike."""
    vectors = np.concatenate([unit(300, seed=1), np.repeat(unit(6, seed=2), 50, axis=0)])
    with _make(tmp_path / "index", vectors) as made:
        yield made


def test_all_hits_come_with_sign_bits(built: LocalIndex) -> None:
    queries = np.concatenate([unit(8, seed=7), unit(3, seed=2)])
    exact = {top: built.search(queries, top=top) for top in (101, 400, NUM)}
    about = build(built, "signs")
    assert about is not None
    assert (about.top, about.recall > 0.99) == (10, True)
    whole = built.search(queries, top=100)
    for top, expected in exact.items():
        found = built.search(queries, top=top)
        assert [answer[:100] for answer in found] == whole
        assert [len({hit.entry.key for hit in answer}) for answer in found] == [len(answer) for answer in expected]
    assert [{hit.entry.key: hit.score for hit in answer} for answer in built.search(queries, top=NUM)] == [
        {hit.entry.key: hit.score for hit in answer} for answer in exact[NUM]
    ]
    for start in range(0, 100, 20):
        page = built.search(queries, top=start + 20)
        assert [answer[start:] for answer in page] == [answer[start : start + 20] for answer in whole]
    assert built.search(unit(3, seed=2), top=50) == [
        answer[:50] for answer in exact[101][8:]
    ]  # Equal vectors, all of them.


def _vectors(index: LocalIndex) -> NDArray[np.float32]:
    """As its file holds them."""
    (file,) = index.folder.glob("vectors-*.f32")
    return np.fromfile(file, dtype="<f4").reshape(-1, DIM)[: index.size()["vectors"]]


def test_too_few_hits_are_completed(built: LocalIndex) -> None:
    about = build(built, "signs")
    assert about is not None
    narrow = Approximate(FileId.of(built.folder / "nearly-1"), replace(about, effort=80))
    vectors, queries = _vectors(built), unit(30, seed=7)
    for top in (9, 90):
        found, expected = narrow.search(vectors, queries, top=top), nearest(vectors, queries, top=top)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_pages_go_on_behind_the_hits_that_the_bits_find(built: LocalIndex) -> None:
    about = build(built, "signs")
    assert about is not None
    ann = Approximate(FileId.of(built.folder / "nearly-1"), replace(about, effort=120))
    vectors, queries = _vectors(built), unit(8, seed=7)
    exact = nearest(vectors, queries, top=NUM)[0]
    whole = ann.search(vectors, queries, top=300)
    assert (whole[0] != exact[:, :300]).any()
    for top in (1, 20, 100, 101, 120, 299):
        rows, scores = ann.search(vectors, queries, top=top)
        np.testing.assert_array_equal(rows, whole[0][:, :top])
        np.testing.assert_array_equal(scores, whole[1][:, :top])
    every = ann.search(vectors, queries, top=NUM)
    np.testing.assert_array_equal(np.sort(every[0]), np.sort(exact))  # What the bits missed comes later.


@pytest.mark.parametrize("damage", ["missing", "short", "empty", "of other vectors", "another file"])
def test_a_structure_that_cannot_be_used_is_searched_without(built: LocalIndex, damage: str) -> None:
    queries = unit(5, seed=7)
    expected = built.search(queries, top=20)
    build(built, "signs")
    path = built.folder / "nearly-1"
    content = path.read_bytes()
    path.unlink()
    if damage == "of other vectors":
        build_signs.build(unit(550, seed=9), path)
    elif damage != "missing":
        path.write_bytes({"short": content[:-1000], "empty": b"", "another file": b"x" * len(content)}[damage])
    assert built.verify() == ["nearly-1 is missing or damaged; the next index add rebuilds it"]
    for _ in range(2):
        with pytest.warns(DiptychWarning, match="is searched exactly"):
            assert built.search(queries, top=20) == expected
    with built.writing():
        built.repair()
    assert (built.folder / "nearly-2").read_bytes() == content
    assert built.verify() == []
    assert len(built.search(queries, top=20)[0]) == 20


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_structure_of_an_earlier_version_is_dropped_by_the_next_writer(built: LocalIndex, kind: str) -> None:
    """Until then it is not used; a line says how to build another."""
    expected = built.search(unit(5, seed=7), top=20)
    path = built.folder / "nearly-0"
    path.write_bytes(b"of faiss")
    with changed_database(built) as database:
        known = {"kind": kind, "num": NUM, "effort": 8, "recall": 0.99}
        set_about(database, nearly=json.dumps(known), nearly_top="100", nearly_bytes="8", nearly_sha256=sha256_of(path))
    with LocalIndex(built.folder) as again:
        assert (again.verify(), again.built()) == ([], None)
        with pytest.warns(
            DiptychWarning, match=rf"\({kind}\), build one again: diptych index build {built.folder} --approximate"
        ):
            assert again.search(unit(5, seed=7), top=20) == expected
        with again.writing():
            pass
        assert (path.exists(), again.built(), again.verify(), again.remarks()) == (False, None, [], [])
        assert again.search(unit(5, seed=7), top=20) == expected


def test_earlier_versions_read_the_description(built: LocalIndex) -> None:
    about = build(built, "signs")
    assert about is not None
    rows = about.rows()
    assert set(json.loads(rows["nearly"])) == {"kind", "num", "effort", "recall"}  # They read no others.
    assert AnnInfo.from_rows(rows) == about == built.built()


@pytest.fixture
def shared(open_place: Path) -> Iterator[LocalIndex]:
    """Ten pictures of root, in a folder that others may read."""
    with create_local_index(open_place / "index", dim=DIM, model="m", bundle="b") as made:
        add_ten(made)
        yield made
        made.folder.chmod(0o755)


def _closed_to_others(folder: Path) -> None:
    folder.chmod(0o555)
    for path in folder.iterdir():
        path.chmod(0o444)


def test_an_index_that_cannot_be_written_is_searched(shared: LocalIndex) -> None:
    expected = shared.search(unit(10), top=5)
    shared.close()
    assert not list(shared.folder.glob("index.db-*"))
    _closed_to_others(shared.folder)
    with as_nobody(), LocalIndex(shared.folder) as reader:
        assert reader.search(unit(10), top=5) == expected
        assert (len(reader), reader.verify(), reader.size()["vectors"]) == (10, [], 10)
        with pytest.raises(IndexingError, match="cannot be written"), reader.writing():
            pass
        with pytest.raises(IndexingError, match="cannot be written"):
            reader.remove(["/photos/1.jpg"])
        assert not list(shared.folder.glob("index.db-*"))


def test_a_log_that_was_left_is_read(shared: LocalIndex, open_place: Path) -> None:
    add(shared, [entry(20)], {"d20": unit(1, seed=9)[0]})
    copied = open_place / "copied"
    shutil.copytree(shared.folder, copied, ignore=shutil.ignore_patterns("*-shm"))  # As a kill leaves it, elsewhere.
    assert (copied / "index.db-wal").stat().st_size > 0
    _closed_to_others(copied)
    before = set(Path(tempfile.gettempdir()).glob("diptych-index-*"))
    with as_nobody(), LocalIndex(copied) as reader:
        assert _digests(reader, unit(1, seed=9)) == ["d20"]
        assert reader.verify() == []
        with pytest.raises(IndexingError, match="cannot be written"):
            reader.remove(["/photos/1.jpg"])
    assert set(Path(tempfile.gettempdir()).glob("diptych-index-*")) == before
    copied.chmod(0o755)


def test_who_may_only_read_sees_what_others_write(shared: LocalIndex) -> None:
    shared.close()
    shared.folder.chmod(0o555)
    with as_nobody():
        reader = LocalIndex(shared.folder)
        assert len(reader) == 10
    shared.folder.chmod(0o755)
    for number in range(20, 24):
        with LocalIndex(shared.folder) as writer:
            add(writer, [entry(number)], {f"d{number}": unit(1, seed=number)[0]})
            writer.remove([f"/photos/{number - 19}.jpg"])
            for is_open in (True, False):
                if not is_open:
                    compact(writer)
                    writer.close()
                shared.folder.chmod(0o555)
                with as_nobody():
                    assert _digests(reader, unit(1, seed=number)) == [f"d{number}"]
                    assert len(reader) == 10
                    with LocalIndex(shared.folder) as other:
                        assert len(other) == 10
                shared.folder.chmod(0o755)
    with as_nobody():
        reader.close()


def test_files_that_are_replaced_meanwhile_are_no_damage(
    local_index: LocalIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_index.remove(["/photos/3.jpg"])
    checking = VectorFile.faults
    num_checks = 0

    def check_late(file: VectorFile, *given: Any) -> list[str]:
        """The reader has read the database already, and goes on with this state of it."""
        nonlocal num_checks
        num_checks += 1
        if num_checks == 1:
            assert compact(local_index) == 1
        return checking(file, *given)

    with LocalIndex(local_index.folder) as reader:
        monkeypatch.setattr(VectorFile, "faults", check_late)
        assert (reader.verify(), num_checks) == ([], 2)


def test_a_database_that_is_locked_is_not_read_without_locks(
    local_index: LocalIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_index.close()
    other = sqlite3.connect(local_index.folder / "index.db")
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    connecting = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: connecting(*args, **{**more, "timeout": 0}))
    with pytest.raises(IndexingError, match="locked"):
        LocalIndex(local_index.folder)
    other.close()


def test_an_index_is_made_and_filled_at_once(tmp_path: Path) -> None:
    with create_index(tmp_path / "new", dim=DIM, model="m", bundle="b") as made, made.writing():
        made.add([entry(1)], {"d1": unit(1)[0]})
        assert (len(made), made.verify()) == (1, [])
