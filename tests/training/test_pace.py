"""Speed, waiting, and what would help."""

import re
import time

import pytest
import torch

from diptych.data.batches.batch import Batch
from diptych.training.report.throughput import Setting, Throughput, advice

BATCH = Batch(
    pixels=torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    ids=torch.zeros(2, 3, dtype=torch.int64),
    lengths=torch.ones(2, dtype=torch.int64),
    text_of_row=torch.arange(2),
    positive_groups=torch.arange(2),
    positive_keys=torch.arange(2)[:, None],
    keys=("a", "b"),
    captions=("a", "b"),
    read_s=0.02,
    source_pixels=2 * 640,
)


def _pace(monkeypatch: pytest.MonkeyPatch) -> tuple[Throughput, list[float]]:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return Throughput(batch_size=2, image_pixels=64, num_workers=1, is_decoded=False), clock


def test_speed_is_of_the_last_seconds_and_forgets_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    throughput, clock = _pace(monkeypatch)
    for _ in range(8):
        clock[0] += 1.0
        throughput.record_step(BATCH, waited_s=0.25, took_s=1.0)
    assert throughput.pairs_per_s == 2.0
    assert throughput.data_wait == 0.25
    throughput.pause()
    clock[0] += 1000.0
    assert throughput.pairs_per_s == 0.0
    for _ in range(3):
        clock[0] += 0.5
        throughput.record_step(BATCH, waited_s=0.0, took_s=0.5)
        assert throughput.pairs_per_s == 4.0  # The first step after a pause tells it already.


def test_advice_comes_once_and_only_for_much_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for waited, times in ((0.05, 0), (0.2, 1)):
        throughput, clock = _pace(monkeypatch)
        said = []
        for _ in range(60):
            clock[0] += 1.0
            throughput.record_step(BATCH, waited_s=waited, took_s=1.0)
            said.append(throughput.advice())
        assert [text is not None for text in said] == [i == 19 and times == 1 for i in range(60)]
    assert said[19] is not None
    assert "20% of the time is spent waiting for data: reading an image takes 10.0 ms" in said[19]


@pytest.mark.parametrize(
    ("workers", "cores", "is_decoded", "shrinks", "helps"),
    [
        (1, 8, False, 8.0, [r"more workers \(--data\.workers 4; this machine has 8 cores\)", "diptych data pack"]),
        (1, 2, False, 8.0, [r"--data\.workers 2;", "diptych data pack"]),
        (2, 2, False, 8.0, ["diptych data pack"]),
        (2, 2, True, 8.0, ["smaller images .they have 8 times as many pixels"]),
        (2, 2, True, 1.2, ["a faster disk"]),
        (8, 8, False, 1.0, ["a faster disk"]),
    ],
)
def test_what_would_help(*, workers: int, cores: int, is_decoded: bool, shrinks: float, helps: list[str]) -> None:
    setting = Setting(workers, cores, is_decoded)
    said = advice(data_wait=0.5, needed_per_s=1000.0, read_s=0.004, shrinks=shrinks, setting=setting)
    offered = said.split("What would help: ")[1].split("; or ")
    assert len(offered) == len(helps)
    for text, pattern in zip(offered, helps, strict=True):
        assert re.search(pattern, text)
