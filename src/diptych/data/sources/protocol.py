"""The contract of every source: a sequence of samples with random access."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from diptych.core.file_states import FileStates
from diptych.core.sample import Sample
from diptych.data.storage.blocks import RowColumns
from diptych.data.storage.oddities import Oddity


class Source(ABC):
    """`len(source)`, `source[i] -> Sample`. Picklable, the same in every process.

    Four methods make a source; the rest has defaults for data without classes, splits and shards.
    """

    classes: tuple[str, ...] = ()
    """Names of the labels; empty if the samples have none."""
    templates: tuple[str, ...] = ()
    """Prompts with `{}` for a label's name, in the words of the captions; empty if the source has no words of its own."""
    block_ends: NDArray[np.int64] | None = None
    """Where each stretch ends that is best read together, as a tar is; None where any order reads equally fast."""
    parts: tuple[tuple[int, float], ...] = ()
    """Of a mixture: where each of its parts ends, and its share of what is drawn. Empty where every sample counts once."""

    oddities: tuple[Oddity, ...] = ()
    """What is unusual in the data, and what the reader did about it."""
    can_be_sampled: bool = False
    """Whether a few pictures can be read when it is opened, without fetching or drawing them or keeping files open."""
    is_decoded: bool = False
    """Whether its pictures are pixels already, and not files to decode."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def __getitem__(self, index: int, /) -> Sample:
        """The sample; its image may still be a path that is not opened."""

    @abstractmethod
    def captions(self, index: int) -> tuple[str, ...]:
        """The sample's captions, without its image."""

    @abstractmethod
    def key(self, index: int) -> str:
        """The sample's key, without making the sample."""

    def split(self, _index: int) -> str | None:
        """The split the source itself puts the sample in; None if it leaves that to a hash of the key."""
        return None

    def split_key(self, index: int) -> str:
        """What a split is cut by where the source names none: the key, unless the same sample has others elsewhere."""
        return self.key(index)

    def under_first_rule(self) -> "Source":
        """The source with the keys and the order of classes that runs under split rule 1 saw (`sources/splits.py`)."""
        return self

    def label(self, _index: int) -> int | None:
        """The sample's label, without its image."""
        return None

    def image_size(self, _index: int) -> int | None:
        """Bytes of the sample's image file, without opening it; None if there is no file, or it cannot be known so."""
        return None

    def image_sizes(self, rows: NDArray[np.int64], /) -> NDArray[np.int64]:
        """`image_size` of some rows at once; -1 where it is None."""
        sizes = map(self.image_size, rows.tolist())
        return np.array([-1 if size is None else size for size in sizes], dtype=np.int64)

    def image_files(self, _rows: NDArray[np.int64], /) -> FileStates | None:
        """The states of the image files of some rows; None if the images are not files of their own."""
        return None

    def image_stamp(self) -> str | None:
        """A text that differs once an image was changed, if all images lie in a few files; None if that cannot be known."""
        return None

    def columns(self, _rows: NDArray[np.int64], /) -> RowColumns | None:
        """Keys, captions, labels and splits of some rows at once; None if the source does not keep them as columns.

        They must be what `key`, `captions`, `label` and `split` return for each row. A fingerprint of ten million rows takes
        seconds with it and minutes without.
        """
        return None
