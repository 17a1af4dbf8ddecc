"""A run and its checkpoints: one that is damaged, a disk that is full, settings that have changed."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diptych.core.errors import RunError
from diptych.core.settings import override
from diptych.training.config import TrainConfig
from diptych.training.run import train
from tests.makers import flip_bit
from tests.states import assert_same_values
from tests.training.listener import Listener, interrupt


@pytest.mark.usefixtures("no_curves")
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    finished_run: Path, tiny_run: TrainConfig, tmp_path: Path
) -> None:
    """To the same weights."""
    run, listener = tmp_path / "run", Listener()
    for at in (3, 6):
        train(tiny_run, run, resume=at == 6, observers=[Listener(at, interrupt)])
    flip_bit(run / "checkpoints" / "step-00000006" / "__0_0.distcp")
    train(tiny_run, run, resume=True, observers=[listener])
    assert [text for text in listener.messages if "step-00000006 is skipped: __0_0.distcp is not" in text]
    ours, theirs = (load_file(path / "bundle" / "model.safetensors") for path in (run, finished_run))
    assert_same_values(ours, theirs)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint to resume from"):
        train(tiny_run, run, resume=True)
    shutil.rmtree(run / "bundle")
    (run / "tokenizer.json").unlink()
    train(tiny_run, run, resume=True, observers=[listener])  # As if killed before the first one.
    assert [text for text in listener.messages if "before its first checkpoint" in text]
    again = load_file(run / "bundle" / "model.safetensors")
    assert_same_values(again, theirs)


@pytest.mark.usefixtures("no_curves")
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("diptych.training.checkpoint.tensors.write_tensors", full)
    listener = Listener()
    assert train(tiny_run, tmp_path / "run", observers=[listener]).bundle is not None
    assert [text for text in listener.messages if "could not be saved (No space left on device); there is none" in text]


@pytest.mark.usefixtures("no_curves")
def test_a_run_with_other_settings_does_not_go_on(tiny_run: TrainConfig, tmp_path: Path) -> None:
    train(tiny_run, tmp_path / "run", observers=[Listener(2, interrupt)])
    with pytest.raises(RunError, match=r"run: its checkpoint was written with seed 0, and this run has 1;"):
        train(override(tiny_run, {"seed": "1"}), tmp_path / "run", resume=True)
