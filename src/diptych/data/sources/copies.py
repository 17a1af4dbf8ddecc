"""Pictures that are in the data twice, to the byte."""

import os
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.core.errors import ImageError
from diptych.core.files import open_regular
from diptych.data.sources.blocks import RowColumns
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import Subset

_TAIL = 4096
"""Bytes at the end of a file that are looked at first: of two photos of one size they hardly ever agree."""


def copies_of(source: Source, some: Sequence[int], others: Sequence[int]) -> list[int]:
    """Those of some samples whose image is the same as that of any of the others.

    Only what agrees in size is opened, and only what agrees in its last bytes is read. Samples of unknown size are copies of
    nothing.
    """
    marks: tuple[Callable[[int], Hashable], ...] = (
        source.image_size,
        partial(_content_mark, source, _TAIL),
        partial(_content_mark, source, None),
    )
    for mark in marks:
        of_some = {i: mark(i) for i in some}
        wanted = set(of_some.values()) - {None}
        of_others = {i: value for i in others if (value := mark(i)) in wanted}
        shared = set(of_others.values())
        some, others = [i for i in some if of_some[i] in shared], list(of_others)
    return list(some)


def copy_groups(source: Source, indices: Sequence[int]) -> list[list[int]]:
    """Groups of two or more samples whose pictures are equal to the byte; samples of unknown size are copies of nothing.

    Only pictures of one size are opened, and only those that agree in their last bytes are read.
    """
    groups = _refined([list(indices)], source.image_size)
    groups = _refined(groups, partial(_content_mark, source, _TAIL))
    return _refined(groups, partial(_content_mark, source, None))


def _refined(groups: list[list[int]], mark: Callable[[int], Hashable]) -> list[list[int]]:
    """Each group split by a mark of its samples; those of one sample, or without a mark, are left out."""
    refined = []
    for group in groups:
        parts: dict[Hashable, list[int]] = {}
        for i in group:
            parts.setdefault(mark(i), []).append(i)
        refined += [part for value, part in parts.items() if value is not None and len(part) > 1]
    return refined


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
