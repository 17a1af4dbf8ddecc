import mmap

import pytest

from diptych.cpu import memory
from diptych.cpu.memory import Growth, held_bytes


def test_what_grows_by_a_tenth_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = 1000
    given_back: list[int] = []
    monkeypatch.setattr(memory, "_has_glibc", lambda: True)
    monkeypatch.setattr(memory, "held_bytes", lambda: held)
    monkeypatch.setattr(memory, "return_freed_memory", lambda: given_back.append(held))
    growth = Growth()
    early = (1000, 1200, 1201, 1202, 1203, 1204, 1205)  # Every eighth round at most.
    for held in (*early, 1206, 1000, *(1090,) * 10, 1101, 900, *(991,) * 7):  # noqa: B007
        growth.look()
    assert given_back == [1206, 1101, 991]


def test_held_bytes_grow_when_pages_are_written() -> None:
    with mmap.mmap(-1, 64 << 20) as pages:  # New pages; a buffer could reuse freed memory of the heap.
        before = held_bytes()
        pages.write(b"x" * (1 << 20))
        small = held_bytes() - before
        for _ in range(63):
            pages.write(b"x" * (1 << 20))
        assert (60 << 20) < held_bytes() - before - small < (70 << 20)
