"""What a killed process leaves half done is finished or undone."""

import json
from pathlib import Path

import pytest

from diptych.device.distributed import ALONE
from diptych.training.checkpoint.store import load_checkpoint
from diptych.training.report.events import EventLog
from diptych.training.report.skipped import SkippedSamples
from diptych.training.run_folder import (
    CONFIG,
    check_run_folder,
    clear_leftovers,
    create_run_folder,
    has_begun,
)
from tests.states import assert_same, make_state
from tests.training.makers import SETTINGS, save_at


def test_killed_before_its_config_was_written_it_starts_again(tmp_path: Path) -> None:
    (tmp_path / f".{CONFIG}").write_text("recipe: ti")  # As earlier versions named it.
    (tmp_path / f".{CONFIG}.0a1b2c3d.tmp").write_text("recipe: ti")
    check_run_folder(tmp_path, overwrite=False, resume=False)
    create_run_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_killed_as_it_emptied_the_folder_it_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / CONFIG).write_text("recipe: tiny")
    (tmp_path / "tensorboard").mkdir()

    def die(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            create_run_folder(tmp_path)
    check_run_folder(tmp_path, overwrite=False, resume=True)
    create_run_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG]


def test_killed_between_the_renames_of_its_only_checkpoint_it_goes_on(tmp_path: Path) -> None:
    one, other = make_state(0), make_state(1)
    place = save_at(tmp_path, one, 3)
    (tmp_path / "tokenizer.json").write_text("{}")
    place.rename(place.with_name(f".{place.name}.old"))
    assert has_begun(tmp_path)
    assert load_checkpoint(tmp_path, other, ALONE, config=SETTINGS, on_message=print).step == 3
    assert_same(one, other)


def test_half_bundles_go_and_whole_ones_stay(tmp_path: Path) -> None:
    for name in (".bundle-best-old", ".bundle-best-ab12", ".bundle-old", ".bundle-xy", "bundle"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "said").write_text(name)
    clear_leftovers(tmp_path)
    assert {path.name: (path / "said").read_text() for path in tmp_path.iterdir()} == {
        "bundle": "bundle",
        "bundle-best": ".bundle-best-old",
    }


@pytest.mark.usefixtures("no_curves")
def test_an_event_log_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "events.jsonl"
    before = '{"step": 1}\n{"step": 5}\n{"st'
    log.write_text(before)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            EventLog(tmp_path, batch_size=4, first_step=4)
    assert log.read_text() == before
    EventLog(tmp_path, batch_size=4, first_step=4).close()
    assert log.read_text() == '{"step": 1}\n'


def test_skipped_samples_are_listed_once_each_after_a_kill(tmp_path: Path) -> None:
    samples = SkippedSamples(tmp_path / "skipped.jsonl", ALONE, num_samples=100, max_share=0.9)
    samples.go_on(())
    assert not samples.path.exists()
    samples.add([("a", "gone"), ("b", "gone")], num_tried=10)
    samples.path.write_text(samples.path.read_text() + '{"key": "c')
    again = SkippedSamples(samples.path, ALONE, num_samples=100, max_share=0.9)
    again.go_on([("a", "gone")])
    again.add([("b", "gone"), ("c", "gone")], num_tried=10)
    assert [json.loads(line)["key"] for line in samples.path.read_text().splitlines()] == ["a", "b", "c"]
