"""Search an index in a folder: apply filters, and read the entries of a page of hits.

A filter is applied in one of two ways, with the same result. If it selects many entries, the nearest vectors of the whole index
are computed, and the filter is applied to the entries of as many of them as the page needs. If it selects few entries, it is
applied to all entries first, and the query is compared only with the vectors of the selected ones.
Shapes: E embedding, Q queries, K found, M vectors that a filter selects, P places.
"""

import json
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.deprecation import renamed_parameter
from diptych.core.errors import DiptychWarning
from diptych.index.approximate import DEPTH, Approximate, FileId
from diptych.index.connection import Connection
from diptych.index.dialects import SQLITE, Condition, where
from diptych.index.entry import Entry, SearchHit
from diptych.index.exact import Vectors, nearest
from diptych.index.filters import Filter
from diptych.index.local_store import LocalStore
from diptych.index.tables import to_entry

_SAMPLE = 256
"""Number of vectors on whose entries a filter is tried, to estimate the share that it selects."""
_LEAST_SHARE = 0.02
"""A filter that selects a smaller share of the sample is applied to all entries first."""
_SMALL = 10_000
"""With at most this number of vectors, a filter is always applied to all entries first, which takes milliseconds."""
_KEPT_FILTERS = 8
"""Number of filters whose selected vectors are cached."""
_PLACES_AT_A_TIME = 50_000
"""Maximum number of places in a statement."""
_HITS = "(SELECT value AS place FROM json_each(?)) CROSS JOIN vectors USING (place) CROSS JOIN entries USING (digest)"
"""Tables for lookups by place. CROSS JOIN fixes the order of the tables; with a plain join, SQLite may read all vectors."""


@dataclass
class _Passing:
    """Cache of the vectors that recent filters selected, valid for one state of the database."""

    state: tuple[Connection, int, int]
    places: "OrderedDict[Filter, Int64[ndarray, ' M']]" = field(default_factory=OrderedDict)


class LocalSearch(LocalStore):
    """Base of `LocalIndex` with the search methods."""

    def __init__(self, folder: Path) -> None:
        """Open an existing index.

        Raises:
            IndexingError: the index does not exist, or it is damaged.
        """
        super().__init__(folder)
        self._passing: _Passing | None = None
        self._ann: Approximate | None = None
        self._unusable: tuple[Path, str] | None = None
        """Path of the ANN structure that could not be opened in the last search, and the reason."""

    @renamed_parameter("chosen", "selected")
    def search(
        self, queries: Float32[ndarray, "Q E"], *, top: int, skip: int = 0, selected: Filter | None = None
    ) -> list[list[SearchHit]]:
        """The entries nearest to each query (`Index.search`). A search with a filter is exact."""
        with self._lock:
            found = self._read_snapshot(lambda: self._search(queries, top, skip, selected))
            unusable, self._unusable = self._unusable, None
        # Do not warn if another process has just replaced the structure.
        if unusable is not None and unusable[0] == self._ann_path(self._file().codes_number):
            message = f"{self.place}: is searched exactly; {unusable[1]}"
            warnings.warn(message, DiptychWarning, stacklevel=3)  # Skip the decorator, too.
        return found

    def _search(
        self, queries: Float32[ndarray, "Q E"], top: int, skip: int, selected: Filter | None
    ) -> list[list[SearchHit]]:
        condition, vectors, answers = where(selected, SQLITE), self._vectors(), dict[int, list[SearchHit]]()
        among, num_requested = self._start(selected, condition, top, len(vectors))
        left = list(range(len(queries)))
        while left:
            num = len(vectors) if among is None else len(among)
            num_requested = min(num_requested, num)
            rows, scores = self._nearest(vectors, queries[left], num_requested, among, is_exact=selected is not None)
            is_all = num_requested == num
            pages = self._pages(rows, scores, condition, top=top, skip=skip, is_all=is_all)
            answers |= {number: page for number, page in zip(left, pages, strict=True) if page is not None}
            # Some of the nearest vectors may have no entry, or none that the filter selects. Request more for these queries.
            left = [number for number, page in zip(left, pages, strict=True) if page is None]
            # Sign bits give up to `DEPTH` hits at the same cost.
            num_requested = DEPTH if num_requested < DEPTH < 4 * num_requested else 4 * num_requested
            if left and among is None and selected is not None:
                among, num_requested = self._places(selected, condition), top
        return [answers[number] for number in range(len(queries))]

    def _start(
        self, selected: Filter | None, condition: Condition, top: int, num: int
    ) -> tuple[Int64[ndarray, " M"] | None, int]:
        """The places of the vectors to compare first (None for all), and the number of nearest vectors to request."""
        if selected is None:
            return None, top
        if num > _SMALL and selected not in self._current_passing().places:
            sample = np.random.default_rng(0).choice(num, _SAMPLE, replace=False)
            share = (self._num_entries_at(sample, condition) > 0).mean()
            num_requested = ceil(1.5 * top / max(share, 1e-9)) + 32
            if share >= _LEAST_SHARE and num_requested <= num // 8:
                return None, num_requested
        return self._places(selected, condition), top

    def _places(self, selected: Filter, condition: Condition) -> Int64[ndarray, " M"]:
        """The sorted places of the vectors whose entries a filter selects."""
        known = self._current_passing().places
        if selected not in known:
            sql = f"SELECT place FROM entries CROSS JOIN vectors USING (digest){condition.sql}"
            rows = self._all(sql, condition.values)
            known[selected] = np.unique(np.fromiter((place for (place,) in rows), dtype=np.int64, count=len(rows)))
        known.move_to_end(selected)
        while len(known) > _KEPT_FILTERS:
            known.popitem(last=False)
        return known[selected]

    def _current_passing(self) -> _Passing:
        """The cache of filter results, which is cleared after each change of the database."""
        version = int(self._one("PRAGMA data_version"))  # Counts the changes by other connections.
        state = self._opened, version, self._opened.database.total_changes
        if self._passing is None or self._passing.state != state:
            self._passing = _Passing(state)
        return self._passing

    def _pages(
        self,
        rows: Int64[ndarray, "Q K"],
        scores: Float32[ndarray, "Q K"],
        condition: Condition,
        *,
        top: int,
        skip: int,
        is_all: bool,
    ) -> list[list[SearchHit] | None]:
        """The hits of each query from `skip` up to `top`; None if `rows` have too few entries and are not all vectors."""
        page_rows = list[tuple[Int64[ndarray, "_"], Float32[ndarray, "_"], int] | None]()
        for places, cosines, nums in zip(rows, scores, self._nums_at(rows, condition), strict=True):
            ends = np.cumsum(nums)
            if not is_all and nums.sum() < top:
                page_rows.append(None)
                continue
            shown = slice(int(np.searchsorted(ends, skip, "right")), int(np.searchsorted(ends, top)) + 1)
            num_before = int(ends[shown.start - 1]) if shown.start else 0
            page_rows.append((places[shown], cosines[shown], num_before))
        entries = self._entries_at([page[0] for page in page_rows if page is not None], condition)
        pages = list[list[SearchHit] | None]()
        for page in page_rows:
            if page is None:
                pages.append(None)
                continue
            pairs = zip(page[0].tolist(), page[1].tolist(), strict=True)
            found = [SearchHit(entry=entry, score=score) for place, score in pairs for entry in entries.get(place, ())]
            pages.append(found[max(0, skip - page[2]) : max(0, top - page[2])])
        return pages

    def _nums_at(self, rows: Int64[ndarray, "Q K"], condition: Condition) -> Int64[ndarray, "Q K"]:
        """The number of entries that have each vector and that the filter selects."""
        is_found = rows >= 0
        if not condition.sql and self._has_one_entry_each():
            return is_found.astype(np.int64)
        places, inverse = np.unique(rows[is_found], return_inverse=True)
        nums = np.zeros(rows.shape, dtype=np.int64)
        nums[is_found] = self._num_entries_at(places, condition)[inverse]
        return nums

    def _has_one_entry_each(self) -> bool:
        """Whether each vector is known to have exactly one entry. False if the database has no counts: counting is slow."""
        if not self._keeps_counts():
            return False
        num = self._num_vectors()
        return self._count("unused") == 0 and self._count("entries") - self._count("lost") == num

    def _num_entries_at(self, places: Int64[ndarray, " P"], condition: Condition) -> Int64[ndarray, " P"]:
        order = np.argsort(places)
        nums = np.zeros(len(places), dtype=np.int64)
        for start in range(0, len(places), _PLACES_AT_A_TIME):
            part = order[start : start + _PLACES_AT_A_TIME]
            sql = f"SELECT place FROM {_HITS}{condition.sql}"
            found = self._all(sql, (json.dumps(places[part].tolist()), *condition.values))
            at = np.searchsorted(places[part], np.fromiter((place for (place,) in found), dtype=np.int64))
            nums[part] = np.bincount(at, minlength=len(part))
        return nums

    def _entries_at(self, places: list[Int64[ndarray, "_"]], condition: Condition) -> dict[int, list[Entry]]:
        """By place of a vector, the entries that have it and that the filter selects, sorted by key."""
        entries: dict[int, list[Entry]] = {}
        known = np.unique(np.concatenate(places)) if places else np.empty(0, dtype=np.int64)
        for start in range(0, len(known), _PLACES_AT_A_TIME):
            requested = json.dumps(known[start : start + _PLACES_AT_A_TIME].tolist())
            sql = f"SELECT place, {self._columns()} FROM {_HITS}{condition.sql} ORDER BY key"
            for place, *row in self._all(sql, (requested, *condition.values)):
                entries.setdefault(place, []).append(to_entry(row))
        return entries

    def _nearest(
        self,
        vectors: Vectors,
        queries: Float32[ndarray, "Q E"],
        top: int,
        among: Int64[ndarray, " M"] | None,
        *,
        is_exact: bool,
    ) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
        """The nearest of all vectors or of `among`; approximately, if an ANN structure exists and `is_exact` is False."""
        codes = self._file().codes(len(vectors))
        ann = None if is_exact else self._open_ann(len(vectors))
        if ann is None:
            return nearest(vectors, queries, top=top, among=among, codes=codes)
        return ann.search(vectors, queries, top=top, codes=codes)

    def _open_ann(self, num: int) -> Approximate | None:
        """The ANN structure of an index with `num` vectors; None if there is none, or it cannot be used."""
        about, path = self._ann_info(), self._ann_path(self._file().codes_number)
        if about is None:
            self._ann = None
            return None
        try:
            file = FileId.of(path)
            if self._ann is None or (self._ann.about, self._ann.file) != (about, file):
                self._ann = None  # Free the old one first.
                self._ann = Approximate(file, about)
            if about.num > num:
                raise OSError(f"{path.name} has {about.num:,} vectors, and the index {num:,}")
        except OSError as error:
            self._unusable = path, str(error)
            return None
        return self._ann
