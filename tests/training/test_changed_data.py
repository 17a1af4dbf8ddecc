"""A run goes on with the data that it began with, or says what has changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.core.errors import ConfigError, RunError
from diptych.core.files import sha256_of
from diptych.core.settings import override
from diptych.training.config import TrainConfig
from diptych.training.run import train
from tests.conftest import draw_photos
from tests.training.listener import Listener

pytestmark = pytest.mark.usefixtures("no_curves")

NUM = 20


def _die() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def stopped(tmp_path: Path, tiny_run: TrainConfig) -> tuple[TrainConfig, Path]:
    """A run over picture files that was killed after its third step, with a checkpoint of its second."""
    folder = tmp_path / "set"
    draw_photos(folder, [f"{number:02d}.png" for number in range(NUM)])
    _write(folder, _rows())
    config = override(
        tiny_run,
        {
            "data.source": f"json:{folder / 'set.json'}",
            "batch_size": "4",
            "validation.times": "1",
            "schedule.steps": "4",
            "checkpoint.steps": "2",
        },
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", observers=[Listener(3, _die)])
    return config, tmp_path / "run"


def _rows() -> list[dict[str, Any]]:
    return [
        {"image": f"{n:02d}.png", "caption": f"picture {n}", "split": "val" if n < 4 else "train"} for n in range(NUM)
    ]


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "set.json").write_text(json.dumps(rows), "utf-8")


def _rewrite(folder: Path) -> None:
    _write(folder, [{**row, "caption": row["caption"] + "!"} if row["split"] == "train" else row for row in _rows()])


def _drop(folder: Path) -> None:
    _write(folder, _rows()[:-1])


def _swap(folder: Path) -> None:
    rows = _rows()
    rows[6], rows[7] = rows[7], rows[6]
    _write(folder, rows)


def _replace_picture(folder: Path) -> None:
    Image.new("RGB", (200, 100), (9, 9, 9)).save(folder / "07.png")


def _rewrite_validation(folder: Path) -> None:
    _write(folder, [{**row, "caption": "other"} if row["split"] == "val" else row for row in _rows()])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_rewrite, "training data: captions differ; keys, labels, splits and pictures are the same"),
        (_drop, "training data: it has 15 samples instead of 16; keys, captions, labels, splits and pictures differ"),
        (_swap, "training data: keys, captions and pictures differ; labels and splits are the same"),
        (_replace_picture, "training data: pictures differ; keys, captions, labels and splits are the same"),
        (_rewrite_validation, "validation data: captions differ; keys, labels, splits and pictures are the same"),
    ],
)
def test_changed_data_is_refused_by_name_unless_it_is_accepted(
    stopped: tuple[TrainConfig, Path], change: Callable[[Path], None], said: str
) -> None:
    config, run = stopped
    change(run.parent / "set")
    with pytest.raises(RunError) as refused:
        train(config, run, resume=True)
    assert f"({said}); restore the data, or continue with the changed data: --accept-changed-data" in str(refused.value)
    observer = Listener()
    assert train(config, run, resume=True, accept_changed_data=True, observers=[observer]).steps == 4
    assert f"({said}); the run continues with the new data." in "\n".join(observer.messages)


def test_a_copy_of_the_data_elsewhere_is_the_same_data(stopped: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config, run = stopped
    shutil.copytree(run.parent / "set", tmp_path / "copy")  # With other times.
    shutil.rmtree(run.parent / "set")
    observer = Listener()
    moved = override(config, {"data.source": f"json:{tmp_path / 'copy' / 'set.json'}"})
    assert train(moved, run, resume=True, observers=[observer]).steps == 4
    assert not [text for text in observer.messages if "data" in text and "changed" in text]


def _without_fingerprint(run: Path) -> None:
    """As an earlier version wrote it."""
    for state in (run / "checkpoints").glob("*/state.json"):
        plain = json.loads(state.read_text("utf-8"))
        del plain["data"], plain["config"]["data"]["fingerprint"]
        state.write_text(json.dumps(plain), "utf-8")
        manifest = state.with_name("manifest.json")
        listed = json.loads(manifest.read_text("utf-8"))
        listed["files"]["state.json"] = {"bytes": state.stat().st_size, "sha256": sha256_of(state)}
        manifest.write_text(json.dumps(listed), "utf-8")


def test_a_checkpoint_without_a_fingerprint_goes_on_with_one_remark(stopped: tuple[TrainConfig, Path]) -> None:
    config, run = stopped
    _without_fingerprint(run)
    _rewrite(run.parent / "set")
    observer = Listener()
    assert train(config, run, resume=True, observers=[observer]).steps == 4
    assert len([text for text in observer.messages if "no fingerprint of its data" in text]) == 1


def test_contents_notice_another_picture_of_the_same_size(
    stopped: tuple[TrainConfig, Path], tiny_run: TrainConfig
) -> None:
    config, run = stopped
    config = override(config, {"data.fingerprint": "contents"})
    with pytest.raises(KeyboardInterrupt):
        train(config, run, overwrite=True, observers=[Listener(3, _die)])
    picture = run.parent / "set" / "07.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    before = train(config, run, resume=True, accept_changed_data=True)
    picture.write_bytes(picture.read_bytes()[:-1] + b"\1")
    assert before.steps == 4
    with pytest.raises(RunError, match="training data: pictures differ"):
        train(config, run, resume=True)


def test_the_command_takes_the_option_with_resume_alone(stopped: tuple[TrainConfig, Path]) -> None:
    from diptych.cli.train import train as command

    _, run = stopped
    _rewrite(run.parent / "set")
    with pytest.raises(ConfigError, match="--accept-changed-data needs --resume"):
        command("demo", accept_changed_data=True)
    with pytest.raises(RunError, match="captions differ"):
        command(resume=run)
    assert command(resume=run, accept_changed_data=True) == 0
    assert command(resume=run) == 0  # The last checkpoint is of the data as it is now.
