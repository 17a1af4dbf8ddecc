"""Utilization and peak memory: their values, and where they are shown."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from diptych.cli.train_display import Display
from diptych.models.flops import step_flops
from diptych.training.optim.freeze import LockConfig
from diptych.training.report.events import EventLog, StepReport
from diptych.training.report.utilization import Utilization
from diptych.training.run import train
from diptych.training.step_result import StepResult
from tests.conftest import TINY_MODEL, TINY_RUN
from tests.training.listener import Listener
from tests.training.makers import batch_of

CPU = torch.device("cpu")
RESULT = StepResult(torch.tensor([2.0, 0.1, 0.1, 14.3, 1.0]))
REPORT = StepReport(
    step=1,
    epoch=0.1,
    progress=0.5,
    elapsed_s=1.0,
    seconds_left=1.0,
    lr=1e-3,
    pairs_per_s=1000.0,
    data_wait=0.0,
    utilization=0.384,
    peak_memory_bytes=41 * 2**30,
    result=RESULT,
)


def test_it_is_operations_per_second_over_the_peak_rate_of_all_ranks() -> None:
    first, second = batch_of(TINY_MODEL), batch_of(TINY_MODEL, distinct=4)
    config = replace(TINY_RUN, lock=LockConfig(image="all"))
    measured = Utilization(config, CPU, num_ranks=2, peak=1e9)
    assert measured.share(100.0) is None
    operations = 0
    for batch in (first, second):
        measured.record(batch)
        operations += step_flops(
            TINY_MODEL, num_images=12, text_lengths=batch.lengths, num_candidates=24, frozen_image="all"
        )
    assert measured.share(100.0) == pytest.approx(operations / 24 * 100 / 2e9)
    assert measured.share(1e12) == 1.0


def test_the_rate_is_that_of_the_cards_name_and_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    batch, cuda = batch_of(TINY_MODEL), torch.device("cuda")
    shares = []
    for name in ("NVIDIA H100 80GB HBM3", "NVIDIA X1"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        measured = Utilization(replace(TINY_RUN, precision="bf16"), cuda)
        measured.record(batch)
        shares.append(measured.share(1e6))
        assert measured.peak_memory_bytes() == 123
    operations = step_flops(TINY_MODEL, num_images=12, text_lengths=batch.lengths) / 12 * 1e6
    assert shares == [pytest.approx(operations / 989.4e12), None]


def test_a_run_on_a_cpu_reports_neither(tmp_path: Path) -> None:
    listener = Listener()
    train(TINY_RUN, tmp_path / "run", observers=[listener])
    assert {(report.utilization, report.peak_memory_bytes) for report in listener.steps} == {(None, None)}
    assert "utilization" not in (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")


def test_log_and_display_show_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path, batch_size=16)
    scalars: dict[str, float] = {}
    monkeypatch.setattr(log._board, "add_scalar", lambda tag, value, step: scalars.update({tag: value}))
    log.on_step(REPORT)
    log.close()
    event = json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8"))
    assert (event["utilization"], event["peak_memory_bytes"]) == (0.384, 41 * 2**30)
    assert (scalars["train/utilization"], scalars["train/peak_memory_bytes"]) == (0.384, 41 * 2**30)
    for is_terminal, shown in ((True, "38% of peak rate, 41.0 GiB"), (False, "pairs/s  38% of peak rate")):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=200, color_system=None)
        display = Display("tiny", batch_size=16, metric="recall", console=console)
        display.on_step(REPORT)
        display.close()
        assert isinstance(console.file, io.StringIO)
        assert shown in console.file.getvalue()
