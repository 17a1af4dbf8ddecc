import gc
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.core.forks import before_computing, let_go, pages_of, unmoved_objects

_MANY = 4 << 20
"""Numbers; 16 MiB."""


def _private_mib() -> float:
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_Dirty")) / 1024


def test_a_fork_holds_nothing_of_what_it_lets_go_and_its_parent_keeps_it() -> None:
    numbers, others = torch.ones(_MANY), torch.ones(_MANY)
    spans = pages_of([numbers, numbers[1:1], torch.ones(4), numbers.view(2, -1).t()])
    assert len(spans) == 1
    assert _MANY * 4 - 2 * os.sysconf("SC_PAGE_SIZE") <= spans[0].length <= _MANY * 4
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    written = context.Event()

    def child() -> None:
        before = float(numbers.sum()), float(others.sum())
        let_go(spans)
        written.wait(20)
        answer.put((before, float(numbers.sum()), float(others.sum()), _private_mib()))

    process = context.Process(target=child)
    process.start()
    while not _has_let_go(process.pid, spans[0].address):
        assert process.is_alive()
    for tensor in (numbers, others):
        tensor.add_(1)  # Each page that both hold is now the child's alone.
    written.set()
    before, dropped, kept, private = answer.get()
    process.join()
    assert before == (_MANY, _MANY)
    assert dropped < 4096
    assert kept == _MANY
    assert 16 <= private < 32 + 8
    assert float(numbers.sum()) == 2 * _MANY


def _has_let_go(process: int | None, address: int) -> bool:
    """Whether the process holds no page there."""
    with Path(f"/proc/{process}/pagemap").open("rb") as file:
        file.seek(address // os.sysconf("SC_PAGE_SIZE") * 8)
        return not int.from_bytes(file.read(8), "little") >> 63


def test_where_processes_are_not_forked_there_is_nothing_to_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda: "spawn")
    assert pages_of([torch.ones(_MANY)]) == ()


def test_objects_are_left_alone_for_a_while() -> None:
    gc.unfreeze()
    with unmoved_objects():
        frozen = gc.get_freeze_count()
        assert frozen > 1000
        with unmoved_objects():
            assert gc.get_freeze_count() == frozen
        assert gc.get_freeze_count() == frozen
    assert gc.get_freeze_count() == 0


def test_the_gpu_of_the_parent_is_refused_in_one_line_that_names_spawn() -> None:
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()

    def compute() -> None:
        before_computing(torch.device("cpu"))
        before_computing(torch.device("cuda"))
        process = context.Process(target=child)
        process.start()
        process.join(60)

    def child() -> None:
        before_computing(torch.device("cpu"))
        before_computing(torch.device("mps"))  # Which the parent has not used.
        try:
            before_computing(torch.device("cuda"))
        except DiptychError as error:
            answer.put(str(error))

    process = context.Process(target=compute)
    process.start()
    process.join(60)
    assert not answer.empty()
    message = answer.get()
    assert "cuda" in message
    assert "'spawn'" in message
    assert "\n" not in message
