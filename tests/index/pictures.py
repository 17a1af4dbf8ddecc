"""Pictures that are only told of, with vectors drawn at random."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from diptych.index.approximate import AnnInfo, AnnKind
from diptych.index.entry import Entry, FileStat, SearchHit
from diptych.index.hnsw import Hnsw
from diptych.index.local import LocalIndex
from diptych.index.protocol import Index

DIM = 8


def of_length_one(array: NDArray[Any]) -> NDArray[np.float32]:
    """Each row divided by its length."""
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


def unit(num: int, seed: int = 0) -> NDArray[np.float32]:
    """Random vectors of length 1."""
    return of_length_one(np.random.default_rng(seed).standard_normal((num, DIM)))


def entry(number: int, **more: Any) -> Entry:
    made = Entry(
        key=f"/photos/{number}.jpg", digest=f"d{number}", stamp=FileStat(size=number, modified_ns=number * 10**9)
    )
    return replace(made, **more)


def add_ten(index: Index) -> None:
    """Pictures 0 to 9, wider and later each, with a caption."""
    entries = [
        entry(i, width=100 * i, taken=f"2024-01-{i + 1:02d} 10:00:00", captions=(f"caption {i}",)) for i in range(10)
    ]
    add(index, entries, {e.digest: v for e, v in zip(entries, unit(10), strict=True)})


def add(index: Index, entries: Sequence[Entry], vectors: Mapping[str, NDArray[np.float32]], **more: Any) -> None:
    """One addition, under the lock."""
    with index.writing():
        index.add(entries, vectors, **more)


def compact(index: Index) -> int:
    """The same of `compact`."""
    with index.writing():
        return index.compact()


@overload
def build(index: LocalIndex, kind: AnnKind | None) -> AnnInfo | None: ...


@overload
def build(index: Index, kind: AnnKind | None) -> AnnInfo | Hnsw | None: ...


def build(index: Index, kind: AnnKind | None) -> AnnInfo | Hnsw | None:
    """The same of `build`."""
    with index.writing():
        built = index.build(kind)
    return built if isinstance(built, AnnInfo) else None


def keys_of(answers: Sequence[Sequence[SearchHit]]) -> list[list[str]]:
    """The keys of the hits of each query."""
    return [[hit.entry.key for hit in answer] for answer in answers]
