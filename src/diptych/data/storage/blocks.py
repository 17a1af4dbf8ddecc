"""Columns of many rows as arrays, so that a fingerprint can hash blocks of rows instead of single rows."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Return the numbers of several ranges, concatenated, as an index into an array.

    >>> ranges(np.array([7, 2]), np.array([2, 3])).tolist()
    [7, 8, 2, 3, 4]
    """
    if len(starts) and np.array_equal(
        starts[1:], (starts + lengths)[:-1]
    ):  # The ranges are contiguous: a slice avoids a copy.
        return slice(int(starts[0]), int(starts[-1] + lengths[-1]))
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts - before, lengths)


class TextBlock(NamedTuple):
    """Several texts in one array."""

    content: NDArray[np.uint8]
    """The UTF-8 bytes of all texts, concatenated."""
    lengths: NDArray[np.int64]
    """Length of each text in bytes."""

    def texts(self) -> list[str]:
        """Return the texts.

        >>> TextBlock(np.frombuffer("aé".encode(), dtype=np.uint8), np.array([1, 2])).texts()
        ['a', 'é']
        """
        content, ends = self.content.tobytes(), np.cumsum(self.lengths).tolist()
        starts = [0, *ends[:-1]] if ends else []
        if content.isascii():
            text = content.decode()
            return [text[start:end] for start, end in zip(starts, ends, strict=True)]
        return [content[start:end].decode("utf-8", "surrogatepass") for start, end in zip(starts, ends, strict=True)]

    def paths(self, root: str | Path) -> list[str]:
        """Return the texts as paths relative to a folder; absolute paths are unchanged.

        >>> TextBlock(np.frombuffer(b"a/b", dtype=np.uint8), np.array([1, 2])).paths("photos")
        ['photos/a', '/b']
        """
        folder = os.path.join(root, "")  # noqa: PTH118  (Path objects take ten times as long)
        first_bytes = self.content[(np.cumsum(self.lengths) - self.lengths)[self.lengths > 0]]
        if (first_bytes == ord("/")).any():
            return [text if text.startswith("/") else folder + text for text in self.texts()]
        return [folder + text for text in self.texts()]


class RowColumns(NamedTuple):
    """Keys, captions, labels and splits of several rows."""

    keys: TextBlock
    captions: TextBlock
    """The captions of all rows, concatenated."""
    num_captions: NDArray[np.int64]
    """Number of captions of each row."""
    labels: NDArray[np.int64]
    """Index of each row's class in the source's classes; -1 for none."""
    splits: NDArray[np.integer[Any]]
    """Index of each row's split in `split_names`; -1 for none."""
    split_names: Sequence[str]


def by_stretch(starts: Sequence[int], rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (segment, row numbers within it) for each group of consecutive `rows` in the same segment.

    Segment `i` begins at row `starts[i]`.

    >>> [(segment, rows.tolist()) for segment, rows in by_stretch([0, 3, 5], np.array([1, 2, 4]))]
    [(0, [1, 2]), (1, [1])]
    """
    segments = np.searchsorted(np.asarray(starts), rows, side="right") - 1
    cuts = np.flatnonzero(np.diff(segments)) + 1
    for chunk, part in zip(np.split(rows, cuts), np.split(segments, cuts), strict=True):
        if len(chunk):
            segment = int(part[0])
            yield segment, chunk - starts[segment]


def prefixed(block: TextBlock, prefix: str) -> TextBlock:
    """Return the texts with `prefix` prepended to each.

    >>> prefixed(TextBlock(np.frombuffer(b"abc", dtype=np.uint8), np.array([1, 2])), "x/").content.tobytes()
    b'x/ax/bc'
    """
    before = np.frombuffer(prefix.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    lengths = block.lengths + len(before)
    starts = np.cumsum(lengths) - lengths
    is_prefix = np.zeros(int(lengths.sum()), dtype=bool)
    is_prefix[starts[:, None] + np.arange(len(before))] = True
    content = np.empty(len(is_prefix), dtype=np.uint8)
    content[is_prefix] = np.tile(before, len(lengths))
    content[~is_prefix] = block.content
    return TextBlock(content, lengths)


def joined(blocks: Sequence[RowColumns]) -> RowColumns:
    """Return the concatenation of several blocks of rows."""
    numbers: dict[str, int] = {}
    splits = []
    for block in blocks:
        renumbered = [numbers.setdefault(name, len(numbers)) for name in block.split_names]
        splits.append(np.array([*renumbered, -1], dtype=np.int64)[block.splits])
    return RowColumns(
        keys=_joined([block.keys for block in blocks]),
        captions=_joined([block.captions for block in blocks]),
        num_captions=np.concatenate([block.num_captions for block in blocks]),
        labels=np.concatenate([block.labels for block in blocks]),
        splits=np.concatenate(splits),
        split_names=list(numbers),
    )


def _joined(blocks: Sequence[TextBlock]) -> TextBlock:
    content = np.concatenate([block.content for block in blocks])
    return TextBlock(content, np.concatenate([block.lengths for block in blocks]))
