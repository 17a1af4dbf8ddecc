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


def copy_groups(
    source: Source, indices: Sequence[int], *, apart_in: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Groups of two or more samples whose pictures are equal to the byte; samples of unknown size are copies of nothing.

    Only pictures of one size are opened, and only those that agree in their last bytes are read.

    Args:
        source: the samples.
        indices: those that are compared.
        apart_in: something of each sample of the source, such as its split; groups in which it is the same for all are left
            out, and so are most of the reads.
    """
    groups = [list(indices)]
    for mark in (source.image_size, partial(_content_mark, source, _TAIL), partial(_content_mark, source, None)):
        parts = [part for group in groups for part in _parted(group, mark)]
        groups = [part for part in parts if apart_in is None or len({apart_in[i] for i in part}) > 1]
    return groups


def _parted(group: list[int], mark: Callable[[int], Hashable]) -> list[list[int]]:
    """The group split by a mark of its samples; those of one sample, or without a mark, are left out."""
    parts: dict[Hashable, list[int]] = {}
    for i in group:
        parts.setdefault(mark(i), []).append(i)
    return [part for value, part in parts.items() if value is not None and len(part) > 1]


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
