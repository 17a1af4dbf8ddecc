"""`shards:PATTERN`: WebDataset tars as a source with random access.

The pattern is a path, a glob, a range (`{000..127}.tar`), or several of these joined by `::`, as in webdataset and
open_clip's trainer.
"""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DataError, DiptychWarning, ImageError
from diptych.core.sample import Sample
from diptych.data.sources.protocol import Source
from diptych.data.tar_index import tar_index

_MAX_OPEN = 64
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardsSource(Source):
    """The samples of several tars, one after another. Each process opens the tars it reads for itself."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._indices = [tar_index(path) for path in paths]
        self.block_ends = self._ends = np.cumsum([len(index.keys) for index in self._indices], dtype=np.int64)
        self._stems = _distinct_stems(paths)
        self.classes = tuple(sorted({label for index in self._indices for label in index.labels}))
        self._label_ids = {name: i for i, name in enumerate(self.classes)}
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        """The sample, its image read.

        Raises:
            ImageError: the tar has gone, or was cut off since it was indexed.
        """
        shard, row = self._place(index)
        image = self._read(shard, *self._indices[shard].places[row].tolist())
        return Sample(key=self.key(index), image=image, captions=self.captions(index), label=self.label(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """The sample's captions; the tar is not touched."""
        return tuple(self._row(index)["captions"])

    def key(self, index: int) -> str:
        """The shard's name and the sample's key in it."""
        shard, row = self._place(index)
        return f"{self._stems[shard]}/{self._indices[shard].keys[row]}"

    def split(self, index: int) -> str | None:
        """The split that the sample's JSON names, if it names one."""
        split: str | None = self._row(index).get("split")
        return split

    def label(self, index: int) -> int | None:
        """The class that the sample's JSON names, if it names one."""
        return self._label_ids.get(self._row(index).get("label", ""))

    def image_size(self, index: int) -> int:
        """Bytes of the image in its tar."""
        shard, row = self._place(index)
        return int(self._indices[shard].places[row, 1])

    def problems(self) -> Counter[str]:
        """What was left out of all shards: reason, and how many samples."""
        return sum((Counter(index.problems) for index in self._indices), Counter())

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _row(self, index: int) -> dict[str, Any]:
        shard, row = self._place(index)
        found: dict[str, Any] = json.loads(self._indices[shard].rows[row])
        return found

    def _read(self, shard: int, offset: int, length: int) -> bytes:
        try:
            if shard not in self._open:
                while len(self._open) >= _MAX_OPEN:
                    os.close(self._open.pop(next(iter(self._open))))
                self._open[shard] = os.open(self.paths[shard], os.O_RDONLY)
            content = os.pread(self._open[shard], length, offset)
        except OSError as error:
            raise ImageError(f"{self.paths[shard]}: cannot be read ({error.strerror})") from None
        if len(content) < length:
            raise ImageError(f"{self.paths[shard]}: ends before byte {offset + length}")
        return content


def read_shards(location: str) -> ShardsSource:
    """All tars of a pattern; samples without an image or a caption are left out and counted.

    Raises:
        DataError: the pattern names no tars, one is missing or none, or no sample is whole.
    """
    paths = [path for part in location.split("::") for path in _expand(part)]
    source = ShardsSource(paths)
    if not len(source):
        raise DataError(f"{location}: {len(paths)} tars hold no samples")
    problems = source.problems()
    if problems:
        listed = ", ".join(f"{count} with {reason}" for reason, count in problems.most_common())
        text = f"{location}: {problems.total()} of {len(source) + problems.total()} samples are left out: {listed}"
        warnings.warn(text, DiptychWarning, stacklevel=2)
    return source


def _expand(pattern: str) -> list[Path]:
    """The tars of one pattern, sorted; a range must be there from end to end."""
    spelled = list(_ranges(pattern))
    if len(spelled) > 1 or not any(sign in pattern for sign in "*?["):
        paths = [Path(name) for name in spelled]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DataError(f"{pattern}: {len(missing)} of {len(paths)} tars are not there, the first: {missing[0]}")
        return paths
    path = Path(pattern)
    found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    if not found:
        raise DataError(f"{pattern}: no tar is called so")
    return found


def _ranges(pattern: str) -> Iterator[str]:
    """The names that a pattern with ranges stands for; leading zeros are kept.

    >>> list(_ranges("a{08..10}.tar"))
    ['a08.tar', 'a09.tar', 'a10.tar']
    """
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _ranges(pattern[: found.start()] + str(number).zfill(len(first)) + pattern[found.end() :])


def _distinct_stems(paths: list[Path]) -> list[str]:
    """The tars' names, with their folders' where two are called the same."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [f"{path.parent.name}/{path.stem}" for path in paths]
