"""Divide a source into splits, by a versioned rule."""

import json
from array import array
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.core.array_cache import MIN_ROWS, ArrayCache
from diptych.core.errors import ConfigError, DataError
from diptych.core.file_states import FileStates
from diptych.core.fingerprint import FingerprintBuilder
from diptych.core.randomness import stable_fraction
from diptych.data.sources.copies import copy_groups
from diptych.data.sources.protocol import Source, row_chunks
from diptych.data.sources.split_names import usual_name
from diptych.data.sources.subset import Subset
from diptych.data.storage.columns import NameColumn, TextColumn

SPLIT_RULE = 2
"""The current version of the rule. Runs and bundles store theirs; those that store none use version 1."""
FIRST_SPLIT_RULE = 1
_CACHE_VERSION = 1
"""Increment it with any change that could assign the same data to other splits."""


class _Cut(NamedTuple):
    """The split of each sample, as an index into `names`."""

    codes: NDArray[np.int32]
    names: list[str]
    has_own_val: bool


class Splits:
    """The splits of a source: its own if it has them, else `train` and `val` by a hash of the split key.

    If a source has its own splits but no `val`, part of its `train` becomes `val`.

    Under rule 2, samples whose images are identical to the byte are assigned to the same split: by the smallest of their split
    keys, or to the split that the source names for one of them. `validation`, `valid` and `dev` mean `val` for every source.

    Under rule 1, a sample that the hash assigns to `val` stays in `train` if `train` has an identical image. Split names are
    used unchanged, and keys are those of that version.

    The result for 10,000 samples or more is cached, under a hash of the keys, of the splits that the source names, and of the
    states of all image files.

    Args:
        source: the source to divide.
        val_fraction: fraction of the samples in `val`, within (0, 1).
        rule: version of the rule, 1 or 2.

    Raises:
        ConfigError: `val_fraction` is not within (0, 1).
    """

    def __init__(self, source: Source, *, val_fraction: float = 0.05, rule: int = SPLIT_RULE) -> None:
        if not 0 < val_fraction < 1:
            raise ConfigError(f"val_fraction is {val_fraction}; it must lie within (0, 1)")
        self.source = source.under_first_rule() if rule == FIRST_SPLIT_RULE else source
        self._rule, self._val_fraction = rule, val_fraction
        self._codes, self._names, self.has_own_val = self._cached_or_cut()

    @cached_property
    def _files(self) -> FileStates | None:
        """The states of all image files. They are not needed for a small source that names all splits."""
        return self.source.image_files(np.arange(len(self.source), dtype=np.int64))

    @property
    def names(self) -> list[str]:
        """The split name of each sample."""
        return [self._names[code] for code in self._codes.tolist()]

    def sizes(self) -> dict[str, int]:
        """Return the number of samples in each split, in the order of first occurrence."""
        found, first, counts = np.unique(self._codes, return_index=True, return_counts=True)
        return {self._names[found[i]]: int(counts[i]) for i in np.argsort(first).tolist()}

    def take(self, split: str) -> Subset:
        """Return the samples of a split; `all` selects every sample.

        Raises:
            DataError: there is no such split. The message lists the existing splits with their sizes.
        """
        if split == "all":
            return Subset(self.source, range(len(self.source)), sizes=self._image_sizes())
        rows = np.flatnonzero(self._codes == self._names.index(split)) if split in self._names else np.empty(0, int)
        if not len(rows):
            sizes = ", ".join(f"{name} ({size})" for name, size in self.sizes().items())
            num = len(self.source)
            raise DataError(f"the data has no split '{split}'; it has: {sizes or 'nothing'}, and all ({num})")
        known = self._image_sizes()
        return Subset(self.source, array("q", rows.tobytes()), sizes=None if known is None else known[rows])

    def _image_sizes(self) -> NDArray[np.int64] | None:
        """Return the sizes of all image files; None if they were not needed yet."""
        files = self._files if "_files" in vars(self) else None
        return None if files is None else files.sizes

    def _cached_or_cut(self) -> _Cut:
        """Return the splits from the cache if nothing that they depend on has changed, else compute them."""
        key = self._cache_key() if len(self.source) >= MIN_ROWS else None
        if key is None:
            return self._cut()
        cache = ArrayCache()
        cached = cache.get("splits", key)
        if cached is not None:
            return _Cut(cached["codes"], json.loads(str(cached["names"])), bool(cached["has_own_val"]))
        cut = self._cut()
        if self._files is None or self._files.is_settled():
            names, has_own_val = np.array(json.dumps(cut.names)), np.array(cut.has_own_val)
            cache.put("splits", key, {"codes": cut.codes, "names": names, "has_own_val": has_own_val})
        return cut

    def _cache_key(self) -> list[Any] | None:
        """Return everything that the splits depend on; None if changes of images cannot be detected."""
        images = self.source.image_stamp() if self._files is None else self._files.digest()
        if images is None:
            return None
        return [_CACHE_VERSION, self._rule, self._val_fraction, _hash_of_keys(self.source), images]

    def _cut(self) -> _Cut:
        source, is_first = self.source, self._rule == FIRST_SPLIT_RULE
        own = [source.split(i) for i in range(len(source))]
        if not is_first:
            usual = {name: usual_name(name) for name in set(own)}
            own = [usual[name] for name in own]
        has_own_val = "val" in own
        column = NameColumn(name or "train" for name in own)
        train, val = column.code("train"), column.code("val")
        codes = column.codes()
        can_move = [name is None or (name == "train" and not has_own_val) for name in own]
        free = np.flatnonzero(np.array(can_move, dtype=bool))
        for i in free.tolist():
            if stable_fraction(source.split_key(i), "split") < self._val_fraction:
                codes[i] = val
        if is_first:
            self._keep_copies_in_train(codes, free, train=train)
        elif len(free):
            self._assign_copies_together(codes, free, train=train)
        return _Cut(codes, column.names, has_own_val)

    def _keep_copies_in_train(self, codes: NDArray[np.int32], free: NDArray[np.int64], *, train: int) -> None:
        files = None if self._files is None else self._files.take(free)
        for group in copy_groups(self.source, free, apart_in=codes, files=files):
            codes[group] = train

    def _assign_copies_together(self, codes: NDArray[np.int32], free: NDArray[np.int64], *, train: int) -> None:
        is_free = np.zeros(len(codes), dtype=bool)
        is_free[free] = True
        for group in copy_groups(self.source, range(len(codes)), apart_in=codes, files=self._files):
            rows = np.array(group)
            fixed = codes[rows[~is_free[rows]]].tolist()
            leader = min(group, key=self.source.split_key)
            codes[rows[is_free[rows]]] = (train if train in fixed else fixed[0]) if fixed else codes[leader]


def take_split(source: Source, split: str, *, val_fraction: float = 0.05, rule: int = SPLIT_RULE) -> Subset:
    """Return the samples of a split, as `Splits` defines it; `all` selects every sample.

    Args:
        source: the source to divide.
        split: name of the split, or `all`.
        val_fraction: as for `Splits`.
        rule: as for `Splits`.

    Raises:
        DataError: there is no such split. The message lists the existing splits with their sizes.
    """
    if split == "all":
        return Subset(source.under_first_rule() if rule == FIRST_SPLIT_RULE else source, range(len(source)))
    return Splits(source, val_fraction=val_fraction, rule=rule).take(split)


def _hash_of_keys(source: Source) -> list[str]:
    """Return hashes of the keys of all samples and of the splits that the source names."""
    builder = FingerprintBuilder("sizes")
    for rows in row_chunks(source):
        columns = source.columns(rows)
        if columns is not None:
            builder.add("keys", columns.keys.content, lengths=columns.keys.lengths)
            builder.add_splits(columns.splits, columns.split_names)
            continue
        keys, splits = TextColumn(map(source.key, rows.tolist())), NameColumn(map(source.split, rows.tolist()))
        block = keys.take(np.arange(len(keys)))
        builder.add("keys", block.content, lengths=block.lengths)
        builder.add_splits(splits.codes(), splits.names)
    found = builder.build(classes=(), parts=())
    return [found.keys, found.splits]
