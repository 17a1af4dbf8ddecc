from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import DataError
from diptych.core.randomness import stable_fraction
from diptych.data.batches.groups import group_rows
from diptych.data.open_source import open_source
from diptych.data.sources.identity import fingerprint_data, split_hash
from diptych.data.sources.listing import Listing, ListingBuilder
from diptych.data.sources.splits import take_split
from diptych.data.sources.subset import take_few
from diptych.data.tools.write_shards import write_shards
from tests.conftest import draw_photos


def _listing(num: int, split: str | None = None, *, backwards: bool = False, word: str = "caption") -> Listing:
    builder = ListingBuilder(Path("nowhere"), where=Path("list"))
    for i in reversed(range(num)) if backwards else range(num):
        builder.add(f"p{i}.jpg", [f"{word} {i}"], split=split)
    return builder.build(check_images=False)


def _keys(source: Listing, split: str, fraction: float = 0.05) -> set[str]:
    part = take_split(source, split, val_fraction=fraction)
    return {part.key(i) for i in range(len(part))}


def test_copies_of_a_picture_never_straddle_a_split(tmp_path: Path) -> None:
    """Every fourth of 80 pictures is the same file under another name; each is in the split that all its copies are in."""
    names = [f"{i:02d}.png" for i in range(80)]
    draw_photos(tmp_path / "images", names)
    for i in range(0, 80, 4):
        (tmp_path / "images" / names[i]).write_bytes((tmp_path / "images" / names[0]).read_bytes())
    (tmp_path / "images" / names[1]).write_bytes(b"")
    (tmp_path / "captions.txt").write_text("".join(f"{name}\tcaption {name}\n" for name in names), "utf-8")
    source = open_source(f"tsv-folder:{tmp_path}")
    by_key = {key for key in names if stable_fraction(key, "split") < 0.3}
    copies = {names[i] for i in range(0, 80, 4)}
    assert 0 < len(by_key & copies) < 20
    val, train = (take_split(source, name, val_fraction=0.3) for name in ("val", "train"))
    assert {val.key(i) for i in range(len(val))} == by_key - copies
    assert {train.key(i) for i in range(len(train))} == set(names) - (by_key - copies)
    write_shards(source, tmp_path / "tars", per_shard=30)
    tars = open_source(f"shards:{tmp_path}/tars/*.tar")
    contents = [
        {part[i].image for i in range(len(part))} for part in (take_split(tars, "val"), take_split(tars, "train"))
    ]
    assert not contents[0] & contents[1]


def test_hash_split_is_stable_whatever_is_added() -> None:
    small, large = _listing(1000), _listing(3000)
    train, val = _keys(small, "train"), _keys(small, "val")
    assert train | val == {f"p{i}.jpg" for i in range(1000)}
    assert not train & val
    assert val == _keys(large, "val") & {f"p{i}.jpg" for i in range(1000)}
    assert val <= _keys(small, "val", 0.2)
    assert 100 < len(_keys(large, "val")) < 200


def test_split_hash_is_that_of_the_fingerprint() -> None:
    """Twelve digits, the same for the same samples; captions, splits, keys and order count."""
    source = _listing(4)
    assert split_hash(source) == fingerprint_data(source).digest[:12] == split_hash(_listing(4))
    others = [_listing(4, "train"), _listing(5), _listing(4, backwards=True), _listing(4, word="text")]
    assert len({split_hash(source), *map(split_hash, others)}) == 5


def test_own_splits_are_kept_and_val_is_cut_from_train_where_it_lacks() -> None:
    builder = ListingBuilder(Path("nowhere"), where=Path("list"))
    for i in range(400):
        builder.add(f"p{i}", ["x"], split="test" if i % 2 else "train")
    source = builder.build(check_images=False)
    test = {f"p{i}" for i in range(1, 400, 2)}
    assert _keys(source, "test") == test
    train, val = _keys(source, "train", 0.1), _keys(source, "val", 0.1)
    assert train | val | test == _keys(source, "all")
    assert not train & val
    assert not (train | val) & test
    assert 8 < len(val) < 35


def test_unknown_split_names_those_there_are() -> None:
    with pytest.raises(
        DataError, match=r"no split 'dev'; it has: train \(5\), val \(900\), novel \(180\), and all \(1085"
    ):
        take_split(open_source("shapes:5"), "dev")


@given(st.integers(1, 80), st.integers(1, 80))
def test_a_larger_few_holds_the_smaller_one(one: int, other: int) -> None:
    source = _listing(60)
    small, large = sorted((one, other))
    few, more = take_few(source, small), take_few(source, large)
    keys = [few.key(i) for i in range(len(few))]
    assert len(keys) == min(small, 60)
    assert set(keys) <= {more.key(i) for i in range(len(more))}
    assert keys == sorted(keys, key=lambda key: int(key[1:-4]))


def test_none_takes_all() -> None:
    source = _listing(3)
    assert take_few(source, None) is source


# Groups


ROWS = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from("uvwxyz"), st.sampled_from([None, 0, 1])), max_size=9
)


@given(rows=ROWS, by_class=st.booleans())
def test_groups_are_the_connected_parts(rows: list[tuple[str, str, int | None]], by_class: bool) -> None:
    groups = group_rows(
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        positives="class" if by_class else "caption",
    )
    reach = [set(range(len(rows))) & {i} for i in range(len(rows))]  # Slow twin: grow until nothing changes.
    for _ in rows:
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                if a[0] == b[0] or a[1] == b[1] or (by_class and a[2] is not None and a[2] == b[2]):
                    reach[i] |= reach[j]
    for i in range(len(rows)):
        assert {j for j in range(len(rows)) if groups[j] == groups[i]} == reach[i]


def test_pair_groups_nothing_and_captions_ignore_case_and_space() -> None:
    assert group_rows("aa", ["x", "x"], [0, 0], positives="pair") == [0, 1]
    assert len(set(group_rows("ab", ["A  dog", "a dog "], [None, None], positives="caption"))) == 1
    assert len(set(group_rows("ab", ["x", "y"], [1, 1], positives="caption"))) == 2


# Flickr


def test_flickr_splits_are_taken(flickr_folder: Path) -> None:
    source = open_source(f"flickr30k:{flickr_folder}")
    assert [len(take_split(source, name)) for name in ("train", "val", "test", "all")] == [2, 1, 1, 4]
