"""`shards:PATTERN`: WebDataset tars as a source with random access, on this machine or elsewhere.

The pattern is a path, a glob, a range (`{000..127}.tar`), or several of these joined by `::`, as in webdataset and
open_clip's trainer. Each may be a URL that fsspec knows (`s3://`, `gs://`, `https://`).
"""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from diptych.core.address import redacted
from diptych.core.errors import DataError, DiptychWarning, unknown_name
from diptych.core.remote import FileCache, is_remote, list_remote
from diptych.core.sample import Sample
from diptych.data.sources.blocks import RowColumns, by_stretch, joined, prefixed, ranges
from diptych.data.sources.columns import locate
from diptych.data.sources.location import listable
from diptych.data.sources.protocol import Source
from diptych.data.sources.templates import FIVE_TEMPLATES, captions_or_filled, templates_of
from diptych.data.tar_index import TarIndex
from diptych.data.tars import LocalTar, RemoteTar, Tar, TarReader

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_TARS, _MAX_DIGITS = 1_000_000, 18
"""What ranges may name, and the length of their numbers."""
_OPTIONS = ("cache_gb", "templates")
_CACHE_GB = 32.0
_AT_A_TIME = 8
"""Tars whose index is looked up at once: over a network most of that is waiting."""


class ShardsSource(Source):
    """The samples of several tars, one after another."""

    def __init__(self, tars: Sequence[Tar], *, templates: tuple[str, ...] = ()) -> None:
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            self._indices = list(pool.map(lambda tar: tar.index(), tars))
        self._reader = TarReader(list(tars))
        self.block_ends = np.cumsum([len(index.keys) for index in self._indices], dtype=np.int64)
        self._starts = np.concatenate([[0], self.block_ends]).tolist()
        self._stems = _distinct_stems([tar.name for tar in tars])
        self.classes = tuple(sorted({label for index in self._indices for label in index.labels.names}))
        self._label_ids = {name: i for i, name in enumerate(self.classes)}
        self._given_templates = templates
        self.templates = templates or (FIVE_TEMPLATES if any(map(_lacks_captions, self._indices)) else ())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        """The sample, its image read.

        Raises:
            ImageError: the tar has gone, or was cut off since it was indexed.
        """
        shard, row = locate(self._starts, index)
        offset, length = self._indices[shard].places[row].tolist()
        image = self._reader.read(shard, offset, length)
        return Sample(key=self.key(index), image=image, captions=self.captions(index), label=self.label(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """The sample's captions, or templates around its class's name; the tar is not touched."""
        shard, row = locate(self._starts, index)
        kept = self._indices[shard]
        first, last = int(kept.caption_ends[row - 1]) if row else 0, int(kept.caption_ends[row])
        captions = tuple([kept.captions[i] for i in range(first, last)])
        return captions_or_filled(captions, kept.labels[row], self._given_templates) if self.templates else captions

    def key(self, index: int) -> str:
        """The shard's name and the sample's key in it."""
        shard, row = locate(self._starts, index)
        return f"{self._stems[shard]}/{self._indices[shard].keys[row]}"

    def split(self, index: int) -> str | None:
        """The split that the sample's JSON names, if it names one."""
        shard, row = locate(self._starts, index)
        return self._indices[shard].splits[row]

    def label(self, index: int) -> int | None:
        """The class that the sample's JSON names, if it names one."""
        if not self.classes:
            return None
        shard, row = locate(self._starts, index)
        return self._label_ids.get(self._indices[shard].labels[row] or "")

    def image_size(self, index: int) -> int:
        """Bytes of the image in its tar."""
        shard, row = locate(self._starts, index)
        return int(self._indices[shard].places[row, 1])

    def columns(self, rows: NDArray[np.int64], /) -> RowColumns | None:
        """Keys, captions, labels and splits of some rows at once; None if captions are made from templates."""
        if self.templates:
            return None
        return joined([self._shard_columns(shard, numbers) for shard, numbers in by_stretch(self._starts, rows)])

    def _shard_columns(self, shard: int, numbers: NDArray[np.int64]) -> RowColumns:
        index = self._indices[shard]
        counts = np.diff(index.caption_ends, prepend=0)[numbers]
        captions = ranges(index.caption_ends[numbers] - counts, counts)
        label_ids = np.array([*(self._label_ids[name] for name in index.labels.names), -1], dtype=np.int64)
        return RowColumns(
            keys=prefixed(index.keys.take(numbers), f"{self._stems[shard]}/"),
            captions=index.captions.take(np.arange(len(index.captions))[captions]),
            num_captions=counts,
            labels=label_ids[index.labels.take(numbers)],
            splits=index.splits.take(numbers),
            split_names=index.splits.names,
        )

    def problems(self) -> Counter[str]:
        """What was left out of all shards: reason, and how many samples."""
        return sum((Counter(index.problems) for index in self._indices), Counter())


def read_shards(location: str) -> ShardsSource:
    """All tars of a pattern; samples without an image or a caption are left out and counted.

    `?cache_gb=N` bounds what is kept of remote tars on this machine; `?templates=FILE` makes captions of the labels.

    Raises:
        ConfigError: a remote place needs an extra that is not installed.
        DataError: the pattern names no tars, one is missing or none, or no sample is whole.
    """
    pattern, options = _options(location)
    cache = FileCache(max_bytes=_cache_bytes(pattern, options))
    tars: list[Tar] = []
    for part in pattern.split("::"):
        tars += _expand(part, cache)
        if len(tars) > _MAX_TARS:
            raise DataError(
                f"{_shortened(pattern)}: names {len(tars):,} tars or more; at most {_MAX_TARS:,} are allowed"
            )
    source = ShardsSource(tars, templates=templates_of(options))
    if not len(source):
        raise DataError(f"{location}: {len(tars)} tars hold no samples")
    problems = source.problems()
    if problems:
        listed = ", ".join(f"{count} with {reason}" for reason, count in problems.most_common())
        text = f"{location}: {problems.total()} of {len(source) + problems.total()} samples are left out: {listed}"
        warnings.warn(text, DiptychWarning, stacklevel=2)
    return source


def _options(location: str) -> tuple[str, dict[str, str]]:
    """The pattern and what stands after a question mark that is no sign of a glob or of a URL."""
    found = re.fullmatch(rf"(?P<pattern>.*)\?(?P<options>({'|'.join(_OPTIONS)})=.+)", location, re.DOTALL)
    if found is None:
        return location, {}
    options = dict(parse_qsl(found["options"], keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise DataError(f"{found['pattern']}: {unknown_name('option', name, _OPTIONS)}")
    return found["pattern"], options


def _cache_bytes(pattern: str, options: dict[str, str]) -> int:
    try:
        size = float(options.get("cache_gb", _CACHE_GB))
    except ValueError:
        size = 0.0
    if not size > 0:
        raise DataError(f"{pattern}: cache_gb is '{options['cache_gb']}'; it is a number of gigabytes above 0")
    return int(size * 1e9)


def _expand(pattern: str, cache: FileCache) -> list[Tar]:
    """The tars of one pattern, sorted; a range must be there from end to end."""
    spelled = _ranges(pattern)
    has_signs = any(sign in pattern for sign in "*?[")
    if is_remote(pattern):
        urls = list_remote(pattern) if "*" in pattern else spelled
        return [RemoteTar(url, cache) for url in urls]
    if len(spelled) > 1 or not has_signs:
        paths = [Path(name) for name in spelled]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DataError(f"{pattern}: {len(missing)} of {len(paths)} tars are not there, the first: {missing[0]}")
        return [LocalTar(path) for path in paths]
    path = Path(pattern)
    fixed = next(folder for folder in path.parents if not any(sign in str(folder) for sign in "*?["))
    if fixed.is_dir():
        listable(fixed)
    found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    if not found:
        raise DataError(f"{pattern}: no tar is called so")
    return [LocalTar(path) for path in found]


def _ranges(pattern: str) -> list[str]:
    """The names that a pattern with ranges stands for; leading zeros are kept.

    Raises:
        DataError: there are more than a million, a range is empty, or a number has more than 18 digits.

    >>> _ranges("a{08..10}.tar")
    ['a08.tar', 'a09.tar', 'a10.tar']
    """
    ends = [found.groups() for found in _RANGE.finditer(pattern)]
    longest = max((len(number) for pair in ends for number in pair), default=0)
    if longest > _MAX_DIGITS:
        raise DataError(f"{_shortened(pattern)}: a number has {longest:,} digits; at most {_MAX_DIGITS} are allowed")
    ranges = [range(int(first), int(last) + 1) for first, last in ends]
    count = 1
    for numbers, (first, last) in zip(ranges, ends, strict=True):
        if not numbers:
            raise DataError(
                f"{_shortened(pattern)}: the range {{{first}..{last}}} is empty; write the smaller number first"
            )
        count *= len(numbers)
        if count > _MAX_TARS:  # The product of the others may have any number of digits.
            raise DataError(
                f"{_shortened(pattern)}: its ranges name {count:,} tars or more; at most {_MAX_TARS:,} are allowed"
            )
    texts = _RANGE.split(pattern)[::3]  # Between them are both ends of each range.
    written = [
        [str(number).zfill(len(first)) for number in numbers] for numbers, (first, _) in zip(ranges, ends, strict=True)
    ]
    return [
        texts[0] + "".join(number + text for number, text in zip(numbers, texts[1:], strict=True))
        for numbers in product(*written)
    ]


def _shortened(pattern: str) -> str:
    return pattern if len(pattern) <= 200 else f"{pattern[:200]}..."


def _lacks_captions(index: TarIndex) -> bool:
    return bool((np.diff(index.caption_ends, prepend=0) == 0).any())


def _distinct_stems(names: list[str]) -> list[str]:
    """The tars' names without ending, with their folders' where two are called the same."""
    paths = [PurePosixPath(redacted(name).partition("?")[0] if is_remote(name) else name) for name in names]
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [f"{path.parent.name}/{path.stem}" for path in paths]
