"""Checkpoints: exact, whole or passed over, and no full disk ends a run."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.core.errors import ConfigError, RunError
from diptych.core.settings import override, to_plain
from diptych.device.distributed import ALONE
from diptych.training.checkpoint.compatibility import check_same_run
from diptych.training.checkpoint.state import TrainingState
from diptych.training.checkpoint.store import load_checkpoint, save_checkpoint
from diptych.training.config import CheckpointConfig, TrainConfig
from tests.makers import flip_bit
from tests.states import Average, assert_same, make_state, step
from tests.training.makers import SETTINGS, load_newest, progress_at, save_at


def _names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_a_state_comes_back_bit_for_bit_and_goes_on_as_if_nothing_was(tmp_path: Path, num_steps: int) -> None:
    """Also before the first step, with frozen parameters and ones that never had a gradient."""
    one, twin, other = make_state(0), make_state(0), make_state(1)
    for i in range(num_steps):
        step(one, i)
        step(twin, i)
    progress = progress_at(num_steps, best_metric=-math.inf)
    save_checkpoint(tmp_path, one, progress, ALONE, config=SETTINGS)
    assert_same(one, twin)
    assert load_newest(tmp_path, other) == progress
    assert_same(one, other)
    for state in (one, twin, other):
        step(state, num_steps)
    assert_same(one, twin)
    assert_same(one, other)


def test_settings_of_groups_come_back(tmp_path: Path) -> None:
    one, other = make_state(0), make_state(1)
    one.optimizers[1].param_groups[0].update(lr=0.125, betas=(0.5, 0.75))
    save_at(tmp_path, one, 1)
    other.optimizers[1].param_groups[0]["lr_factor"] = 9.0
    load_newest(tmp_path, other)
    group = other.optimizers[1].param_groups[0]
    assert (group["lr"], group["betas"], group["lr_factor"]) == (0.125, (0.5, 0.75), 0.5)


def test_state_of_another_precision_than_its_parameter(tmp_path: Path) -> None:
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = nn.Linear(3, 2).bfloat16()
        optimizer = torch.optim.AdamW(model.parameters())
        for parameter in model.parameters():
            values = {"step": torch.tensor(float(seed)), "exp_avg": torch.randn(parameter.shape)}
            optimizer.state[parameter] = {**values, "exp_avg_sq": torch.rand(parameter.shape)}
        states.append(TrainingState(model=model, optimizers=(optimizer,)))
    save_at(tmp_path, states[0], 1)
    load_newest(tmp_path, states[1])
    assert_same(states[0], states[1])


def test_a_compiled_model_reads_a_bare_ones(tmp_path: Path) -> None:
    one, other = make_state(0), make_state(1)
    step(one, 0)
    save_at(tmp_path, one, 1)
    compiled = torch.compile(other.model, backend="eager")
    assert isinstance(compiled, nn.Module)
    load_newest(tmp_path, replace(other, model=compiled))
    assert_same(one, other)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = make_state(0)
    step(state, 0)
    save_at(tmp_path, state, 1)
    wider, longer, lone = make_state(0, width=5), make_state(0), make_state(0)
    longer.model.add_module("more", nn.Linear(2, 2))
    swapped = replace(lone, optimizers=lone.optimizers[::-1])
    for other, says in (
        (wider, r"model/first.weight has the shape \[6, 4\] in it, and \[6, 5\] in this run"),
        (longer, "model/more.bias is not in it"),
        (replace(lone, optimizers=lone.optimizers[:1]), "it contains the state of 2 optimizers, this run has 1"),
        (replace(lone, extras={}), "only one of checkpoint and run has the state of 'average'"),
        (replace(lone, extras={"average": Average(lone.model), "more": Average(lone.model)}), "the state of 'more'"),
        (swapped, "optimizer 0 has its parameters in other groups"),
    ):
        with pytest.raises(RunError, match=says) as caught:
            load_newest(tmp_path, other)
        assert "step-00000001: cannot be loaded" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    state = make_state(0)
    for at in range(1, 7):
        progress = progress_at(at, best_step=2 if at > 2 else None)
        save_checkpoint(tmp_path, state, progress, ALONE, config=SETTINGS, keep=2)
    assert _names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]
    save_checkpoint(tmp_path, state, progress_at(7, best_step=6), ALONE, config=SETTINGS, keep=1)
    assert _names(tmp_path) == ["step-00000006", "step-00000007"]


def test_what_is_saved_twice_is_there_once(tmp_path: Path) -> None:
    one, other = make_state(0), make_state(1)
    save_at(tmp_path, make_state(2), 3)
    save_at(tmp_path, one, 3, keep=1)
    assert _names(tmp_path) == ["step-00000003"]
    load_newest(tmp_path, other)
    assert_same(one, other)


def test_leftovers_go_at_the_next_save(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints" / ".step-00000008.new"
    half.mkdir(parents=True)
    (half / "rubbish").write_bytes(b"half")
    save_at(tmp_path, make_state(0), 1)
    assert _names(tmp_path) == ["step-00000001"]


def test_a_process_that_died_between_two_renames(tmp_path: Path) -> None:
    """One checkpoint was to take the place of another of its step."""
    one, other = make_state(0), make_state(1)
    place = save_at(tmp_path, one, 3)
    place.rename(place.with_name(".step-00000003.old"))
    assert load_newest(tmp_path, other).step == 3
    assert_same(one, other)
    assert _names(tmp_path) == ["step-00000003"]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda place: flip_bit(place / "__0_0.distcp"), "__0_0.distcp is not what was written, its checksum differs"),
        (lambda place: os.truncate(place / "__0_0.distcp", 100), "__0_0.distcp has 100 bytes where"),
        (lambda place: (place / "state.json").unlink(), "it is incomplete, state.json is missing"),
        (lambda place: (place / "metadata.json").write_bytes(b""), "metadata.json has 0 bytes"),
        (lambda place: (place / "manifest.json").unlink(), "it is incomplete, manifest.json is missing"),
        (lambda place: os.truncate(place / "manifest.json", 50), "manifest.json is damaged"),
        (lambda place: (place / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    ],
)
def test_a_damaged_one_is_passed_over(tmp_path: Path, harm: Callable[[Path], object], says: str) -> None:
    one, other, said = make_state(0), make_state(1), list[str]()
    save_at(tmp_path, one, 1)
    newest = save_at(tmp_path, make_state(2), 2)
    harm(newest)
    assert load_newest(tmp_path, other, said).step == 1
    assert_same(one, other)
    assert len(said) == 1
    assert said[0].startswith(f"{newest} is skipped: {says}")
    save_at(tmp_path, other, 2, keep=1)
    assert load_newest(tmp_path, other).step == 2


def test_a_damaged_one_does_not_take_the_place_of_a_whole_one(tmp_path: Path) -> None:
    state = make_state(0)
    for at in (1, 5):
        save_at(tmp_path, state, at)
    (tmp_path / "checkpoints" / "step-00000005" / "state.json").unlink()
    load_newest(tmp_path, state)
    save_at(tmp_path, state, 3, keep=1)
    assert _names(tmp_path) == ["step-00000003"]


def test_none_left(tmp_path: Path) -> None:
    said = list[str]()
    with pytest.raises(RunError, match=r"has no checkpoint to resume from; start it again with --overwrite"):
        load_newest(tmp_path, make_state(0), said)
    for at in (1, 2):
        (save_at(tmp_path, make_state(0), at) / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"all its checkpoints are damaged; start it again with --overwrite"):
        load_newest(tmp_path, make_state(0), said)
    assert [line.split(" is skipped")[0][-1] for line in said] == ["2", "1"]


@pytest.mark.parametrize("after", range(6))
def test_a_disk_that_fills_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Whichever file it was that no longer went in."""
    one, other = make_state(0), make_state(1)
    before = save_at(tmp_path, one, 1)
    calls, flush = iter(range(1000)), os.fsync

    def full(descriptor: int) -> None:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            RunError, match=r"step-00000002: could not be saved \(No space left on device\); the one be"
        ):
            save_at(tmp_path, make_state(2), 2, keep=1)
    assert _names(tmp_path) == [before.name]
    load_newest(tmp_path, other)
    assert_same(one, other)
    save_at(tmp_path, one, 2, keep=1)
    assert _names(tmp_path) == ["step-00000002"]


_LIMITED = """
import resource, signal, sys
from pathlib import Path
from diptych.core.errors import RunError
from tests.states import make_state
from tests.training.makers import save_at
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run, state = Path(sys.argv[1]), make_state(0, width=64)
save_at(run, state, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    save_at(run, state, 2)
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [100, 3000, 20000])
def test_a_file_that_cannot_grow(tmp_path: Path, limit: int) -> None:
    """As the system says it, in the midst of PyTorch's own writer."""
    command = [sys.executable, "-W", "error", "-c", _LIMITED, str(tmp_path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == (
        f"{tmp_path}/checkpoints/step-00000002: could not be saved (File too large); the one before is kept\n"
    )
    assert _names(tmp_path) == ["step-00000001"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(RunError, match=r"could not be saved \(Not a directory\); there is none before it"):
        save_at(tmp_path, make_state(0), 2)


def test_the_second_interrupt_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_at(tmp_path, make_state(0), 1)


def test_its_json_is_strict_and_whole(tmp_path: Path, tiny_run: TrainConfig) -> None:
    state, progress = make_state(0), progress_at(1, best_metric=-math.inf, best_step=None)
    place = save_checkpoint(tmp_path, state, progress, ALONE, config=tiny_run)

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    plain = json.loads((place / "state.json").read_text("utf-8"), parse_constant=refuse)
    assert plain["config"] == to_plain(tiny_run)
    manifest = json.loads((place / "manifest.json").read_text("utf-8"), parse_constant=refuse)
    assert manifest["step"] == 1
    assert {*manifest["files"], "manifest.json"} == {path.name for path in place.iterdir()}
    assert load_checkpoint(tmp_path, state, ALONE, config=tiny_run, on_message=print) == progress


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": "1"}, "seed 0, and this run has 1;"),
        ({"model.image.width": "32"}, "model.image.width 16, and this run has 32;"),
        ({"optimizer.lr": "1", "batch_size": "8"}, r"optimizer.lr 0.002, and this run has 1.0 \(1 more differ\);"),
        ({"device": "cuda", "data.workers": "3", "data.source": "shapes:9"}, None),
        ({"data.max_skipped": "0.5", "gradient_checkpointing": "true"}, None),
    ],
)
def test_the_same_run(tiny_run: TrainConfig, changes: dict[str, str], says: str | None) -> None:
    other = override(tiny_run, changes)
    if says is None:
        check_same_run(to_plain(tiny_run), other)
        return
    with pytest.raises(RunError, match=says):
        check_same_run(to_plain(tiny_run), other)


def test_settings_that_only_one_run_knows() -> None:
    check_same_run({"a": 1, "checkpoint": {"keep": 2}}, {"a": 1, "logs": {"b": 3}})
    with pytest.raises(RunError, match=r"with b.c \(no such setting\), and this run has 3;"):
        check_same_run({"a": 1}, {"a": 1, "b": {"c": 3}})
    with pytest.raises(RunError, match=r"with b 1, and this run has \(no such setting\);"):
        check_same_run({"b": 1}, {})


def test_another_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    other, twin = make_state(1), make_state(1)
    save_at(tmp_path, make_state(0), 1)
    with pytest.raises(
        RunError, match=r"written with seed 0, and this run has 5; go on with the folder's own config\.yaml"
    ):
        load_checkpoint(tmp_path, other, ALONE, config={**SETTINGS, "seed": 5}, on_message=print)
    assert_same(other, twin)


def test_how_often() -> None:
    config = CheckpointConfig(steps=10, minutes=None, epochs=0.5)
    assert not config.is_due(steps=9, minutes=1e9, epochs=0.4)
    assert config.is_due(steps=10, minutes=0.0, epochs=0.0)
    assert config.is_due(steps=0, minutes=0.0, epochs=0.5)
    assert CheckpointConfig().is_due(steps=0, minutes=5.0, epochs=0.0)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"minutes": -1.0}, {"minutes": math.nan}, {"epochs": 0.0}, {"keep": 0}, {"minutes": None}]
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\."):
        CheckpointConfig(**wrong)
