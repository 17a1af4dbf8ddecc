"""Listings, splits and tokenizers from the cache: they equal what is computed, and every change is noticed."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from diptych.core import array_cache
from diptych.core.array_cache import ArrayCache
from diptych.core.errors import DiptychWarning
from diptych.core.file_states import FileStates, file_states
from diptych.core.files import open_regular
from diptych.core.settings import override
from diptych.data.open_source import open_source
from diptych.data.sources import copies, kept, splits
from diptych.data.sources.copies import copy_groups
from diptych.data.sources.identity import fingerprint_data
from diptych.data.sources.listing import Listing, ListingBuilder, missing_images
from diptych.data.sources.protocol import Source
from diptych.data.sources.splits import Splits
from diptych.data.sources.subset import Subset
from diptych.device.distributed import ALONE
from diptych.training import setup
from diptych.training import starting_point as starting
from diptych.training.setup import open_data
from diptych.training.starting_point import starting_point
from tests.conftest import TINY_RUN, draw_photos
from tests.data.makers import MAKERS

NUM = 24
KEPT_KINDS = sorted(set(MAKERS) & kept.KINDS)


@pytest.fixture(autouse=True)
def _small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache that keeps also little, and files that count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (kept, splits, starting):
        monkeypatch.setattr(module, "MIN_ROWS", 2)
    monkeypatch.setattr(FileStates, "is_settled", lambda _: True)
    monkeypatch.setattr("diptych.core.cache.SETTLED_S", -1.0)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 24 pictures; every two are equal, and some are hard links."""
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(0, NUM, 2):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        if i % 4:
            os.link(folder / f"{i}.png", folder / f"{i + 1}.png")
        else:
            (folder / f"{i + 1}.png").write_bytes((folder / f"{i}.png").read_bytes())
    _write(folder / "set.csv", _rows())
    return folder / "set.csv"


def _rows() -> list[tuple[str, str]]:
    return [(f"{i}.png", f"caption {i} of a thing") for i in range(NUM)]


def _write(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("image,caption\n" + "".join(f"{image},{caption}\n" for image, caption in rows), "utf-8")


def _kept(kind: str) -> set[str]:
    return {path.name for path in ArrayCache().folder.glob(f"{kind}-*.npz")}


def _facts(source: Source) -> list[Any]:
    rows = range(len(source))
    samples = [(source.key(i), source.captions(i), source.label(i), source.split(i), source[i].image) for i in rows]
    return [samples, source.classes, source.templates, source.oddities, fingerprint_data(source), type(source)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The specs of sources that were read, and not taken from the cache."""
    found = list[str]()
    before = kept.kept_or_read

    def counted(spec: str, read: Callable[[], tuple[str, Source]]) -> Source:
        def noted() -> tuple[str, Source]:
            found.append(spec)
            return read()

        return before(spec, noted)

    monkeypatch.setattr("diptych.data.open_source.kept_or_read", counted)
    return found


@pytest.mark.parametrize("kind", KEPT_KINDS)
def test_a_listing_from_the_cache_is_the_one_that_was_read(kind: str, tmp_path: Path, read: list[str]) -> None:
    spec = MAKERS[kind](tmp_path / "set")
    first, again = _facts(open_source(spec)), _facts(open_source(spec))
    assert again == first
    assert read == [spec]
    assert _facts(open_source(spec).under_first_rule()) == _facts(kept_free(spec).under_first_rule())


def kept_free(spec: str) -> Source:
    with patch.object(kept, "MIN_ROWS", 1 << 40), patch.object(ArrayCache, "get", lambda *_: None):
        return open_source(spec)


def test_every_change_of_a_table_or_of_the_names_is_noticed(table: Path, read: list[str]) -> None:
    spec = f"csv:{table}"
    rows = _rows()
    for change in (rows, [*rows[:-1], (rows[-1][0], "another")], rows[::-1], rows[:-1]):
        _write(table, change)
        for source in (open_source(spec), open_source(spec)):
            assert [source.captions(i)[0] for i in range(len(source))] == [caption for _, caption in change]
    assert len(read) == 4
    (table.parent / "0.png").rename(table.parent / "x.png")
    with pytest.raises(Exception, match=r"1 of 23 images are not under .*0\.png"):
        open_source(spec)
    with missing_images(skip=True), pytest.warns(DiptychWarning, match="1 of 23 images"):
        assert len(open_source(spec)) == 22


def test_a_warning_comes_at_each_start(table: Path, read: list[str]) -> None:
    table.write_text("image,caption,label\n0.png,x,dog\n0.png,y,cat\n1.png,z,cat\n", "utf-8")
    for _ in range(2):
        with pytest.warns(DiptychWarning, match="disagree on the label"):
            assert open_source(f"csv:{table}").label(0) is not None
    assert len(read) == 1


def test_a_text_beside_a_picture_is_noticed(tmp_path: Path, read: list[str]) -> None:
    draw_photos(tmp_path / "set", ["a.png", "b.png", "c.png"])
    for name in "abc":
        (tmp_path / "set" / f"{name}.txt").write_text(f"one {name}")
    assert open_source(str(tmp_path / "set")).captions(0) == ("one a",)
    (tmp_path / "set" / "a.txt").write_text("another a")
    assert open_source(str(tmp_path / "set")).captions(0) == ("another a",)
    (tmp_path / "set" / "b.txt").unlink()
    assert len(open_source(str(tmp_path / "set"))) == 2
    assert len(open_source(str(tmp_path / "set"))) == 2
    assert len(read) == 3


def _opened_by_splits(source: Source, **settings: Any) -> tuple[list[str], int]:
    """The splits, and how many pictures were opened for them."""
    with patch.object(copies, "open_regular", side_effect=open_regular) as opened:
        return Splits(source, **settings).names, opened.call_count


@pytest.mark.parametrize("rule", [1, 2])
def test_splits_from_the_cache_are_those_that_were_cut(table: Path, rule: int) -> None:
    source = open_source(f"csv:{table}")
    expected, num_opened = _opened_by_splits(source, val_fraction=0.3, rule=rule)
    assert num_opened > 0
    assert _opened_by_splits(source, val_fraction=0.3, rule=rule) == (expected, 0)
    assert len(_kept("splits")) == 1
    other = Splits(source, val_fraction=0.9, rule=rule).names
    assert other.count("val") > expected.count("val")
    taken = Splits(source, val_fraction=0.3, rule=rule).take("train")
    assert [taken.key(i) for i in range(len(taken))] == [f"{i}.png" for i in range(NUM) if expected[i] == "train"]


def test_a_changed_picture_and_another_order_cut_the_splits_again(table: Path) -> None:
    names, _ = _opened_by_splits(open_source(f"csv:{table}"), val_fraction=0.3)
    picture = table.parent / "1.png"  # No link.
    state = picture.stat()
    picture.write_bytes(picture.read_bytes()[:-1] + b"\x01")  # Of the same size.
    os.utime(picture, ns=(state.st_atime_ns, state.st_mtime_ns))
    _, num_opened = _opened_by_splits(open_source(f"csv:{table}"), val_fraction=0.3)
    assert num_opened > 0
    _write(table, _rows()[::-1])
    assert _opened_by_splits(open_source(f"csv:{table}"), val_fraction=0.3)[1] > 0
    assert len(_kept("splits")) == 3
    _write(table, [(image, f"{caption}!") for image, caption in _rows()[::-1]])
    assert _opened_by_splits(open_source(f"csv:{table}"), val_fraction=0.3)[1] == 0, "splits do not depend on captions"
    assert names.count("val") > 0


@pytest.mark.parametrize("kind", ["packed", "shards"])
def test_splits_of_packs_and_tars_are_kept_until_a_file_changes(kind: str, tmp_path: Path) -> None:
    spec = MAKERS[kind](tmp_path / "set")
    with patch.object(splits, "copy_groups", side_effect=copy_groups) as compared:
        first = Splits(open_source(spec), val_fraction=0.4).names
        assert compared.call_count == 1
        assert Splits(open_source(spec), val_fraction=0.4).names == first
        assert compared.call_count == 1
    stamp = open_source(spec).image_stamp()
    for path in (*tmp_path.rglob("*.pixels"), *tmp_path.rglob("*.tar")):
        os.utime(path, (1, 1))
    assert open_source(spec).image_stamp() not in (None, stamp)


def test_a_file_that_may_change_unseen_is_not_kept(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not file_states([str(table)]).is_settled()
    os.utime(table, (1, 1))
    assert not file_states([str(table)]).is_settled(), "the time of the last change of metadata counts, too"


def test_hard_links_are_opened_once(table: Path) -> None:
    """Four files of equal size, of which two are equal: a tail each for the others, and one content each for the equal ones."""
    for name in ("a", "b"):
        (table.parent / f"{name}.png").write_bytes(b"x" * 5000 + name.encode())
    (table.parent / "c.png").write_bytes(b"x" * 5000 + b"a")
    for i in range(100):
        os.link(table.parent / "a.png", table.parent / f"link{i}.png")
    names = ["a.png", "b.png", "c.png", *(f"link{i}.png" for i in range(100))]
    builder = ListingBuilder(table.parent, where=table)
    for name in names:
        builder.add(name, ["x"])
    source = builder.build()
    with patch.object(copies, "open_regular", side_effect=open_regular) as opened:
        assert copy_groups(source, range(len(names))) == [[0, 2, *range(3, 103)]]
    assert sorted(call.args[0].name for call in opened.call_args_list) == ["a.png", "a.png", "b.png", "c.png", "c.png"]


def test_each_file_is_looked_up_once_for_splits_and_fingerprints(table: Path) -> None:
    config = override(TINY_RUN, {"data.source": f"csv:{table}", "batch_size": 4, "data.val_fraction": 0.3})
    with patch.object(Listing, "image_files", autospec=True, side_effect=Listing.image_files) as looked_up:
        train, val = open_data(config)
        data = setup.fingerprints(config, train, val, ALONE)
    assert [len(call.args[1]) for call in looked_up.call_args_list] == [NUM]
    assert isinstance(train, Subset)
    assert data["training"] == fingerprint_data(Subset(train.source, train.indices))


@pytest.mark.parametrize("kind", ["learned-bpe", "character"])
def test_a_tokenizer_from_the_cache_is_the_one_that_was_trained(kind: str, table: Path, tmp_path: Path) -> None:
    changes = {"data.source": f"csv:{table}", "batch_size": 4, "data.val_fraction": 0.3}
    config = override(TINY_RUN, {**changes, "model.text.tokenizer": kind, "model.text.vocab_size": 300})

    def file_of(number: int, *, hashed: bool = True, size: int = 300) -> bytes:
        own = override(config, {"model.text.vocab_size": size})
        train, val = open_data(own)
        data = setup.fingerprints(own, train, val, ALONE)["training"]
        start = starting_point(own, None, train, ALONE, captions_hash=data.captions if hashed else None)
        start.tokenizer.save(tmp_path / f"{number}")
        return (tmp_path / f"{number}").read_bytes()

    expected = file_of(0, hashed=False)
    assert file_of(1) == expected
    with patch("diptych.tokenizers.kept.train_tokenizer", side_effect=AssertionError("trained")):
        assert file_of(2) == expected
    if kind == "learned-bpe":
        assert file_of(3, size=270) != expected
    _write(table, [(image, caption.replace("thing", "zebras")) for image, caption in _rows()])
    assert file_of(4) != expected


def test_damaged_and_foreign_files_are_computed_again_with_one_line(table: Path) -> None:
    expected = _facts(open_source(f"csv:{table}"))
    (path,) = ArrayCache().folder.glob("listing-*.npz")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"foreign", whole[: len(whole) // 2]]
    for place in rng.integers(0, len(whole), 8).tolist():
        damaged.append(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert _facts(open_source(f"csv:{table}")) == expected
        assert len(told) <= 1
        assert all(str(path) in str(warning.message) for warning in told)
    path.write_bytes(b"foreign")
    with pytest.warns(DiptychWarning, match="is damaged; its content is computed again"):
        open_source(f"csv:{table}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source(f"csv:{table}")


def test_a_cache_that_cannot_be_written_fails_nothing(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _facts(open_source(f"csv:{table}"))
    (table.parent / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(table.parent / "file"))
    assert _facts(open_source(f"csv:{table}")) == expected
    assert Splits(open_source(f"csv:{table}")).names
    monkeypatch.setenv("XDG_CACHE_HOME", str(table.parent / "full"))
    with patch.object(array_cache, "atomic_write", side_effect=OSError(28, "No space left on device")):
        assert _facts(open_source(f"csv:{table}")) == expected
    assert list((table.parent / "full").rglob("*.npz")) == []
    monkeypatch.delenv("XDG_CACHE_HOME")
    with patch.object(Path, "home", side_effect=RuntimeError("Could not determine home directory.")):
        assert ArrayCache().get("x", 0) is None
        ArrayCache().put("x", 0, {})
        open_source(f"csv:{table}")


def test_the_cache_is_bounded_and_removes_what_was_used_longest_ago(tmp_path: Path) -> None:
    ArrayCache(tmp_path / "one").put("x", 0, {"values": np.zeros(100, dtype=int)})
    (one,) = (tmp_path / "one").glob("*.npz")
    cache = ArrayCache(tmp_path, max_bytes=3 * one.stat().st_size)
    for number in range(3):
        cache.put("x", number, {"values": np.full(100, number)})
        for path in tmp_path.glob("*.npz"):
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    assert cache.get("x", 0) is not None  # It is the newest now.
    cache.put("x", 3, {"values": np.full(100, 3)})
    assert [cache.get("x", number) is not None for number in range(4)] == [True, False, True, True]
    (tmp_path / ".left.npz.0a1b2c3d.tmp").write_bytes(b"")
    os.utime(tmp_path / ".left.npz.0a1b2c3d.tmp", (1, 1))
    cache.put("x", 4, {"values": np.zeros(1)})
    assert not list(tmp_path.glob("*.tmp"))


def test_starts_at_once_share_the_cache(tmp_path: Path) -> None:
    def start(number: int) -> bool:
        cache = ArrayCache(tmp_path)
        cache.put("x", 0, {"values": np.arange(5000)})
        cache.put("x", number, {"values": np.full(10, number)})
        found = cache.get("x", 0)
        return found is not None and np.array_equal(found["values"], np.arange(5000))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(start, range(1, 33)))
    assert len(list(tmp_path.iterdir())) == 33


def test_file_states_of_missing_files_and_links(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("12")
    os.link(tmp_path / "a", tmp_path / "c")
    paths = [str(tmp_path / name) for name in ("a", "none", "b", "c", "none")]
    states = file_states(paths)
    assert states.sizes.tolist() == [2, -1, 2, 2, -1]
    ids = states.file_ids().tolist()
    assert ids[0] == ids[3]
    assert len(set(ids)) == 4
    assert file_states(paths).digest() == states.digest()
    os.utime(tmp_path / "b", (1, 1))
    assert file_states(paths).digest() != states.digest()
