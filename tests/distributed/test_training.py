"""Training by ranks that a launcher started: the same as in one process, whole or cut, gone on with, and cut short."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file

from diptych.core.errors import ConfigError
from diptych.core.settings import override
from diptych.device.distributed import Ranks
from diptych.training.config import TrainConfig, write_config
from diptych.training.run import train
from diptych.training.setup import check_joint_batch
from tests.conftest import TINY_RUN
from tests.distributed.together import FAILURES

ROOT = Path(__file__).parents[2]
# Parts of four: two ranks of two parts each draw what one process of four parts does. A large epsilon keeps AdamW from making
# whole steps of differences in rounding.
COMMON = {
    "model.image.layers": "2",
    "optimizer.eps": "1e-2",
    "optimizer.lr": "2e-2",
    "schedule.steps": "6",
    "validation.times": "1",
}
KINDS = {
    "ddp": {
        "ema": "0.8",
        "micro_batch": "4",
        "model.image.patch_dropout": "0.25",
        "model.image.dropout": "0.1",  # Not the texts': each is computed once, and ranks have other texts twice.
        "checkpoint.steps": "3",
    },
    "fsdp": {"parallel": "fsdp", "ema": "0.8", "micro_batch": "4", "model.image.patch_dropout": "0.25"},
    "fsdp, sigmoid, lion": {
        "parallel": "fsdp",
        "loss.name": "sigmoid",
        "model.init_logit_bias": "-5",
        "optimizer.name": "lion",
        "optimizer.eps": "1e-6",
        "optimizer.lr": "1e-4",
        "gradient_checkpointing": "true",
    },
    "ddp, muon, as on a GPU": {"optimizer.name": "muon", "optimizer.lr": "5e-3", "ema": "0.8"},
    "fsdp, as on a GPU": {"parallel": "fsdp", "ema": "0.8", "micro_batch": "4"},
    "ddp, class, locked": {"data.positives": "class", "lock.image": "1", "data.caption": "all"},
}


class Outcome(NamedTuple):
    """How a job ended."""

    code: int
    said: str


def _config(kind: str) -> TrainConfig:
    return override(TINY_RUN, COMMON | KINDS[kind])


def _command(*words: object) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, "-m", "tests.distributed.together", *map(str, words)]


def _start(words: Sequence[object]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(_command(*words), cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def _run(*words: object) -> Outcome:
    process = _start(words)
    said, _ = process.communicate(timeout=120)
    return Outcome(process.returncode, said)


def _losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event[name] for event in events for name in ("loss", "val_loss") if name in event]


def _assert_same(ours: Path, exact: Path) -> None:
    assert _losses(ours) == pytest.approx(_losses(exact), abs=2e-5)
    weights = load_file(ours / "bundle" / "model.safetensors")
    for name, tensor in load_file(exact / "bundle" / "model.safetensors").items():
        if name.endswith("key.bias"):
            continue  # No softmax sees it, so its gradient is rounding alone, of which Lion makes whole steps.
        difference = float((weights[name] - tensor).abs().max())
        assert difference <= 2e-5, f"{name}: {difference}"


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Every kind, trained by two ranks and by one; what the two said."""
    folder = tmp_path_factory.mktemp("joint")
    for kind in KINDS:
        train(_config(kind), folder / "alone" / kind)
        write_config(_config(kind), folder / f"{kind}.yaml")
    outcome = _run("each", folder, *KINDS)
    assert outcome.code == 0, outcome.said
    return folder, outcome.said


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_what_one_process_does(joint: tuple[Path, str], kind: str) -> None:
    _assert_same(joint[0] / kind, joint[0] / "alone" / kind)


def test_the_first_rank_speaks_for_both(joint: tuple[Path, str]) -> None:
    assert joint[1].count("2 ranks (cpu, fsdp, 8 pairs each)") == 3
    assert joint[1].count("Bundle:") == len(KINDS)


def test_one_process_goes_on_with_what_two_began(joint: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(joint[0] / "ddp", run)
    for done in ("checkpoints/step-00000006", "bundle"):
        shutil.rmtree(run / done)
    assert train(_config("ddp"), run, resume=True).steps == 6
    _assert_same(run, joint[0] / "alone" / "ddp")


@pytest.mark.parametrize("failure", FAILURES)
def test_a_rank_that_fails_ends_the_job_and_is_named_first(tmp_path: Path, failure: str) -> None:
    write_config(_config("ddp"), tmp_path / "config.yaml")
    outcome = _run(failure, "train", "--config", tmp_path / "config.yaml", "--out", tmp_path / "run")
    assert outcome.code != 0
    cause = {
        "error": "diptych: rank 1: the cable was pulled",
        "bug": "ZeroDivisionError: a bug",
        "killed": "(exitcode: -9) local_rank: 1",
    }
    before, found, _ = outcome.said.partition(cause[failure])
    assert found, outcome.said
    for misleading in ("rank 0", "rank      : 0", "Connection"):
        assert misleading not in before, outcome.said


def test_a_signal_ends_all_ranks_after_the_same_step(tmp_path: Path) -> None:
    write_config(override(_config("ddp"), {"schedule.steps": "100000"}), tmp_path / "config.yaml")
    process = _start(["fine", "train", "--config", tmp_path / "config.yaml", "--out", tmp_path / "run"])
    assert process.stdout is not None
    said = ""
    while "step      1 " not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=60)[0]
    assert "saved. Continue with: diptych train --resume" in said


def test_a_batch_that_ranks_cannot_share() -> None:
    with pytest.raises(ConfigError, match="batch_size 16 does not divide among 3 ranks; 15 or 18 would"):
        check_joint_batch(TINY_RUN, Ranks(0, 3))
    with pytest.raises(ConfigError, match="micro_batch is 8; it must divide the 4 pairs of each of 4 ranks"):
        check_joint_batch(override(TINY_RUN, {"micro_batch": "8"}), Ranks(0, 4))
