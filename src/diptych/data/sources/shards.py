"""`shards:PATTERN`: local or remote WebDataset tars as a source with random access.

The pattern is a path, a folder, a glob, a range (`{000..127}.tar`), or several of these joined by `::`, as in webdataset and
open_clip's trainer. Each may be a URL that fsspec supports (`s3://`, `gs://`, `https://`).
"""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from diptych.core.cache import settled_stamp
from diptych.core.errors import DataError, DiptychWarning, unknown_name
from diptych.core.remote import FileCache, is_remote
from diptych.data.sources.benchmark_files import BenchmarkFiles, benchmark_files, read_lines
from diptych.data.sources.protocol import ColumnSource
from diptych.data.sources.tar_pattern import MAX_TARS, distinct_stems, shortened, tars_of
from diptych.data.sources.templates import FIVE_TEMPLATES, class_names, filled, readable, templates_of
from diptych.data.storage.blocks import RowColumns, by_stretch, joined, prefixed, ranges
from diptych.data.storage.columns import locate
from diptych.data.storage.oddities import Oddity, merged
from diptych.data.storage.tar_index import TarIndex
from diptych.data.storage.tars import LocalTar, RemoteTar, Tar, TarReader

_OPTIONS = ("cache_gb", "captions", "classes", "templates")
_CACHE_GB = 32.0
_NUM_INDEX_THREADS = 8
"""Number of threads that load indexes: over a network, they mostly wait."""


class ShardsSource(ColumnSource):
    """The samples of several tars, concatenated."""

    def __init__(
        self,
        tars: Sequence[Tar],
        *,
        templates: tuple[str, ...] = (),
        splits: Sequence[str | None] = (),
        files: BenchmarkFiles | None = None,
    ) -> None:
        files = files or BenchmarkFiles()
        with ThreadPoolExecutor(_NUM_INDEX_THREADS) as pool:
            self._indices = list(pool.map(lambda tar: tar.index(), tars))
        self._reader = TarReader(list(tars))
        # Reading a sample of a remote tar may download the tar.
        self.can_be_sampled = all(isinstance(tar, LocalTar) for tar in tars)
        self.block_ends = np.cumsum([len(index.keys) for index in self._indices], dtype=np.int64)
        self._starts = np.concatenate([[0], self.block_ends]).tolist()
        self._stems = distinct_stems([tar.name for tar in tars])
        self._split_of_tar = tuple(splits) or (None,) * len(tars)
        self.classes = _classes(self._indices, files.classes)
        label_ids = [_label_ids(index, self.classes, files.classes) for index in self._indices]
        self._labels: NDArray[np.int64] = np.concatenate(label_ids)
        self._given_templates = templates
        lacks_captions = any(map(_lacks_captions, self._indices))
        self.templates = templates or ((files.templates or FIVE_TEMPLATES) if lacks_captions else ())
        self.oddities = merged(_oddities(*pair) for pair in zip(self._indices, self._stems, strict=True))
        if self.templates and not files.classes and any((index.label_numbers >= 0).any() for index in self._indices):
            raise DataError(
                f"{tars[0].name}: its labels are numbers without names, which make no captions; put classnames.txt with one "
                "name per line next to it, or use shards:PATTERN?classes=FILE"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def image(self, index: int) -> bytes:
        """Return the content of the image file.

        Raises:
            ImageError: the tar cannot be read, or was truncated after it was indexed.
        """
        shard, row = locate(self._starts, index)
        offset, length = self._indices[shard].places[row].tolist()
        return self._reader.read(shard, offset, length)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the sample's captions, or templates with its class name, from the index."""
        shard, row = locate(self._starts, index)
        tar = self._indices[shard]
        start, end = int(tar.caption_ends[row - 1]) if row else 0, int(tar.caption_ends[row])
        captions = tuple([tar.captions[i] for i in range(start, end)])
        label = int(self._labels[index])
        if label < 0 or (captions and not self._given_templates):
            return captions
        return filled(self.templates, readable(self.classes[label]))

    def key(self, index: int) -> str:
        """Return the shard's name and the sample's key in it."""
        shard, row = locate(self._starts, index)
        return f"{self._stems[shard]}/{self._indices[shard].keys[row]}"

    def split(self, index: int) -> str | None:
        """Return the split of the tar's folder, else the split in the sample's JSON; None if there is none."""
        shard, row = locate(self._starts, index)
        return self._split_of_tar[shard] or self._indices[shard].splits[row]

    def image_size(self, index: int) -> int:
        """Return the size of the image in its tar, in bytes."""
        shard, row = locate(self._starts, index)
        return int(self._indices[shard].places[row, 1])

    def image_sizes(self, rows: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Return the sizes of several images in their tars, in bytes."""
        sizes = [self._indices[shard].places[numbers, 1] for shard, numbers in by_stretch(self._starts, rows)]
        return np.concatenate(sizes).astype(np.int64) if sizes else np.empty(0, dtype=np.int64)

    def image_stamp(self) -> str | None:
        """Return the states of the tars; None if one is remote."""
        tars = self._reader.tars
        return settled_stamp(Path(tar.name) for tar in tars) if self.can_be_sampled else None

    def columns(self, rows: NDArray[np.int64], /) -> RowColumns | None:
        """Return the keys, captions, labels and splits of several rows; None if captions are made from templates."""
        if self.templates:
            return None
        return joined([self._shard_columns(shard, numbers) for shard, numbers in by_stretch(self._starts, rows)])

    def _shard_columns(self, shard: int, numbers: NDArray[np.int64]) -> RowColumns:
        index = self._indices[shard]
        counts = np.diff(index.caption_ends, prepend=0)[numbers]
        captions = ranges(index.caption_ends[numbers] - counts, counts)
        split = self._split_of_tar[shard]
        return RowColumns(
            keys=prefixed(index.keys.take(numbers), f"{self._stems[shard]}/"),
            captions=index.captions.take(np.arange(len(index.captions))[captions]),
            num_captions=counts,
            labels=self._labels[self._starts[shard] + numbers],
            splits=np.zeros(len(numbers), dtype=np.int64) if split else index.splits.take(numbers),
            split_names=(split,) if split else index.splits.names,
        )

    def problems(self) -> Counter[str]:
        """Return the number of samples that were left out of all shards, by reason."""
        return sum((Counter(index.problems) for index in self._indices), Counter())


def read_shards(location: str) -> ShardsSource:
    """Read all tars of a pattern. Samples without an image or a caption are left out and counted.

    `?cache_gb=N` limits the local cache of remote tars, `?templates=FILE` makes captions from labels, `?classes=FILE` names
    labels that are numbers, and `?captions=lines` makes each line of a `.txt` a caption.

    Raises:
        ConfigError: a remote location needs an extra that is not installed.
        DataError: the pattern matches no tars, a file is missing or not a tar, or no sample is complete.
    """
    pattern, options = _options(location)
    named = list[tuple[str, str | None]]()
    for part in pattern.split("::"):
        named += tars_of(part)
        if len(named) > MAX_TARS:
            raise DataError(
                f"{shortened(pattern)}: names {len(named):,} tars or more; at most {MAX_TARS:,} are allowed"
            )
    source = _opened(pattern, named, options)
    tars = named
    if not len(source):
        raise DataError(f"{location}: {len(tars)} tars hold no samples")
    problems = source.problems()
    if problems:
        listed = ", ".join(f"{count} with {reason}" for reason, count in problems.most_common())
        text = f"{location}: {problems.total()} of {len(source) + problems.total()} samples are left out: {listed}"
        warnings.warn(text, DiptychWarning, stacklevel=2)
    return source


def _opened(pattern: str, named: Sequence[tuple[str, str | None]], options: dict[str, str]) -> ShardsSource:
    files = benchmark_files(Path(name).parent for name, _ in named if not is_remote(name))
    if options.get("captions", "lines") != "lines":
        raise DataError(f"{pattern}: captions is '{options['captions']}'; it is 'lines', or left out")
    lines = files.is_retrieval or "captions" in options
    cache = FileCache(max_bytes=_cache_bytes(pattern, options))
    tars: list[Tar] = [
        RemoteTar(name, cache, lines=lines) if is_remote(name) else LocalTar(Path(name), lines=lines)
        for name, _ in named
    ]
    if "classes" in options:
        files = files._replace(classes=read_lines(Path(options["classes"])))
    return ShardsSource(tars, templates=templates_of(options), splits=[split for _, split in named], files=files)


def _options(location: str) -> tuple[str, dict[str, str]]:
    """Return the pattern, and the options after a question mark that belongs neither to a glob nor to a URL."""
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


def _lacks_captions(index: TarIndex) -> bool:
    return bool((np.diff(index.caption_ends, prepend=0) == 0).any())


def _classes(indices: Sequence[TarIndex], given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the given classes, followed by those named in samples. Without given classes, label numbers are used as names.

    Raises:
        DataError: a label number has no class name among the given ones.
    """
    numbers = {int(number) for index in indices for number in np.unique(index.label_numbers) if number >= 0}
    if given and numbers and max(numbers) >= len(given):
        raise DataError(
            f"a label is {max(numbers)}, but the file of class names holds {len(given)}, from 0 on; complete it"
        )
    words = tuple(map(readable, given))
    named, _ = class_names(list({name for index in indices for name in index.labels.names}))
    return (*words, *(() if given else map(str, sorted(numbers))), *(name for name in named if name not in words))


def _label_ids(index: TarIndex, classes: tuple[str, ...], given: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the index of each sample's class, -1 for none."""
    class_ids = {name: i for i, name in reversed(list(enumerate(classes)))}  # For equal names, the first index.
    class_of_name = np.array([*(class_ids[readable(name)] for name in index.labels.names), -1], dtype=np.int64)
    by_name = class_of_name[index.labels.codes()]
    numbers = index.label_numbers
    if not given:
        unique, inverse = np.unique(numbers, return_inverse=True)
        numbers = np.array([class_ids.get(str(number), -1) for number in unique], dtype=np.int64)[inverse]
    return np.where(index.label_numbers >= 0, numbers, by_name)


def _oddities(index: TarIndex, stem: str) -> tuple[Oddity, ...]:
    """Return the oddities of one tar, with its name in the examples, and the samples that were left out."""
    own = (
        replace(oddity, examples=tuple(f"{stem}/{example}" for example in oddity.examples)) for oddity in index.oddities
    )
    left_out = (Oddity(f"samples with {reason}", "left out", num, (stem,)) for reason, num in index.problems.items())
    return (*own, *left_out)
