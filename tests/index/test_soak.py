"""Searches in an open reader, while other processes add, remove, compact and rebuild, and are killed."""

import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.core.errors import DiptychWarning
from diptych.index.create_local import create_local_index
from diptych.index.entry import SearchHit
from diptych.index.exact import scores_of
from diptych.index.filters import parse_filter
from diptych.index.local import LocalIndex
from tests.index.pictures import DIM, unit
from tests.index.soak_worker import BATCH, NUM_BATCHES, add_batches, batches_of, vector_of

WRITERS, KILLS, STATES = 2, 4, 60
_NUMBERS = range(3 * NUM_BATCHES * BATCH)


def _states(log: Path) -> Iterator[frozenset[int]]:
    """The batches of each state that was or is about to be committed, the latest first."""
    for line in reversed(log.read_text(encoding="utf-8").splitlines()):
        yield frozenset(map(int, line.split()))


class _Check:
    """Compares answers with the states of the log."""

    def __init__(self, log: Path) -> None:
        self.log, self.num, self.wrong = log, 0, list[str]()
        self.vectors = np.stack([vector_of(number) for number in _NUMBERS])

    def __call__(
        self, query: NDArray[np.float32], hits: list[SearchHit], *, top: int, at_least: int, is_exact: bool
    ) -> None:
        """Whether hits are those of a state, of the pictures from a number on."""
        numbers = [hit.entry.stamp.size for hit in hits]
        every = np.arange(len(_NUMBERS))
        score = scores_of(self.vectors, query[None], np.zeros_like(every), every)
        told, expected = [hit.score for hit in hits], [float(score[number]) for number in numbers]
        self.num += 1
        # What a structure missed comes behind the first 100.
        parts = [told] if is_exact else [told[:100], told[100:]]
        is_sorted = all(part == sorted(part, reverse=True) for part in parts)
        if told != expected or not is_sorted or len({*numbers}) != len(numbers):
            self.wrong.append(f"scores {told} of {numbers}, not {expected}")
            return
        for state in _states(self.log):
            held = [number for batch in state for number in range(BATCH * batch, BATCH * (batch + 1))]
            searched = [number for number in held if number >= at_least]
            if _fit(score, numbers, searched, top=top, is_exact=is_exact):
                break
        else:
            self.wrong.append(f"{len(numbers)} of top {top} from {at_least} on fit no state: {numbers}")


def _fit(score: NDArray[np.float32], numbers: list[int], searched: list[int], *, top: int, is_exact: bool) -> bool:
    """Whether hits can be the answer to a search among some pictures."""
    if len(numbers) != min(top, len(searched)) or not {*numbers} <= {*searched}:
        return False
    best = -np.sort(-score[np.array(searched, dtype=np.int64)])[: len(numbers)]
    found = score[np.array(numbers, dtype=np.int64)]
    if is_exact or not numbers:
        return bool((found == best).all())
    return bool(np.mean(found >= best[-1]) > 0.5)  # Nearly the nearest.


def _start(folder: Path, log: Path, seed: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.index.soak_worker", str(folder), str(log), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_every_answer_is_that_of_a_committed_state(tmp_path: Path) -> None:
    folder, log, draw = tmp_path / "index", tmp_path / "log", random.Random(0)
    with create_local_index(folder, dim=DIM, model="m", bundle="b") as made, made.writing():
        log.write_text(" ".join(map(str, range(NUM_BATCHES))) + "\n", encoding="utf-8")
        add_batches(made, list(range(NUM_BATCHES)), [])
        made.build("signs")
    writers = [_start(folder, log, seed) for seed in range(WRITERS)]
    check, num_kills, num_seen = _Check(log), 0, 1
    try:
        with LocalIndex(folder) as reader, warnings.catch_warnings():
            warnings.simplefilter("error", DiptychWarning)  # Nothing is damaged at any time.
            while num_kills < KILLS or len({*_states(log)}) < STATES:
                assert [writer.poll() for writer in writers] == [None] * WRITERS
                queries = unit(4, seed=draw.randrange(10**6))
                top = draw.choice([1, 20, 60, 150, 999])
                for query, hits in zip(queries, reader.search(queries, top=top), strict=True):
                    check(query, hits, top=top, at_least=0, is_exact=False)
                least = draw.randrange(len(_NUMBERS))
                selected = parse_filter(f"width >= {least}")
                (some,) = reader.search(queries[:1], top=top, selected=selected)
                check(queries[0], some, top=top, at_least=least, is_exact=True)
                if len([*_states(log)]) > num_seen + 12 and draw.random() < 0.2:
                    number = draw.randrange(WRITERS)
                    writers[number].kill()
                    writers[number].wait()
                    num_kills, num_seen = num_kills + 1, len([*_states(log)])
                    assert reader.verify() == []
                    writers[number] = _start(folder, log, 100 + num_kills)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert [writer.returncode for writer in writers] == [-signal.SIGKILL] * WRITERS  # None ended by an error.
    assert (len(check.wrong), check.wrong[:3]) == (0, [])
    assert check.num > 100
    with LocalIndex(folder) as index:
        state = batches_of(index)
        assert frozenset(state) in {*_states(log)}
        assert index.verify() == []
        with index.writing():  # Replaces what a writer that was killed had appended.
            add_batches(index, [next(batch for batch in range(3 * NUM_BATCHES) if batch not in state)], [])
        assert (index.verify(), index.remarks()) == ([], [])
