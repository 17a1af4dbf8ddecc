"""Pictures that are in the data twice, to the byte."""

import os
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.core.errors import ImageError
from diptych.core.file_states import FileStates
from diptych.core.files import open_regular
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import Subset
from diptych.data.storage.blocks import RowColumns

_TAIL = 4096
"""Bytes at the end of a file that are looked at first: of two photos of one size they hardly ever agree."""


def copy_groups(
    source: Source,
    indices: Sequence[int] | NDArray[np.int64],
    *,
    apart_in: Sequence[Hashable] | NDArray[np.integer[Any]] | None = None,
    files: FileStates | None = None,
) -> list[list[int]]:
    """Groups of two or more samples whose pictures are equal to the byte; samples of unknown size are copies of nothing.

    Only pictures of one size are opened, and only those that agree in their last bytes are read. Samples with the same file, as
    rows of one path or hard links are, open it once.

    Args:
        source: the samples.
        indices: those that are compared.
        apart_in: something of each sample of the source, such as its split; groups in which it is the same for all are left
            out, and so are most of the reads.
        files: the states of the image files of `indices` if they were looked up already.
    """
    rows = np.asarray(indices, dtype=np.int64)
    files = source.image_files(rows) if files is None else files
    sizes = source.image_sizes(rows) if files is None else files.sizes
    found = _Candidates(
        rows,
        groups=np.zeros_like(rows),
        file_ids=np.arange(len(rows)) if files is None else files.file_ids(),
        apart=None if apart_in is None else _numbered(apart_in)[rows],
    ).parted(sizes)
    for last in (_TAIL, None):
        found = found.parted(found.marks(partial(_content_mark, source, last)))
    return sorted(found.rows_of_groups())


class _Candidates(NamedTuple):
    """Samples that may be copies: the row, the group, an id of the file, and what must differ within a group."""

    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    file_ids: NDArray[np.int64]
    apart: NDArray[np.int64] | None

    def parted(self, marks: NDArray[np.int64]) -> "_Candidates":
        """The groups split by a mark of each sample, without samples whose mark is -1.

        Groups of one sample are left out, and those of one kind where kinds must differ.
        """
        chosen = np.flatnonzero(marks >= 0)
        order = chosen[np.lexsort((marks[chosen], self.groups[chosen]))]
        pairs = np.stack([self.groups[order], marks[order]])
        starts = np.flatnonzero(np.concatenate([[True], (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)])[: len(order)])
        lengths = np.diff(starts, append=len(order))
        is_kept = lengths > 1
        if self.apart is not None and len(order):
            kinds = self.apart[order]
            is_kept &= np.maximum.reduceat(kinds, starts) > np.minimum.reduceat(kinds, starts)
        kept = order[np.repeat(is_kept, lengths)]
        groups = np.repeat(np.flatnonzero(is_kept), lengths[is_kept])
        return _Candidates(
            self.rows[kept], groups, self.file_ids[kept], None if self.apart is None else self.apart[kept]
        )

    def marks(self, mark: Callable[[int], Hashable | None]) -> NDArray[np.int64]:
        """A number for the mark of each sample, -1 for None; computed once per file."""
        numbers: dict[Hashable, int] = {None: -1}
        _, first, inverse = np.unique(self.file_ids, return_index=True, return_inverse=True)
        of_files = [numbers.setdefault(mark(row), len(numbers)) for row in self.rows[first].tolist()]
        return np.array(of_files, dtype=np.int64)[inverse]

    def rows_of_groups(self) -> list[list[int]]:
        """The rows of each group, in the order of `rows`."""
        ends = np.flatnonzero(np.diff(self.groups)) + 1
        return [part.tolist() for part in np.split(self.rows, ends) if len(part)]


def _numbered(values: Sequence[Hashable] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """A number for each value, the same for equal ones."""
    if isinstance(values, np.ndarray):
        return values.astype(np.int64)
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), dtype=np.int64, count=len(values))


class MergedCopies(Subset):
    """A source with each picture once: the first of the samples whose pictures are equal, with the captions of all."""

    def __init__(self, source: Source, groups: Sequence[Sequence[int]]) -> None:
        repeats = {i for group in groups for i in group[1:]}
        super().__init__(source, [i for i in range(len(source)) if i not in repeats])
        self.num_repeats = len(repeats)
        self._group_of = {group[0]: group for group in groups}

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of all samples with this picture, each once."""
        row = self.indices[index]
        texts = (text for i in self._group_of.get(row, (row,)) for text in self.source.captions(i))
        return tuple(dict.fromkeys(texts))

    def columns(self, _rows: NDArray[np.int64], /) -> RowColumns | None:
        """None: captions of several samples are put together."""
        return None


def merge_copies(source: Source) -> Source:
    """The source with each picture once (`MergedCopies`); itself if no picture is repeated."""
    groups = copy_groups(source, range(len(source)))
    return MergedCopies(source, groups) if groups else source


def _content_mark(source: Source, last: int | None, index: int) -> bytes | None:
    """A hash of the sample's image file, or of its pixels, or of so many of their last bytes; None if it cannot be read."""
    try:
        image = source[index].image
        if isinstance(image, str | Path):
            with open_regular(image) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0 if last is None else max(0, size - last))
                content = file.read()
        else:
            content = image if isinstance(image, bytes) else np.asarray(image).tobytes()
    except (ImageError, OSError, ValueError):
        return None
    return blake2b(content if last is None else content[-last:], digest_size=16).digest()
