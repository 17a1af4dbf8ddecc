"""Changes an index again and again, as one of several processes; `test_soak.py` starts and kills them.

Pictures come and go in batches of four, so that every committed state holds whole batches. What a state will hold is written
to a log before it is committed. The vector of picture N is `vector_of(N)`, and some are alike.
"""

import random
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.core.errors import BusyError
from diptych.index import build_signs
from diptych.index.local import LocalIndex
from tests.index.pictures import DIM, entry

BATCH, NUM_BATCHES = 4, 60


def vector_of(number: int) -> NDArray[np.float32]:
    """Of unit length; of eight numbers that follow each other, two have the same."""
    vector = np.random.default_rng(number - number % 8 if number % 8 == 5 else number).standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def add_batches(index: LocalIndex, batches: list[int], gone: list[int]) -> None:
    """Add some batches and drop others, in one change."""
    numbers = [BATCH * batch + place for batch in batches for place in range(BATCH)]
    keys = [f"/photos/{BATCH * batch + place}.jpg" for batch in gone for place in range(BATCH)]
    new = {f"d{number}": vector_of(number) for number in numbers if not index.has_vector(f"d{number}")}
    index.add([entry(number, width=number) for number in numbers], new, gone=keys)


def batches_of(index: LocalIndex) -> list[int]:
    """The batches that an index holds."""
    return sorted({entry.stamp.size // BATCH for entry in index.entries()})


def _change(index: LocalIndex, log: Path, draw: random.Random) -> None:
    """Replace, remove and add some batches; the state that the index has after each change is logged before."""

    def announce(state: set[int]) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(" ".join(map(str, sorted(state))) + "\n")

    state = set(batches_of(index))
    gone = draw.sample(sorted(state), 6)
    new = draw.sample(sorted(set(range(3 * NUM_BATCHES)) - state), 6)
    announce(state - {*gone[:3]} | {*new[:3]})
    add_batches(index, new[:3], gone[:3])
    state = state - {*gone[:3]} | {*new[:3]}
    announce(state - {*gone[3:]})
    index.remove([f"/photos/{BATCH * batch + place}.jpg" for batch in gone[3:] for place in range(BATCH)])
    if draw.random() < 0.7:
        index.compact()
    state -= {*gone[3:]}
    announce(state | {*new[3:]})
    add_batches(index, new[3:], [])


def main(folder: str, log: str, seed: str) -> None:
    """Change the index until the process is killed."""
    draw = random.Random(int(seed))
    build_signs.MIN_SPEEDUP = 0  # So few are faster without.
    with LocalIndex(Path(folder)) as index:
        while True:
            try:
                with index.writing(wait_s=60):
                    for _ in range(3):
                        _change(index, Path(log), draw)
                    if draw.random() < 0.7:
                        index.build(draw.choice(["signs", "signs", "signs", None]))
            except BusyError:
                continue


if __name__ == "__main__":
    main(*sys.argv[1:])
