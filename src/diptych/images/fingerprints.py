"""Find identical and similar images with perceptual hashes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Int64, UInt64
from numpy import ndarray
from PIL import Image

from diptych.core.components import Components, bucket_blocks

NEAR_BITS = 3
"""Images whose fingerprints differ in at most this many of 64 bits are similar."""
_NUM_PIECES = NEAR_BITS + 2
_BITS = 64


def fingerprint(image: Image.Image) -> int:
    """Return the 64-bit difference hash of an image: one bit per cell of an 8x8 grid, set if its right neighbor is brighter.

    Small changes of size, quality or brightness change few bits.
    """
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR)).astype(np.int16)
    bits = (small[:, :-1] < small[:, 1:]).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def equal_groups(values: Sequence[object]) -> list[list[int]]:
    """Return groups of two or more positions with equal values; None is not equal to any value.

    >>> equal_groups(["a", "b", "a", None, None])
    [[0, 2]]
    """
    positions = defaultdict(list)
    for position, value in enumerate(values):
        if value is not None:
            positions[value].append(position)
    return [group for group in positions.values() if len(group) > 1]


def near_groups(fingerprints: Sequence[int | None]) -> list[list[int]]:
    """Return groups of positions whose fingerprints differ in at most `NEAR_BITS` bits, directly or through others.

    >>> near_groups([0b0, 0b111111, 0b111, None, 0b0, 2**63 - 1])
    [[0, 1, 2, 4]]
    """
    known = np.array([i for i, value in enumerate(fingerprints) if value is not None], dtype=np.int64)
    values = np.array([value for value in fingerprints if value is not None], dtype=np.uint64)
    distinct, members, inverse = np.unique(values, return_index=True, return_inverse=True)
    components = Components(len(values))
    components.join(np.arange(len(values)), members[inverse])
    for one, other in near_pairs(distinct):
        components.join(members[one], members[other])
    return [known[group].tolist() for group in components.groups()]


def near_pairs(distinct: UInt64[ndarray, " U"]) -> Iterator[tuple[Int64[ndarray, " P"], Int64[ndarray, " P"]]]:
    """Yield all pairs of positions whose values differ in at most `NEAR_BITS` bits, each once, in parts of bounded size.

    The bits are divided into five pieces. Three differing bits leave at least two pieces equal, so only values with two equal
    pieces are compared. To yield each pair once, it is accepted only for its first two equal pieces. Bits that are nearly
    constant over all values, such as those of white borders, are distributed over the pieces.

    Args:
        distinct: 64-bit values, each different from the others.
    """
    pieces = _pieces(distinct)
    positions = np.arange(len(distinct))
    for first, second in combinations(range(_NUM_PIECES), 2):
        first_two_equal = np.array([piece in (first, second) for piece in range(second + 1)])
        order, blocks = bucket_blocks(distinct & (pieces[first] | pieces[second]), positions)
        values = distinct[order]
        for rows, columns in blocks:
            near = np.bitwise_count(values[rows, None] ^ values[columns]) <= NEAR_BITS
            inner, across = np.divmod(np.flatnonzero(near), near.shape[1])
            pairs = np.stack([order[rows][inner], order[columns][across]])
            one, other = pairs[:, pairs[0] < pairs[1]]
            if len(one):
                is_equal = ((distinct[one] ^ distinct[other])[:, None] & pieces[: second + 1]) == 0
                is_first = (is_equal == first_two_equal).all(axis=1)
                yield one[is_first], other[is_first]


def _pieces(values: UInt64[ndarray, " U"]) -> UInt64[ndarray, " 5"]:
    """Return masks that divide the 64 bits into pieces of about the same entropy."""
    bits = np.uint64(1) << np.arange(_BITS, dtype=np.uint64)
    share = np.array([np.count_nonzero(values & bit) for bit in bits]) / max(1, len(values))
    order = np.argsort(-np.minimum(share, 1 - share), kind="stable")
    return np.array([np.bitwise_or.reduce(bits[order[piece::_NUM_PIECES]]) for piece in range(_NUM_PIECES)])
