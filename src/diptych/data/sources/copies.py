"""Find and merge samples whose images are identical to the byte."""

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
"""Bytes at the end of a file that are compared first; two photos of the same size rarely agree in them."""


def copy_groups(
    source: Source,
    indices: Sequence[int] | NDArray[np.int64],
    *,
    apart_in: Sequence[Hashable] | NDArray[np.integer[Any]] | None = None,
    files: FileStates | None = None,
) -> list[list[int]]:
    """Return groups of two or more samples whose images are identical to the byte. Images of unknown size are never grouped.

    Only images of equal size are opened, and only those that agree in their last bytes are read completely. A file that several
    samples share, by path or hard link, is opened once.

    Args:
        source: the samples.
        indices: numbers of the samples to compare.
        apart_in: a property of each sample of the source, such as its split. Groups in which it is the same for all samples are
            left out, which avoids most reads.
        files: the states of the image files of `indices` if they are known already.
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
        found = found.parted(found.numbers(partial(_content_hash, source, last)))
    return sorted(found.rows_of_groups())


class _Candidates(NamedTuple):
    """Groups of samples that may be copies: row, group id, file id, and the property that must differ within a group."""

    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    file_ids: NDArray[np.int64]
    apart: NDArray[np.int64] | None

    def parted(self, values: NDArray[np.int64]) -> "_Candidates":
        """Return the groups split by a value of each sample, without samples whose value is -1.

        Groups of one sample are dropped, as are groups in which the property `apart` is the same for all samples.
        """
        valid = np.flatnonzero(values >= 0)
        order = valid[np.lexsort((values[valid], self.groups[valid]))]
        pairs = np.stack([self.groups[order], values[order]])
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

    def numbers(self, value: Callable[[int], Hashable | None]) -> NDArray[np.int64]:
        """Return a number for the value of each sample, -1 for None. The value is computed once per file."""
        numbers: dict[Hashable, int] = {None: -1}
        _, first, inverse = np.unique(self.file_ids, return_index=True, return_inverse=True)
        of_files = [numbers.setdefault(value(row), len(numbers)) for row in self.rows[first].tolist()]
        return np.array(of_files, dtype=np.int64)[inverse]

    def rows_of_groups(self) -> list[list[int]]:
        """Return the rows of each group, in the order of `rows`."""
        ends = np.flatnonzero(np.diff(self.groups)) + 1
        return [part.tolist() for part in np.split(self.rows, ends) if len(part)]


def _numbered(values: Sequence[Hashable] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return a number for each value; equal values get the same number."""
    if isinstance(values, np.ndarray):
        return values.astype(np.int64)
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), dtype=np.int64, count=len(values))


class MergedCopies(Subset):
    """A source without repeated images: of samples with identical images, the first one is kept, with the captions of all."""

    def __init__(self, source: Source, groups: Sequence[Sequence[int]]) -> None:
        repeats = {i for group in groups for i in group[1:]}
        super().__init__(source, [i for i in range(len(source)) if i not in repeats])
        self.num_repeats = len(repeats)
        self._group_of = {group[0]: group for group in groups}

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the distinct captions of all samples with this image."""
        row = self.indices[index]
        texts = (text for i in self._group_of.get(row, (row,)) for text in self.source.captions(i))
        return tuple(dict.fromkeys(texts))

    def columns(self, _rows: NDArray[np.int64], /) -> RowColumns | None:
        """Return None, because the captions of several samples are combined."""
        return None


def merge_copies(source: Source) -> Source:
    """Return the source without repeated images (`MergedCopies`), or the source itself if no image is repeated."""
    groups = copy_groups(source, range(len(source)))
    return MergedCopies(source, groups) if groups else source


def _content_hash(source: Source, last: int | None, index: int) -> bytes | None:
    """Return a hash of the image file or pixels of a sample, or of their last `last` bytes; None if they cannot be read."""
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
