"""Which samples are train and which val: for copies, for absolute paths, for other names, and for runs of earlier versions."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from PIL import Image

from diptych.bundle.folder import load_bundle, save_bundle
from diptych.cli.main import main
from diptych.core.errors import DiptychWarning, RunError
from diptych.core.randomness import stable_fraction
from diptych.core.settings import override, to_plain
from diptych.data.open_source import open_source
from diptych.data.sources.copies import copy_groups, merge_copies
from diptych.data.sources.protocol import Source
from diptych.data.sources.splits import Splits, take_split
from diptych.training.checkpoint.compatibility import check_same_run
from diptych.training.config import hide_secrets, read_config, read_run_config, write_config
from diptych.training.setup import open_data
from tests.conftest import TINY_RUN, draw_photos


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def _table(path: Path, rows: list[tuple[str, str]]) -> Source:
    path.write_text(json.dumps([{"image": image, "caption": caption} for image, caption in rows]), "utf-8")
    return open_source(f"json:{path}")


def _keys(source: Source, split: str, *, rule: int = 2, val_fraction: float = 0.2) -> set[str]:
    part = take_split(source, split, val_fraction=val_fraction, rule=rule)
    return {part.key(i) for i in range(len(part))}


@pytest.fixture
def per_caption(tmp_path: Path) -> Source:
    """One row for each of two captions of 60 pictures, each row with a file of its own."""
    rows = []
    for i in range(60):
        for name in (f"{i}-a.png", f"{i}-b.png"):
            _picture(tmp_path / name, i)
            rows.append((name, f"caption {name}"))
    return _table(tmp_path / "rows.json", rows)


def test_files_are_not_looked_up_if_all_splits_are_named(tmp_path: Path) -> None:
    for i in range(6):
        _picture(tmp_path / f"{i}.png", i)
    rows = [{"image": f"{i}.png", "caption": "a", "split": "val" if i % 2 else "train"} for i in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    source = open_source(f"json:{tmp_path / 'rows.json'}")
    with patch.object(type(source), "image_files") as looked_up:
        assert _keys(source, "val") == {"1.png", "3.png", "5.png"}
    assert not looked_up.called


def test_copies_are_assigned_together(per_caption: Source) -> None:
    """By the smaller key of each two; under rule 1, no picture is in val at all."""
    expected = {
        key for i in range(60) if stable_fraction(f"{i}-a.png", "split") < 0.2 for key in (f"{i}-a.png", f"{i}-b.png")
    }
    assert 10 < len(expected) < 40
    assert _keys(per_caption, "val") == expected
    assert _keys(per_caption, "train") == {per_caption.key(i) for i in range(120)} - expected
    both = {i for i in range(60) if all(stable_fraction(f"{i}-{x}.png", "split") < 0.2 for x in "ab")}
    assert _keys(per_caption, "val", rule=1) == {f"{i}-{x}.png" for i in both for x in "ab"}


def test_a_copy_follows_the_split_that_the_source_names(tmp_path: Path) -> None:
    rows = []
    for i, split in enumerate(("val", "train", "test")):
        for name in ("named", "free"):
            _picture(tmp_path / f"{name}{i}.png", i)
            rows.append({"image": f"{name}{i}.png", "caption": "x"} | ({"split": split} if name == "named" else {}))
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    splits = Splits(open_source(f"json:{tmp_path / 'rows.json'}"), val_fraction=0.5)
    assert splits.names == ["val", "val", "train", "train", "test", "test"]


def test_copies_are_merged_with_the_captions_of_all(per_caption: Source) -> None:
    assert copy_groups(per_caption, range(120)) == [[2 * i, 2 * i + 1] for i in range(60)]
    merged = merge_copies(per_caption)
    assert [merged.key(i) for i in range(2)] == ["0-a.png", "1-a.png"]
    assert len(merged) == 60
    assert merged.captions(1) == ("caption 1-a.png", "caption 1-b.png")
    assert merge_copies(merged) is merged


def test_a_picture_in_another_folder_moves_no_other(tmp_path: Path) -> None:
    """Paths are absolute. Under rule 1, the common parent changes with the new row, and with it all keys."""
    for i in range(40):
        _picture(tmp_path / "data" / "photos" / f"{i}.png", i)
    _picture(tmp_path / "more" / "x.png", 99)
    rows = [(str(tmp_path / "data" / "photos" / f"{i}.png"), "x") for i in range(40)]
    (tmp_path / "tables").mkdir()
    few = _table(tmp_path / "tables" / "few.json", rows)
    more = _table(tmp_path / "tables" / "more.json", [*rows, (str(tmp_path / "more" / "x.png"), "x")])
    assert few.key(0) == f"{tmp_path}/data/photos/0.png"
    assert _keys(few, "val") == _keys(more, "val") - {f"{tmp_path}/more/x.png"}
    assert few.under_first_rule().key(0) == "0.png"
    assert more.under_first_rule().key(0) == "data/photos/0.png"
    assert few.under_first_rule()[0].image == tmp_path / "data" / "photos" / "0.png"
    assert _keys(few, "val", rule=1) == {f"{i}.png" for i in range(40) if stable_fraction(f"{i}.png", "split") < 0.2}


@pytest.mark.parametrize("name", ["validation", "valid", "dev", "Val", "VALIDATION"])
def test_other_names_of_val_mean_val(tmp_path: Path, name: str) -> None:
    rows = []
    for i in range(4):
        _picture(tmp_path / f"{i}.png", i)
        rows.append({"image": f"{i}.png", "caption": "x", "split": name if i == 3 else "training"})
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    assert Splits(open_source(f"json:{tmp_path / 'rows.json'}")).names == ["train", "train", "train", "val"]


def test_a_split_that_nothing_uses_is_named(tmp_path: Path) -> None:
    rows = []
    for i in range(30):
        _picture(tmp_path / f"{i}.png", i)
        rows.append({"image": f"{i}.png", "caption": f"x {i}", "split": ("train", "val", "extra")[i % 3]})
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    config = override(TINY_RUN, {"data.source": f"json:{tmp_path / 'rows.json'}", "batch_size": 4})
    with pytest.warns(DiptychWarning, match="the 10 samples of split 'extra' are not used"):
        open_data(config)
    open_data(override(config, {"data.val_split": "extra"}))  # A warning would be an error here.


def test_a_run_without_a_rule_keeps_the_first(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_config(TINY_RUN, path)
    assert read_run_config(path).data.split_rule == 2
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "split_rule" not in line))
    assert read_run_config(path).data.split_rule == 1
    assert read_config(path).data.split_rule == 2, "a config that somebody wrote has the current rule"


def test_a_run_keeps_the_first_rule_when_its_secrets_are_moved(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    source = "shards:http://user:hunter2@host/0.tar"
    lines = yaml.safe_dump(to_plain(override(TINY_RUN, {"data.source": source}))).splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "split_rule" not in line))
    hide_secrets(path)
    assert "hunter2" not in path.read_text()
    assert (read_run_config(path).data.split_rule, read_run_config(path).data.source) == (1, source)


def test_a_checkpoint_without_a_rule_was_written_under_the_first() -> None:
    saved = to_plain(TINY_RUN)
    del saved["data"]["split_rule"]
    check_same_run(saved, override(TINY_RUN, {"data.split_rule": 1}))
    with pytest.raises(RunError, match=r"data\.split_rule 1, and this run has 2"):
        check_same_run(saved, TINY_RUN)


def test_a_bundle_without_a_rule_is_measured_under_the_first(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a val share of one half, each rule has other val pictures: the copies of rule 1 are all in train."""
    rows = []
    for i in range(40):
        _picture(tmp_path / f"{i}.png", i // 2)
        rows.append((f"{i}.png", f"caption {i}"))
    source = _table(tmp_path / "rows.json", rows)
    bundle = load_bundle(tiny_bundle)
    sizes = {rule: len(merge_copies(take_split(source, "val", val_fraction=0.5, rule=rule))) for rule in (1, 2)}
    assert sizes[1] != sizes[2]
    for rule, origin in ((2, {**bundle.origin, "split_rule": 2}), (1, {"train_split_hash": "0" * 12})):
        save_bundle(replace(bundle, origin=origin), tmp_path / f"bundle-{rule}")
        capsys.readouterr()
        command = [
            "evaluate",
            "retrieval",
            str(tmp_path / f"bundle-{rule}"),
            "--data",
            f"json:{tmp_path / 'rows.json'}",
        ]
        assert main([*command, "--val-fraction", "0.5", "--no-cache", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["protocol"]["images"] == sizes[rule]


def test_classes_keep_the_order_of_the_first_rule(tmp_path: Path) -> None:
    for name in ("class2", "class10"):
        draw_photos(tmp_path / name, ["0.png", "1.png"])
    source = open_source(f"class-folder:{tmp_path}")
    assert (source.classes, source.key(0), source.label(0)) == (("class2", "class10"), "class10/0.png", 1)
    first = take_split(source, "all", rule=1)
    assert (first.classes, first.key(0), first.label(0)) == (("class10", "class2"), "class10/0.png", 0)


def test_copies_are_looked_for_only_where_splits_differ(tmp_path: Path) -> None:
    """A source that names all splits is not opened at all."""
    rows = []
    for i in range(6):
        _picture(tmp_path / f"{i}.png", 0)
        rows.append({"image": f"{i}.png", "caption": "x", "split": "val" if i % 2 else "train"})
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    source = open_source(f"json:{tmp_path / 'rows.json'}")
    with patch.object(type(source), "__getitem__", side_effect=AssertionError("read")):
        assert Splits(source).names == ["train", "val"] * 3
    assert copy_groups(source, range(6), apart_in=["train"] * 6) == []
    assert copy_groups(source, range(6), apart_in=["val", *["train"] * 5]) == [[0, 1, 2, 3, 4, 5]]
