"""Damage to the files of an index is found, and no change hides it."""

import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.core.errors import DiptychError, DiptychWarning, IndexingError
from diptych.index import build_signs, checksums
from diptych.index.create_local import create_local_index
from diptych.index.entry import FileStat
from diptych.index.local import LocalIndex
from diptych.index.tables import HASHED
from tests.index.pictures import DIM, add, add_ten, build, compact, entry, unit
from tests.makers import flip_bit

NUM = 60
FILES = ["vectors-0.f32", "codes-1.i8", "codes-1.f32", "nearly-1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures in blocks of seven vectors, with sign bits; closed, so that all is in `index.db`."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "_BLOCK_BYTES", 7 * DIM * 4)
        with create_local_index(folder, dim=DIM, model="m", bundle="b", aliases=["old"]) as made:
            for start in range(0, NUM, 20):
                numbers = range(start, start + 20)
                entries = [entry(n, width=n, captions=(f"caption {n}", "é")) for n in numbers]
                add(
                    made,
                    entries,
                    {f"d{n}": unit(NUM)[n] for n in numbers},
                    broken=[(f"/bad/{start}", FileStat(size=1, modified_ns=2), "why")],
                )
            patch.setattr(build_signs, "MIN_SPEEDUP", 0)
            build(made, "signs")
            assert made.verify() == []
    return folder


def _copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.mark.parametrize("name", FILES)
def test_every_bit_flip_in_a_file_is_found(whole: Path, tmp_path: Path, name: str) -> None:
    folder = _copy(whole, tmp_path)
    draw, num_bits = random.Random(0), 8 * (whole / name).stat().st_size
    with LocalIndex(folder) as index:
        for bit in draw.sample(range(num_bits), 40):
            flip_bit(folder / name, bit)
            (fault,) = index.verify()
            assert fault.startswith(name)
            flip_bit(folder / name, bit)
        assert index.verify() == []


def test_the_rows_are_named(whole: Path, tmp_path: Path) -> None:
    folder = _copy(whole, tmp_path)
    for row in (0, 8, 45):
        flip_bit(folder / "vectors-0.f32", 8 * (row * DIM * 4 + 5))
    with LocalIndex(folder) as index:
        assert index.verify() == [
            "vectors-0.f32 is damaged in rows 0 to 13 and 40 to 46; the next index add embeds the pictures again"
        ]


def _content(folder: Path) -> dict[str, list[Any]]:
    """All values of all tables."""
    with sqlite3.connect(folder / "index.db") as database:
        content = {
            table: database.execute(f"SELECT {columns} FROM {table}").fetchall() for table, columns in HASHED.items()
        }
    database.close()
    return content


def _is_found(folder: Path) -> bool:
    try:
        with LocalIndex(folder) as index:
            return index.verify() != []
    except DiptychError:
        return True


def _check_flips(whole: Path, tmp_path: Path, num: int) -> int:
    """How many of some flips in the database changed a value; each of these is found."""
    folder, expected, num_changed = _copy(whole, tmp_path), _content(whole), 0
    path = folder / "index.db"
    original, draw = path.read_bytes(), random.Random(1)
    for bit in draw.sample(range(8 * len(original)), num):
        flip_bit(path, bit)
        try:
            has_changed = _content(folder) != expected
        except (sqlite3.Error, UnicodeError):
            has_changed = True
        if has_changed:
            num_changed += 1
            assert _is_found(folder), f"bit {bit}"
        for log in folder.glob("index.db-*"):
            log.unlink()
        path.write_bytes(original)
    assert not _is_found(folder)
    return num_changed


def test_flips_in_the_database_are_found(whole: Path, tmp_path: Path) -> None:
    assert _check_flips(whole, tmp_path, 90) > 10


@pytest.mark.slow
def test_thousands_of_flips_in_the_database_are_found(whole: Path, tmp_path: Path) -> None:
    assert _check_flips(whole, tmp_path, 3000) > 400


_CHANGED = "index.db is damaged: {} rows of the table {} have changed; delete it and add the pictures again"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE entries SET digest = 'd5' WHERE digest = 'd4'", _CHANGED.format(1, "entries")),
        ("UPDATE entries SET size = size + 1 WHERE digest = 'd4'", _CHANGED.format(1, "entries")),
        ("UPDATE entries SET captions = '[\"other\"]' WHERE digest = 'd4'", _CHANGED.format(1, "entries")),
        ("UPDATE entries SET size = CAST(size AS TEXT) || 'x' WHERE digest = 'd4'", _CHANGED.format(1, "entries")),
        ("UPDATE vectors SET place = 1000 WHERE digest = 'd4'", _CHANGED.format(1, "vectors")),
        ("UPDATE broken SET reason = 'else'", _CHANGED.format(3, "broken")),
        ("UPDATE about SET value = 'n' WHERE name = 'model'", _CHANGED.format(1, "about")),
        ("UPDATE blocks SET num = 6 WHERE first = 0", _CHANGED.format(1, "blocks")),
        (
            "DELETE FROM blocks WHERE first = 40",
            "the checksums do not belong to these vectors; the next index add embeds the pictures again",
        ),
        (
            "DELETE FROM vectors WHERE digest = 'd4'",
            "1 entries have no vector; the next index add embeds the pictures again",
        ),
    ],
)
def test_a_changed_value_is_found(whole: Path, tmp_path: Path, sql: str, said: str) -> None:
    folder = _copy(whole, tmp_path)
    with sqlite3.connect(folder / "index.db") as database:
        database.execute(sql)
    database.close()
    with LocalIndex(folder) as index:
        assert index.verify() == [said]


def test_no_change_hides_damage(tmp_path: Path) -> None:
    with create_local_index(tmp_path / "index", dim=DIM, model="m", bundle="b") as index:
        add_ten(index)
        flip_bit(index.folder / "vectors-0.f32", 100)
        said = ["vectors-0.f32 is damaged in rows 0 to 9; the next index add embeds the pictures again"]
        add(index, [entry(40)], {"d40": unit(1, seed=9)[0]})
        assert index.verify() == said
        build(index, None)
        assert index.verify() == said
        index.remove(["/photos/3.jpg"])
        with pytest.raises(
            IndexingError, match="is damaged in rows 0 to 9; the next index add embeds the pictures again"
        ):
            compact(index)
        assert (len(index), index.verify()) == (10, said)


def test_a_lost_graph_is_named_and_searched_without(whole: Path, tmp_path: Path) -> None:
    folder = _copy(whole, tmp_path)
    (folder / "nearly-1").unlink()
    with LocalIndex(folder) as index:
        assert index.verify() == ["nearly-1 is missing or damaged; the next index add rebuilds it"]
        with pytest.warns(DiptychWarning, match="is searched exactly"):
            assert index.search(unit(NUM)[[30]], top=1)[0][0].entry.digest == "d30"


def test_half_precision_has_checksums(tmp_path: Path) -> None:
    with create_local_index(tmp_path / "half", dim=DIM, model="m", bundle="b", kind="float16") as index:
        add_ten(index)
        assert index.verify() == []
        flip_bit(index.folder / "vectors-0.f16", 8 * 40)
        assert "vectors-0.f16 is damaged in rows 0 to 9" in index.verify()[0]


def test_checksums_are_those_of_the_files(whole: Path) -> None:
    vectors = np.fromfile(whole / "vectors-0.f32", dtype="<f4").reshape(-1, DIM)
    blocks = _content(whole)["blocks"]
    assert [(first, num) for first, num, *_ in blocks] == [
        (start + offset, min(7, 20 - offset)) for start in (0, 20, 40) for offset in (0, 7, 14)
    ]
    for first, num, digest, *_ in blocks:
        assert checksums.hash_block(vectors[first : first + num]) == digest
