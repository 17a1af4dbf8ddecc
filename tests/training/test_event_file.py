"""A damaged event log costs its damaged lines, and a disk that is full costs the log, never the run."""

import errno
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard.writer import SummaryWriter

from diptych.core.errors import DiptychWarning
from diptych.core.settings import override
from diptych.evaluation.retrieval import PairScores, Recall, RetrievalReport
from diptych.training.config import TrainConfig
from diptych.training.report import curves
from diptych.training.report.event_file import forget_after, read_events
from diptych.training.report.events import EventLog, Observers
from diptych.training.run import train
from diptych.training.validation import Validation
from tests.training.listener import Listener, interrupt

STEP = {"step": 1, "loss": 2.5, "image_to_text": 0.5, "text_to_image": 0.25}
VALIDATION = {"step": 2, "val_loss": 2.0, "val_image_to_text": 0.5, "val_text_to_image": 0.25}
MESSAGE = {"message": "naïve"}
_RECALL = Recall(
    r1=0.5,
    r5=1.0,
    r10=1.0,
    median_rank=1.0,
    mean_rank=1.5,
    mean_average_precision=0.75,
    num_queries=4,
    num_candidates=4,
)
VALIDATED = Validation(
    loss=2.0,
    image_to_text=0.5,
    text_to_image=0.25,
    retrieval=RetrievalReport(
        image_to_text=_RECALL,
        text_to_image=_RECALL,
        pairs=PairScores(own=0.5, others=0.1, threshold=0.3, wrong=0.25),
        protocol={},
    ),
)
DAMAGED = [
    b'{"step": 3, "loss": \xff}',
    b"{",
    b"",
    b"[1]",
    b'"step"',
    b'{"step": "3"}',
    b'{"step": null, "message": "x"}',
    b'{"step": 3, "loss": 1.0}',
    b'{"step": 3, "loss": "x", "image_to_text": 0, "text_to_image": 0}',
    b'{"val_loss": 1, "val_image_to_text": 0, "val_text_to_image": 0}',
    b"[" * 100_000,
    b"1" * 10_000,
]


def _lines(*events: dict[str, Any]) -> list[bytes]:
    return [json.dumps(event).encode() for event in events]


@pytest.mark.parametrize("damaged", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_left_out(tmp_path: Path, damaged: bytes) -> None:
    log = tmp_path / "events.jsonl"
    first, *rest = _lines(STEP, MESSAGE, VALIDATION)
    log.write_bytes(b"\n".join([first, damaged, *rest, b'{"st']))
    events = read_events(log)
    assert [event for _, event in events.lines] == [STEP, MESSAGE, VALIDATION]
    assert events.num_damaged == 1
    assert forget_after(log, 1) == 1
    assert log.read_bytes() == b"".join(line + b"\n" for line in (first, rest[0]))
    assert forget_after(log, 1) == 0


def test_a_run_with_a_damaged_log_is_resumed_with_one_message(
    tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(curves, "draw_curves", lambda events, *_, **__: drawn.append(len(events)))
    run = tmp_path / "run"
    config = override(tiny_run, {"schedule.steps": "4", "validation.times": "1"})
    train(config, run, observers=[Listener(2, interrupt)])
    log = run / "events.jsonl"
    before = log.read_bytes()
    log.write_bytes(b'{"loss": \xff}\nnonsense\n' + before)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(config, run, resume=True)
    assert [str(w.message) for w in caught if w.category is DiptychWarning] == [
        f"{log}: 2 damaged lines are left out; the run continues"
    ]
    assert result.bundle is not None
    assert log.read_bytes().startswith(before)
    assert drawn


def test_lines_that_are_damaged_meanwhile_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(curves, "draw_curves", lambda events, *_, **__: drawn.append(events))
    log = EventLog(tmp_path, batch_size=4)
    log.on_message("before")
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    with pytest.warns(DiptychWarning, match=r"events.jsonl: 1 damaged line is left out; the run continues"):
        log.on_validation(2, VALIDATED)
    log.close()  # A second warning would be an error.
    assert [len(events) for events in drawn] == [2, 2]
    assert drawn[0][0] == {"message": "before"}


def _open_files(folder: Path) -> list[str]:
    """Names of the files under a folder that this process has open."""
    targets = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sorted(target.name for target in targets if folder in target.parents)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the open files in /proc")
@pytest.mark.parametrize("full", ["curves", "board"])
def test_a_full_disk_costs_the_log_and_closes_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    failed: list[Any] = []

    def fail(*given: object, **_: object) -> None:
        failed.extend(given)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    drawn: list[Any] = []
    listener = Listener()
    log = EventLog(tmp_path, batch_size=4)
    assert "events.jsonl" in _open_files(tmp_path)
    monkeypatch.setattr(curves, "draw_curves", fail if full == "curves" else lambda *_, **__: drawn.append(1))
    if full == "board":
        monkeypatch.setattr(SummaryWriter, "close", fail)
    Observers([log, listener]).notify(lambda observer: observer.close())
    assert listener.messages == ["EventLog cannot write any more (No space left on device); the run goes on without it"]
    monkeypatch.undo()
    if full == "board":
        assert "events.jsonl" not in _open_files(tmp_path)
        assert drawn == [1]
        failed[0].close()
    assert _open_files(tmp_path) == []
