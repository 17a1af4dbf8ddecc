"""An index in a folder: nothing that breaks its files breaks it."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from diptych.core.errors import IndexingError
from diptych.index.create_local import create_local_index
from diptych.index.local import LocalIndex
from tests.index.pictures import DIM, add, compact, entry, unit


def test_the_old_vectors_go_when_they_are_written_anew(local_index: LocalIndex) -> None:
    local_index.remove(["/photos/3.jpg"])
    assert compact(local_index) == 1
    assert [path.name for path in local_index.folder.glob("vectors-*")] == ["vectors-1.f32"]
    assert local_index.size()["bytes"] > 9 * DIM * 4


def test_an_addition_that_was_cut_off_is_written_over(local_index: LocalIndex) -> None:
    file = local_index.folder / "vectors-0.f32"
    file.write_bytes(file.read_bytes() + b"half a vector")
    (remark,) = local_index.remarks()
    assert remark.startswith("vectors-0.f32 has 13 bytes of an addition that was interrupted")
    assert local_index.verify() == []
    assert local_index.search(unit(10)[:1], top=1)[0][0].score == pytest.approx(1)
    add(local_index, [entry(40)], {"d40": unit(1, seed=9)[0]})
    assert (local_index.verify(), local_index.remarks()) == ([], [])
    assert local_index.search(unit(1, seed=9), top=1)[0][0].entry.key == "/photos/40.jpg"


def test_damage_is_named(local_index: LocalIndex, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        local_index.close()
        return Path(shutil.copytree(local_index.folder, tmp_path / name))

    short = damaged("short")
    (short / "vectors-0.f32").write_bytes((short / "vectors-0.f32").read_bytes()[:-1])
    assert "has 319 bytes of 320" in LocalIndex(short).verify()[0]
    with pytest.raises(IndexingError, match="index verify"):
        LocalIndex(short).search(unit(1), top=1)
    zeroed = damaged("zeroed")
    (zeroed / "vectors-0.f32").write_bytes(bytes(320))
    assert LocalIndex(zeroed).verify() == [
        "vectors-0.f32 is damaged in rows 0 to 9; the next index add embeds the pictures again"
    ]
    database = damaged("database")
    (database / "index.db").write_bytes(b"no database at all, but of some length" * 200)
    with pytest.raises(IndexingError, match="cannot be read"):
        LocalIndex(database)


def test_folders_that_hold_no_index(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("x", encoding="utf-8")
    with pytest.raises(IndexingError, match="is not empty"):
        create_local_index(tmp_path, dim=2, model="m", bundle="b")
    create_local_index(tmp_path / "new", dim=2, model="m", bundle="b").close()
    with sqlite3.connect(tmp_path / "new" / "index.db") as database:
        database.execute("UPDATE about SET value = '9' WHERE name = 'format'")
    database.close()
    with pytest.raises(IndexingError, match="format 9"):
        LocalIndex(tmp_path / "new")
