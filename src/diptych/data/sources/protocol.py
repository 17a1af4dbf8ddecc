"""The base classes of all sources: a sequence of samples with random access."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.core.file_states import FileStates
from diptych.core.lists import chunks
from diptych.core.sample import ImageInput, Sample
from diptych.data.storage.blocks import RowColumns
from diptych.data.storage.oddities import Oddity

_CHUNK = 1 << 16
"""Rows per chunk, so that memory does not grow with the number of rows."""


class Source(ABC):
    """A sequence of samples: `len(source)`, `source[i] -> Sample`. It must be picklable and the same in every process.

    Subclasses implement the four abstract methods; the others have defaults for data without classes, splits and shards.
    """

    classes: tuple[str, ...] = ()
    """Names of the labels; empty if the samples have none."""
    templates: tuple[str, ...] = ()
    """Prompts with `{}` for a class name, in the style of the captions; empty if the source defines none."""
    block_ends: NDArray[np.int64] | None = None
    """End row of each block of rows that are fastest to read together, such as those of one tar; None if the order of access
    does not matter."""
    parts: tuple[tuple[int, float], ...] = ()
    """For a mixture: (end row, share of the drawn samples) of each part. Empty if an epoch uses every sample once."""

    oddities: tuple[Oddity, ...] = ()
    """Unusual things in the data, and how the reader handled them."""
    can_be_sampled: bool = False
    """Whether a few images can be read when the source is opened, without downloads, drawing, or open files that remain."""
    is_decoded: bool = False
    """Whether the images are pixels already, and not files to decode."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def __getitem__(self, index: int, /) -> Sample:
        """Return a sample; its image may be a path that has not been opened."""

    @abstractmethod
    def captions(self, index: int) -> tuple[str, ...]:
        """Return the sample's captions without reading its image."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the sample's key without creating the sample."""

    def split(self, _index: int) -> str | None:
        """Return the split that the source assigns to the sample; None if a hash of the key decides."""
        return None

    def split_key(self, index: int) -> str:
        """Return the text whose hash assigns the sample to a split: the key, unless it differs from the key elsewhere."""
        return self.key(index)

    def under_first_rule(self) -> "Source":
        """Return the source with the keys and the order of classes of split rule 1 (`sources/splits.py`)."""
        return self

    def label(self, _index: int) -> int | None:
        """Return the sample's label without reading its image; None if it has none."""
        return None

    def image_size(self, _index: int) -> int | None:
        """Return the size of the image file in bytes without opening it; None if there is no file or its size is unknown."""
        return None

    def image_sizes(self, rows: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Return `image_size` of several rows; -1 instead of None."""
        sizes = map(self.image_size, rows.tolist())
        return np.array([-1 if size is None else size for size in sizes], dtype=np.int64)

    def image_files(self, _rows: NDArray[np.int64], /) -> FileStates | None:
        """Return the states of the image files of several rows; None if the images are not separate files."""
        return None

    def image_stamp(self) -> str | None:
        """Return a text that changes when an image changes, if all images are stored in a few files; otherwise None."""
        return None

    def columns(self, _rows: NDArray[np.int64], /) -> RowColumns | None:
        """Return the keys, captions, labels and splits of several rows; None if the source does not store columns.

        The values must equal those of `key`, `captions`, `label` and `split`. With columns, the fingerprint of ten million rows
        takes seconds instead of minutes.
        """
        return None


def row_chunks(source: Source) -> Iterator[NDArray[np.int64]]:
    """Yield all row numbers of a source in parts of at most `_CHUNK`, for `Source.columns`."""
    for part in chunks(len(source), _CHUNK):
        yield np.arange(part.start, part.stop, dtype=np.int64)


class ColumnSource(Source):
    """A source that stores the labels of all samples in an array and, unless it overrides `split`, also their splits."""

    _labels: NDArray[np.integer[Any]]
    """Index of each sample's class in `classes`; -1 for none."""
    _splits: NDArray[np.integer[Any]]
    """Index of each sample's split in `_split_names`; -1 for none."""
    _split_names: Sequence[str]

    @abstractmethod
    def image(self, index: int) -> ImageInput:
        """Return the image of a sample: its pixels, the content of its file, or the path of the file.

        Raises:
            ImageError: the file that contains the image cannot be read.
        """

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        image = self.image(index)
        return Sample(key=self.key(index), image=image, captions=self.captions(index), label=self.label(index))

    def split(self, index: int) -> str | None:
        """Return the split that the source assigns to the sample; None if it assigns none."""
        code = int(self._splits[index])
        return None if code < 0 else self._split_names[code]

    def label(self, index: int) -> int | None:
        """Return the sample's label; None if it has none."""
        label = int(self._labels[index])
        return None if label < 0 else label
