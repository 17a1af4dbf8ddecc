"""`mix: 0.7*KIND:LOCATION + 0.3*KIND:LOCATION`: a mixture of sources, each with its share of the training samples."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diptych.core.errors import DataError
from diptych.core.file_states import FileStates
from diptych.core.sample import Sample
from diptych.data.sources.protocol import Source
from diptych.data.storage.blocks import RowColumns, by_stretch, joined, prefixed
from diptych.data.storage.columns import locate
from diptych.data.storage.oddities import merged

_PART = re.compile(r"(?:(?P<share>[0-9.]+)\s*\*\s*)?(?P<spec>.+)", re.DOTALL)


class MixSource(Source):
    """The samples of several sources, concatenated; each key begins with the number of its source.

    The sequence contains each sample once. The shares determine the order of an epoch (`data/batches/order.py`).
    """

    def __init__(self, sources: Sequence[Source], shares: Sequence[float]) -> None:
        self.sources = list(sources)
        self._starts = np.cumsum([0] + [len(source) for source in sources]).tolist()
        self.parts = tuple(zip(self._starts[1:], (share / sum(shares) for share in shares), strict=True))
        self.classes = tuple(dict.fromkeys(name for source in sources for name in source.classes))
        self.templates = tuple(dict.fromkeys(template for source in sources for template in source.templates))
        self._label_ids = {name: i for i, name in enumerate(self.classes)}
        self.oddities = merged(source.oddities for source in sources)
        self.block_ends = self._blocks()
        self.is_decoded = all(source.is_decoded for source in sources)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        part, number = locate(self._starts, index)
        return replace(self.sources[part][number], key=self.key(index), label=self.label(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the sample's captions."""
        part, number = locate(self._starts, index)
        return self.sources[part].captions(number)

    def key(self, index: int) -> str:
        """Return the number of the source and the sample's key in it."""
        part, number = locate(self._starts, index)
        return f"{part}/{self.sources[part].key(number)}"

    def split_key(self, index: int) -> str:
        """Return the sample's split key in its source, so that it is in the same split with and without a mixture."""
        part, number = locate(self._starts, index)
        return self.sources[part].split_key(number)

    def under_first_rule(self) -> "MixSource":
        """Return the mixture of the sources under split rule 1."""
        return MixSource([source.under_first_rule() for source in self.sources], [share for _, share in self.parts])

    def split(self, index: int) -> str | None:
        """Return the split that the source assigns to the sample."""
        part, number = locate(self._starts, index)
        return self.sources[part].split(number)

    def label(self, index: int) -> int | None:
        """Return the sample's label among the classes of all sources."""
        part, number = locate(self._starts, index)
        label = self.sources[part].label(number)
        return None if label is None else self._label_ids[self.sources[part].classes[label]]

    def image_size(self, index: int) -> int | None:
        """Return the size of the image file in bytes; None if it is unknown."""
        part, number = locate(self._starts, index)
        return self.sources[part].image_size(number)

    def image_sizes(self, rows: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Return the sizes of several image files in bytes; -1 if unknown."""
        found = [self.sources[part].image_sizes(numbers) for part, numbers in by_stretch(self._starts, rows)]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def image_files(self, rows: NDArray[np.int64], /) -> FileStates | None:
        """Return the states of several image files; None if one of the sources does not store images as separate files."""
        found = list[FileStates]()
        for part, numbers in by_stretch(self._starts, rows):
            files = self.sources[part].image_files(numbers)
            if files is None:
                return None
            found.append(files)
        if not found:
            return None
        return FileStates(np.concatenate([files.table for files in found]), taken_ns=found[0].taken_ns)

    def image_stamp(self) -> str | None:
        """Return a text that changes when an image changes; None if a source has no such text."""
        stamps = [source.image_stamp() for source in self.sources]
        return None if None in stamps else json.dumps(stamps)

    def columns(self, rows: NDArray[np.int64], /) -> RowColumns | None:
        """Return the keys, captions, labels and splits of several rows; None if one of the sources has no columns."""
        blocks = []
        for part, numbers in by_stretch(self._starts, rows):
            source = self.sources[part]
            block = source.columns(numbers)
            if block is None:
                return None
            labels = np.array([*(self._label_ids[name] for name in source.classes), -1], dtype=np.int64)[block.labels]
            blocks.append(block._replace(keys=prefixed(block.keys, f"{part}/"), labels=labels))
        return joined(blocks)

    def _blocks(self) -> NDArray[np.int64] | None:
        if all(source.block_ends is None for source in self.sources):
            return None
        ends = [
            start + (np.array([len(source)]) if source.block_ends is None else source.block_ends)
            for start, source in zip(self._starts, self.sources, strict=False)
        ]
        return np.concatenate(ends).astype(np.int64)


def read_mix(location: str, open_source: Callable[[str], Source]) -> MixSource:
    """Read a mixture of sources joined by ` + `, each with an optional share and `*` before it.

    Without shares, each source has a share proportional to its size.

    Args:
        location: the sources, such as `0.7*csv:a.csv + 0.3*shapes`.
        open_source: opens a source given as `kind:location`.

    Raises:
        DataError: there are fewer than two sources, only some have a share, a share is not a number above 0, or a source
            cannot be read.
    """
    found = _parts(location)
    parts = [(part["share"], part["spec"]) for part in found if part is not None]
    if len(parts) < 2 or len(parts) < len(found):
        raise DataError(
            f"mix:{location}: write mix: 0.7*KIND:LOCATION + 0.3*KIND:LOCATION, with spaces around the plus"
        )
    given = [share for share, _ in parts if share is not None]
    if given and len(given) < len(parts):
        raise DataError(f"mix:{location}: only some sources have a share; give all of them one, or none")
    try:
        shares = [float(share) for share in given]
    except ValueError:
        shares = [0.0]
    if given and min(shares) <= 0:
        raise DataError(f"mix:{location}: the shares are {', '.join(given)}; each is a number above 0")
    sources = [open_source(spec) for _, spec in parts]
    return MixSource(sources, shares or [len(source) for source in sources])


def part_specs(location: str) -> list[str]:
    """Return the sources of a mixture, without their shares.

    >>> part_specs("0.7*csv:a.csv + 0.3*shapes")
    ['csv:a.csv', 'shapes']
    """
    return [part["spec"] for part in _parts(location) if part is not None]


def _parts(location: str) -> list[re.Match[str] | None]:
    return [_PART.fullmatch(part.strip()) for part in re.split(r"\s\+\s", location)]
