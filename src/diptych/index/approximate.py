"""Nearly the nearest among millions: faiss's inverted lists and graphs, an extra.

Their recall is measured for 100 hits. Their hits are ranked by the scores of the exact scan (`exact.py`). The exact scan is
used for hits after the first 100, for queries with too few hits, and if the last hit may be tied with vectors that were not
found.
Shapes: N vectors, E embedding, Q queries, K found.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.core.figures import percent
from diptych.core.files import atomic_write
from diptych.index.exact import Codes, Vectors, nearest, rank, scores_of

Kind: TypeAlias = Literal["ivf", "hnsw"]
"""Inverted lists, of which some are scanned (`ivf`), or a graph that is walked (`hnsw`): faster, larger, slower to build."""

_CHUNK = 65_536
_LEARNT_FROM = 200_000
"""Vectors that lists are learnt from, at most."""
_TRIED, _TOP = 200, 100
_TOP_BEFORE = 10
"""Number of hits for which earlier versions measured the recall."""
_ENOUGH = 0.98
"""Recall that the effort of a search is raised to."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What was built, and how well it finds."""

    kind: Kind
    num: int
    """Of the first so many vectors; those after them are scanned."""
    effort: int
    """Lists that are scanned, or candidates that a walk keeps."""
    recall: float
    """Share of the nearest `top` vectors that are found, for queries halfway between two vectors."""
    top: int = _TOP_BEFORE
    """Number of hits for which the recall was measured."""
    bytes: int | None = None
    """Size of the file; None if an earlier version wrote it."""

    def __str__(self) -> str:
        return f"{self.kind} of {self.num:,} vectors finds {percent(self.recall)} of the {self.top:,} nearest"

    def rows(self) -> dict[str, str]:
        """The description as rows of the table `about`. Earlier versions read only the first row."""
        known = {name: value for name, value in asdict(self).items() if name not in {"top", "bytes"}}
        return {"nearly": json.dumps(known), "nearly_top": str(self.top), "nearly_bytes": str(self.bytes)}

    @classmethod
    def from_rows(cls, rows: Mapping[str, str]) -> "About | None":
        """The inverse of `rows`; None if nothing was built.

        Raises:
            ValueError: the rows are damaged.
        """
        if "nearly" not in rows:
            return None
        try:
            more: dict[str, Any] = {
                name: int(rows[f"nearly_{name}"]) for name in ("top", "bytes") if f"nearly_{name}" in rows
            }
            return cls(**json.loads(rows["nearly"]), **more)
        except TypeError as error:
            raise ValueError(str(error)) from None


class FileId(NamedTuple):
    """Identifies a file, even if another one has the same name and description."""

    path: Path
    device: int
    inode: int
    modified_ns: int
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "FileId":
        """The id of the file that now has this path.

        Raises:
            OSError: no such file exists.
        """
        found = path.stat()
        return cls(path, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


class Approximate:
    """A built structure, opened for search."""

    def __init__(self, file: FileId, about: About) -> None:
        """Map the file into memory.

        Raises:
            ConfigError: faiss is not installed.
            OSError: the file is damaged, or does not match the description.
        """
        faiss = _faiss()
        flags = faiss.IO_FLAG_MMAP if about.kind == "ivf" else 0
        self.about, self.file = about, file
        if about.bytes not in {None, file.bytes}:
            raise OSError(f"{file.path.name} has {file.bytes:,} bytes of {about.bytes:,}")
        try:
            self._index = faiss.read_index(str(file.path), flags)
            _set_effort(self._index, about.kind, about.effort)
        except (RuntimeError, AttributeError) as error:
            raise OSError(str(error).partition("\n")[0]) from None
        if self._index.ntotal != about.num:
            raise OSError(f"{file.path.name} has {self._index.ntotal:,} vectors of {about.num:,}")

    def search(
        self, vectors: Vectors, queries: Float32[ndarray, "Q E"], *, top: int, codes: Codes | None = None
    ) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
        """Rows and inner products in the order of `nearest`: falling inner products, equal ones by row.

        Vectors that were added after the structure was built are compared exactly. The query of the structure, and whether its
        hits are used, do not depend on `top`. Therefore a smaller request returns the first hits of a larger one. If `top` is
        larger than the number that the recall was measured for, the further hits are those of the exact scan that the structure
        did not find, in order.

        Args:
            vectors: all vectors; the structure contains the first ones.
            queries: unit vectors.
            top: number of hits per query, at most the number of vectors.
            codes: codes of the vectors, for the exact scan.
        """
        if top == 0:
            return nearest(vectors, queries, top=top, codes=codes)
        if top > self.about.top:
            first = self.search(vectors, queries, top=self.about.top, codes=codes)
            return _continued(*first, *nearest(vectors, queries, top=top, codes=codes))
        wanted, needed = min(self.about.top + 1, self.about.num), min(self.about.top, len(vectors))
        query, row = _pairs(self._index.search(np.ascontiguousarray(queries), wanted)[1])
        score = scores_of(vectors, queries, query, row)
        num_found, lowest = np.bincount(query, minlength=len(queries)), np.full(len(queries), np.inf, dtype=np.float32)
        np.minimum.at(lowest, query, score)
        later, later_scores = nearest(vectors, queries, top=needed, among=np.arange(self.about.num, len(vectors)))
        later_query, column = np.nonzero(later >= 0)
        rows, scores = rank(
            np.concatenate([query, later_query]),
            np.concatenate([row, later[later_query, column]]),
            np.concatenate([score, later_scores[later_query, column]]),
            num_queries=len(queries),
            top=needed,
        )
        # Vectors with the same score as the last hit may be missing.
        is_cut = (scores[:, -1] <= lowest) & (num_found < self.about.num)
        unsure = np.flatnonzero((rows[:, -1] < 0) | is_cut)
        rows, scores = rows[:, :top], scores[:, :top]
        rows[unsure], scores[unsure] = nearest(vectors, queries[unsure], top=top, codes=codes)
        return rows, scores


def _continued(
    first: Int64[ndarray, "Q F"],
    first_scores: Float32[ndarray, "Q F"],
    rows: Int64[ndarray, "Q K"],
    scores: Float32[ndarray, "Q K"],
) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
    """The first hits, and after them the others of a larger answer."""
    num = first.shape[1]
    for query in np.flatnonzero((first != rows[:, :num]).any(axis=1)):
        others = ~np.isin(rows[query], first[query])
        for side, head in ((rows, first), (scores, first_scores)):
            side[query] = np.concatenate([head[query], side[query][others]])[: side.shape[1]]
    return rows, scores


def _pairs(found: Int64[ndarray, "Q K"]) -> tuple[Int64[ndarray, " P"], Int64[ndarray, " P"]]:
    """The query and the row of each hit, without duplicates. A row of -1 means no hit and is dropped."""
    rows = np.sort(found, axis=1)
    is_new = rows >= 0
    is_new[:, 1:] &= rows[:, 1:] != rows[:, :-1]
    query, column = np.nonzero(is_new)
    return query, rows[query, column]


def build(vectors: Vectors, kind: Kind, path: Path) -> About:
    """Build a structure and write it. The effort is increased until it finds 98 % of the 100 nearest vectors.

    Raises:
        ConfigError: faiss is not installed, or there is nothing to build from.
        OSError: the file cannot be written.
    """
    faiss = _faiss()
    num, dim = vectors.shape
    if num == 0:
        raise ConfigError("the index is empty; add pictures first")
    rng = np.random.default_rng(0)
    if kind == "ivf":
        num_lists = max(1, min(int(4 * sqrt(num)), num // 39))
        index = faiss.index_factory(dim, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
        sample = np.sort(rng.choice(num, size=min(num, _LEARNT_FROM), replace=False))
        index.train(np.asarray(vectors[sample], dtype=np.float32))
    else:
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, num, _CHUNK):
        index.add(np.asarray(vectors[start : start + _CHUNK], dtype=np.float32))
    effort, recall = _find_effort(index, kind, vectors, rng)
    try:
        with atomic_write(path) as tmp:
            faiss.write_index(index, str(tmp))
    except RuntimeError as error:  # Of a disk that is full, for one.
        raise OSError(28, str(error).partition("\n")[0]) from None
    return About(kind=kind, num=num, effort=effort, recall=recall, top=_TOP, bytes=path.stat().st_size)


def _find_effort(index: Any, kind: Kind, vectors: Vectors, rng: np.random.Generator) -> tuple[int, float]:
    rows = rng.integers(len(vectors), size=(2, _TRIED))
    between = np.asarray(vectors[rows[0]], dtype=np.float32) + vectors[rows[1]]
    between /= np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-6)
    top = min(_TOP, len(vectors))
    needed = nearest(vectors, between, top=top)[1][:, -1]
    limit = index.nlist if kind == "ivf" else 1024
    effort = 8 if kind == "ivf" else 32
    while True:
        effort = min(effort, limit)
        _set_effort(index, kind, effort)
        query, row = _pairs(index.search(between, top)[1])
        recall = float((scores_of(vectors, between, query, row) >= needed[query]).sum() / (top * _TRIED))
        if recall >= _ENOUGH or effort == limit:
            return effort, recall
        effort *= 2


def _set_effort(index: Any, kind: Kind, effort: int) -> None:
    if kind == "ivf":
        index.nprobe = effort
    else:
        index.hnsw.efSearch = effort


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415  (an extra)
    except ImportError:
        raise ConfigError("an approximate index needs an extra: pip install 'diptych[ann]'") from None
    return faiss
