"""Subsets of a source: selected samples, or a stable random sample."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diptych.core.file_states import FileStates
from diptych.core.randomness import stable_hash
from diptych.core.sample import Sample
from diptych.data.sources.protocol import Source
from diptych.data.storage.blocks import RowColumns


class Subset(Source):
    """Some samples of a source, in its order.

    Args:
        source: the source.
        indices: the numbers of the samples, in ascending order.
        sizes: the sizes of their image files in bytes if they are known already, -1 for none; `image_sizes` returns them.
    """

    def __init__(self, source: Source, indices: Sequence[int], *, sizes: NDArray[np.int64] | None = None) -> None:
        self.source = source
        self.indices = indices
        self._rows, self._sizes = np.asarray(indices, dtype=np.int64), sizes
        self.classes = source.classes
        self.templates = source.templates
        self.is_decoded = source.is_decoded
        self.oddities = source.oddities
        if source.block_ends is not None:
            self.block_ends = np.searchsorted(self._rows, source.block_ends).astype(np.int64)
        ends = np.searchsorted(self._rows, [end for end, _ in source.parts])
        self.parts = tuple((int(end), share) for end, (_, share) in zip(ends, source.parts, strict=True))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the sample's captions."""
        return self.source.captions(self.indices[index])

    def key(self, index: int) -> str:
        """Return the sample's key."""
        return self.source.key(self.indices[index])

    def split(self, index: int) -> str | None:
        """Return the sample's split; None if a hash of the key decides."""
        return self.source.split(self.indices[index])

    def split_key(self, index: int) -> str:
        """Return the text whose hash assigns the sample to a split."""
        return self.source.split_key(self.indices[index])

    def under_first_rule(self) -> "Subset":
        """Return the same samples of the source under split rule 1."""
        return Subset(self.source.under_first_rule(), self.indices)

    def label(self, index: int) -> int | None:
        """Return the sample's label; None if it has none."""
        return self.source.label(self.indices[index])

    def image_size(self, index: int) -> int | None:
        """Return the size of the image file in bytes; None if it is unknown."""
        return self.source.image_size(self.indices[index])

    def image_sizes(self, rows: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Return the sizes of several image files in bytes; -1 if unknown."""
        return self.source.image_sizes(self._rows[rows]) if self._sizes is None else self._sizes[rows]

    def image_files(self, rows: NDArray[np.int64], /) -> FileStates | None:
        """Return the states of several image files; None if the images are not separate files."""
        return self.source.image_files(self._rows[rows])

    def image_stamp(self) -> str | None:
        """Return a text that changes when an image changes; None if there is none."""
        return self.source.image_stamp()

    def columns(self, rows: NDArray[np.int64], /) -> RowColumns | None:
        """Return the keys, captions, labels and splits of several rows; None if the source does not store columns."""
        return self.source.columns(self._rows[rows])


def take_few(source: Source, max_samples: int | None) -> Source:
    """Return at most `max_samples` samples, selected by a hash of their keys; a larger subset contains the smaller ones."""
    if max_samples is None or len(source) <= max_samples:
        return source
    selected = sorted(range(len(source)), key=lambda i: stable_hash(source.key(i), "few"))[:max_samples]
    return Subset(source, sorted(selected))
