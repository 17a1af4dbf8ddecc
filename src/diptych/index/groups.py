"""Find duplicate groups: pictures that are the same, or similar according to the model.

A content is a distinct file content; several files may have it. Shapes: N contents, V vectors, E embedding, P pairs, G ranges.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray

from diptych.core.components import Components, bucket_blocks
from diptych.core.lists import chunks
from diptych.images.fingerprints import near_pairs
from diptych.index.similar import EXACT_UP_TO, CosineJoiner, join_similar
from diptych.index.unit_vectors import UnitVectors

SAME_COSINE = 0.9
"""Minimum cosine of copies of a picture. Similar perceptual hashes are not enough: those of plain pictures agree by chance."""
_CHUNK = 2048
"""Number of contents that are compared at a time."""
_PAIRS = 2**18
"""Number of pairs of contents that are listed at a time."""
_LARGE = 2**12
"""If the contents of two hashes have at least this number of pairs, they are compared as a block."""

DuplicateKind = Literal["identical files", "same picture", "similar according to this model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicate:
    """A picture in a duplicate group."""

    key: str
    """Path of the picture."""
    cosine: float
    """Cosine of its vector and that of the first picture of the group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateGroup:
    """A group of duplicate pictures.

    A group of a looser kind contains one member of each group of a stricter kind. A "same picture" group contains one of
    several identical files, and a group of similar pictures contains one copy of each picture.
    """

    kind: DuplicateKind
    pictures: tuple[Duplicate, ...]


def duplicate_groups(
    keys: Sequence[Sequence[str]],
    hashes: Sequence[int | None],
    vectors: Float[ndarray, "V E"],
    threshold: float,
    *,
    rows: Int64[ndarray, " N"] | None = None,
    exact_up_to: int = EXACT_UP_TO,
) -> list[DuplicateGroup]:
    """Groups of identical files, then of the same picture, then of similar pictures.

    Groups of identical files and of the same picture are exact. Groups of similar pictures are exact up to `exact_up_to`
    contents. With more contents, each pair exactly at the threshold is found with a probability of at least 99.9 %, and more
    similar pairs with a higher probability. The result is deterministic. The function needs about 1,000 bytes of memory per
    content in addition to the vectors, regardless of the number of pairs.

    Args:
        keys: for each content, the files with this content.
        hashes: for each content, the 64-bit perceptual hash (`images/fingerprints.py`); None if it is unknown.
        vectors: vectors of the contents; they can be mapped into memory.
        threshold: minimum cosine of similar pictures. Groups are connected components: neighbors of neighbors are included.
        rows: for each content, the row of its vector; if None, content i has row i.
        exact_up_to: maximum number of contents for which all pairs are compared.

    >>> eye = np.eye(2, dtype=np.float32)[[0, 1, 0, 0]]
    >>> groups = duplicate_groups([["a"], ["b", "c"], ["d"], ["e"]], [7, 1, 7, None], eye, 1.0)
    >>> [(group.kind, [picture.key for picture in group.pictures]) for group in groups]
    [('identical files', ['b', 'c']), ('same picture', ['a', 'd']), ('similar according to this model', ['a', 'e'])]
    """
    if not keys:
        return []
    unit = UnitVectors(vectors, rows)
    same, similar = Components(len(keys)), Components(len(keys))
    _join_same(unit, hashes, same)
    first = same.first()
    similar.join(np.arange(len(keys)), first)
    join_similar(unit, similar, threshold, exact_up_to=exact_up_to)
    groups = [_group("identical files", files, np.ones(len(files))) for files in keys if len(files) > 1]

    def to_group(kind: DuplicateKind, contents: list[int]) -> DuplicateGroup:
        (reference,) = unit[np.array(contents[:1])]
        cosines = [unit[np.array(contents[part])] @ reference for part in chunks(len(contents), _CHUNK)]
        return _group(kind, [keys[content][0] for content in contents], np.concatenate(cosines))

    groups += [to_group("same picture", contents) for contents in same.groups()]
    for contents in similar.groups():
        distinct = [content for content in contents if first[content] == content]
        if len(distinct) > 1:
            groups.append(to_group("similar according to this model", distinct))
    return groups


def _group(kind: DuplicateKind, keys: Sequence[str], cosines: Float[ndarray, " P"]) -> DuplicateGroup:
    pictures = [
        Duplicate(key=key, cosine=cosine) for key, cosine in zip(keys, np.minimum(1, cosines).tolist(), strict=True)
    ]
    return DuplicateGroup(kind=kind, pictures=tuple(pictures))


def _join_same(unit: UnitVectors, hashes: Sequence[int | None], components: Components) -> None:
    """Join contents whose hashes differ in at most `NEAR_BITS` bits and whose cosine is at least `SAME_COSINE`."""
    joiner, is_valid = CosineJoiner(unit, components, SAME_COSINE), unit.is_valid()
    known = np.array([is_valid[i] and value is not None for i, value in enumerate(hashes)])
    contents = np.flatnonzero(known)
    bits = np.array([value for value, is_known in zip(hashes, known, strict=True) if is_known], dtype=np.uint64)
    contents, bits = contents[np.argsort(bits, kind="stable")], np.sort(bits)
    distinct, starts, counts = np.unique(bits, return_index=True, return_counts=True)
    joiner.pairs(np.repeat(contents[starts], counts), contents)  # Equal hashes: compare only with the first content.
    joiner.flush()
    order, blocks = bucket_blocks(bits, components.first()[contents])
    for rows, columns in blocks:
        near = bits[order[rows], None] == bits[order[columns]]
        joiner.block(near, contents[order[rows]], contents[order[columns]])
    for one, other in near_pairs(distinct):
        is_large = counts[one] * counts[other] >= _LARGE
        for a, b in zip(one[is_large], other[is_large], strict=True):
            for rows in chunks(int(counts[a]), _CHUNK):
                for columns in chunks(int(counts[b]), _CHUNK):
                    joiner.all_pairs(contents[starts[a] :][rows], contents[starts[b] :][columns])
        small, others = one[~is_large], other[~is_large]
        for left, right in _member_pairs(starts[small], counts[small], starts[others], counts[others]):
            joiner.pairs(contents[left], contents[right])
    joiner.flush()


def _member_pairs(
    starts: Int64[ndarray, " G"],
    counts: Int64[ndarray, " G"],
    other_starts: Int64[ndarray, " G"],
    other_counts: Int64[ndarray, " G"],
) -> Iterator[tuple[Int64[ndarray, " P"], Int64[ndarray, " P"]]]:
    """For G pairs of ranges of positions, all pairs of a member of the first and a member of the second range, in batches."""
    sizes = counts * other_counts
    totals = np.cumsum(sizes)
    limits = np.arange(_PAIRS, (totals[-1] if len(totals) else 0) + _PAIRS, _PAIRS)
    for part in np.split(np.arange(len(sizes)), np.searchsorted(totals, limits)):
        pair = np.repeat(part, sizes[part])
        number = np.arange(len(pair)) - np.repeat(np.cumsum(sizes[part]) - sizes[part], sizes[part])
        offset, other_offset = np.divmod(number, other_counts[pair])
        yield starts[pair] + offset, other_starts[pair] + other_offset
