"""Which pictures are the same, and which nearly are."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NEAR_BITS = 3
"""Fingerprints that differ in so many of 64 bits, or fewer, are of pictures that look alike."""


def fingerprint(image: Image.Image) -> int:
    """64 bits: whether each of 8x8 fields is darker than its right neighbour (the "difference hash").

    Small changes of size, quality or brightness change few of them.
    """
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR)).astype(np.int16)
    bits = (small[:, :-1] < small[:, 1:]).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def equal_groups(marks: Sequence[object]) -> list[list[int]]:
    """Positions that share a mark, where more than one does; None shares with nobody.

    >>> equal_groups(["a", "b", "a", None, None])
    [[0, 2]]
    """
    positions = defaultdict(list)
    for position, mark in enumerate(marks):
        if mark is not None:
            positions[mark].append(position)
    return [group for group in positions.values() if len(group) > 1]


def near_pairs(fingerprints: Sequence[int | None]) -> list[tuple[int, int]]:
    """Pairs of positions whose fingerprints differ in `NEAR_BITS` bits or fewer.

    Two that differ in at most three bits agree in at least one of their four quarters, so only those are compared.
    """
    known = np.array([i for i, value in enumerate(fingerprints) if value is not None], dtype=np.int64)
    values = np.array([value for value in fingerprints if value is not None], dtype=np.uint64)
    pairs: set[tuple[int, int]] = set()
    for quarter in range(NEAR_BITS + 1):
        part = (values >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        starts = np.flatnonzero(np.r_[True, part[order][1:] != part[order][:-1]])
        for group in np.split(order, starts[1:]):
            pairs.update(_near(group, values, known))
    return sorted(pairs)


def _near(group: NDArray[np.int64], values: NDArray[np.uint64], known: NDArray[np.int64]) -> list[tuple[int, int]]:
    found = []
    for place, first in enumerate(group[:-1]):
        rest = group[place + 1 :]
        differing = np.bitwise_count(values[rest] ^ values[first]) if len(rest) else np.empty(0)
        for second in rest[differing <= NEAR_BITS]:
            one, other = sorted((int(known[first]), int(known[second])))
            found.append((one, other))
    return found
