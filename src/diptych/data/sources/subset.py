"""Part of a source: some of its samples, or a stable few."""

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
        indices: the numbers of the samples, which rise.
        sizes: the bytes of their image files where they were looked up already, -1 for none; `image_sizes` returns them.
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
        self.parts = tuple(
            (int(end), share)
            for end, (_, share) in zip(
                np.searchsorted(self._rows, [end for end, _ in source.parts]), source.parts, strict=True
            )
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]

    def captions(self, index: int) -> tuple[str, ...]:
        """The sample's captions."""
        return self.source.captions(self.indices[index])

    def key(self, index: int) -> str:
        """The sample's key."""
        return self.source.key(self.indices[index])

    def split(self, index: int) -> str | None:
        """The sample's split."""
        return self.source.split(self.indices[index])

    def split_key(self, index: int) -> str:
        """What a split is cut by."""
        return self.source.split_key(self.indices[index])

    def under_first_rule(self) -> "Subset":
        """The same samples of the source under split rule 1."""
        return Subset(self.source.under_first_rule(), self.indices)

    def label(self, index: int) -> int | None:
        """The sample's label."""
        return self.source.label(self.indices[index])

    def image_size(self, index: int) -> int | None:
        """Bytes of the sample's image file."""
        return self.source.image_size(self.indices[index])

    def image_sizes(self, rows: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Bytes of the image files of some rows at once."""
        return self.source.image_sizes(self._rows[rows]) if self._sizes is None else self._sizes[rows]

    def image_files(self, rows: NDArray[np.int64], /) -> FileStates | None:
        """The states of the image files of some rows."""
        return self.source.image_files(self._rows[rows])

    def image_stamp(self) -> str | None:
        """A text that differs once an image was changed."""
        return self.source.image_stamp()

    def columns(self, rows: NDArray[np.int64], /) -> RowColumns | None:
        """Keys, captions, labels and splits of some rows at once."""
        return self.source.columns(self._rows[rows])


def take_few(source: Source, max_samples: int | None) -> Source:
    """At most so many samples, chosen by a hash of their keys, so that a larger few holds a smaller one."""
    if max_samples is None or len(source) <= max_samples:
        return source
    chosen = sorted(range(len(source)), key=lambda i: stable_hash(source.key(i), "few"))[:max_samples]
    return Subset(source, sorted(chosen))
