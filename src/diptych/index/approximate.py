"""Approximate nearest-neighbor (ANN) search among millions of vectors, in three passes.

The first pass compares sign bits (`signs.py`), the second pass compares eight-bit codes of the vectors that remain, and the
third pass compares floats. The number of vectors that the first pass leaves is fixed when the bits are built: it is large
enough to find 99.8 % of the 10 nearest vectors, for picture queries and for text queries. Hits are ranked by the scores of the
exact scan (`exact.py`). The exact scan is used for hits after the first 100, and for queries with too few hits.
Shapes: N vectors, E embedding, Q queries, K found, R rows, C rows of a chunk, P pairs of a query and a row, F first hits.
"""

import json
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.deprecation import renamed_names
from diptych.core.lists import chunks
from diptych.core.program import command
from diptych.core.threads import in_threads
from diptych.index.exact import Codes, Vectors, nearest, rank, scores_of
from diptych.index.signs import Signs, smallest

AnnKind: TypeAlias = Literal["signs", "hnsw"]
"""Sign bits for an index in a folder, or pgvector's HNSW graph for an index in PostgreSQL."""

TOP = 10
"""Number of hits for which the recall is measured."""
DEPTH = 100
"""Maximum number of hits that are found with the bits. The exact scan finds further hits."""
SCORED = 4 * DEPTH
"""Number of vectors per query that the third pass compares. It is enough because the errors of codes are far smaller than the
spread of their products."""
_ROWS = 4096
"""Number of codes that are converted to floats at a time, so that they fit in the cache."""
_READERS = 16
"""Number of threads that read codes. There are more than cores because the threads wait for the disk if it is not cached."""


@dataclass(frozen=True, kw_only=True)
class AnnInfo:
    """Description of an ANN structure: what was built, its recall, and its speed."""

    kind: str
    """An `AnnKind`, or the name of a structure of an earlier version, which is no longer used."""
    num: int
    """Number of vectors in the structure. Vectors that were added later are compared exactly."""
    effort: int
    """Number of vectors per query that the first pass leaves for the second pass."""
    recall: float
    """Share of the `top` nearest vectors that are found, within [0, 1]: the lower value of picture queries and text queries."""
    top: int = TOP
    """Number of hits for which the recall was measured."""
    bytes: int | None = None
    """Size of the file in bytes; None if an earlier version wrote it."""
    search_ms: float | None = None
    """Time of an approximate search for one query in milliseconds, measured when the structure was built."""
    exact_ms: float | None = None
    """Time of an exact scan for one query in milliseconds, measured at the same time."""

    def rows(self) -> dict[str, str]:
        """The description as rows of the table `about`. Earlier versions read only the first row."""
        values = asdict(self)
        more = {f"nearly_{name}": str(value) for name in _MORE if (value := values.pop(name)) is not None}
        return {"nearly": json.dumps(values), **more}

    @classmethod
    def from_rows(cls, rows: Mapping[str, str]) -> "AnnInfo | None":
        """The description that `rows` wrote; None if nothing was built.

        Raises:
            ValueError: the rows are damaged.
        """
        if "nearly" not in rows:
            return None
        try:
            more: dict[str, Any] = {
                name: convert(rows[f"nearly_{name}"]) for name, convert in _MORE.items() if f"nearly_{name}" in rows
            }
            return cls(**json.loads(rows["nearly"]), **more)
        except TypeError as error:
            raise ValueError(str(error)) from None

    def __str__(self) -> str:
        times = "" if self.search_ms is None else f"; {self.search_ms:,.0f} ms a query, exactly {self.exact_ms:,.0f} ms"
        return (
            f"{self.kind} of {self.num:,} vectors, {self.effort:,} compared: "
            f"{100 * self.recall:.1f} % of the {self.top:,} nearest{times}"
        )


_MORE = {"top": int, "bytes": int, "search_ms": float, "exact_ms": float}
"""Properties with rows of their own, and their types."""
NOT_BUILT = dict.fromkeys(["nearly", "nearly_sha256", *(f"nearly_{name}" for name in _MORE)])
"""The rows of the table `about` for an index without an ANN structure."""


class FileId(NamedTuple):
    """Identifies the content of a file, even if another file later has the same path."""

    path: Path
    device: int
    inode: int
    modified_ns: int
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "FileId":
        """The id of the file that has this path now.

        Raises:
            OSError: no such file exists.
        """
        stat = path.stat()
        return cls(path, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)


class Approximate:
    """Approximate search with a file of sign bits."""

    def __init__(self, file: FileId, about: AnnInfo) -> None:
        """Map the file into memory.

        Raises:
            OSError: an earlier version built the structure, or the file is damaged or does not match the description.
        """
        self.about, self.file = about, file
        if about.kind != "signs":
            again = command("index", "build", file.path.parent, "--approximate")
            raise OSError(f"an earlier version built its structure ({about.kind}), build one again: {again}")
        if about.bytes not in {None, file.bytes}:
            raise OSError(f"{file.path.name} has {file.bytes:,} bytes of {about.bytes:,}")
        self._signs = Signs(file.path)
        if self._signs.num != about.num:
            raise OSError(f"{file.path.name} has {self._signs.num:,} vectors of {about.num:,}")

    def search(
        self, vectors: Vectors, queries: Float32[ndarray, "Q E"], *, top: int, codes: Codes | None = None
    ) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
        """Rows and inner products of the hits, sorted by decreasing inner product; equal ones are sorted by row.

        Vectors that were added after the bits were built are compared exactly. The candidates do not depend on `top`, so a
        smaller request returns the first hits of a larger one. If `top` is larger than `DEPTH`, the further hits are those of
        the exact scan that were not found before, in the same order.

        Args:
            vectors: all vectors. The bits describe the first ones.
            queries: unit vectors.
            top: number of hits per query, at most the number of vectors.
            codes: eight-bit codes of the vectors; without them, the second pass compares the vectors.
        """
        if top == 0 or not len(queries):
            return nearest(vectors, queries, top=top, codes=codes)
        if top > DEPTH:
            first = self.search(vectors, queries, top=DEPTH, codes=codes)
            return _continued(*first, *nearest(vectors, queries, top=top, codes=codes))
        needed, num = min(DEPTH, len(vectors)), self.about.num
        query, row = self._candidates(vectors, queries, codes)
        with _random_reads(vectors):
            score = scores_of(vectors, queries, query, row)
        some = None if codes is None else Codes(codes.integers[num:], codes.scale[num:], codes.error[num:])
        later, later_scores = nearest(vectors[num:], queries, top=needed, codes=some)
        later_query, column = np.nonzero(later >= 0)
        rows, scores = rank(
            np.concatenate([query, later_query]),
            np.concatenate([row, num + later[later_query, column]]),
            np.concatenate([score, later_scores[later_query, column]]),
            num_queries=len(queries),
            top=needed,
        )
        is_short = np.flatnonzero(rows[:, -1] < 0)
        rows, scores = rows[:, :top], scores[:, :top]
        rows[is_short], scores[is_short] = nearest(vectors, queries[is_short], top=top, codes=codes)
        return rows, scores

    def _candidates(
        self, vectors: Vectors, queries: Float32[ndarray, "Q E"], codes: Codes | None
    ) -> tuple[Int64[ndarray, " P"], Int64[ndarray, " P"]]:
        """The query and the row of each pair that remains after the first two passes."""
        left, kept = [], self._signs.nearest(queries, self.about.effort)
        compared, scale = (vectors, None) if codes is None else (codes.integers, codes.scale)
        with _random_reads(compared), _random_reads(scale):
            for one, rows in zip(queries, kept, strict=True):
                left.append(rows[smallest(-_products(compared, scale, one, rows), SCORED)])
        return np.repeat(np.arange(len(queries)), [len(rows) for rows in left]), np.concatenate([*left, np.arange(0)])

    def ranks(self, queries: Float32[ndarray, "Q E"], rows: Int64[ndarray, "Q K"]) -> Int64[ndarray, "Q K"]:
        """For each row, the smallest `effort` with which the first pass finds it."""
        return self._signs.ranks(queries, rows)


def _products(
    compared: ndarray, scale: Float32[ndarray, " N"] | None, query: Float32[ndarray, " E"], rows: Int64[ndarray, " R"]
) -> Float32[ndarray, " R"]:
    """Inner products of a query with codes, or with vectors if `scale` is None. NaN is replaced by -inf."""

    def of_part(part: Int64[ndarray, " C"]) -> Float32[ndarray, " C"]:
        parts = chunks(len(part), _ROWS)
        products = [np.asarray(compared[part[some]], dtype=np.float32) @ query for some in parts]
        return np.concatenate([*products, np.empty(0, dtype=np.float32)])

    products = np.concatenate(in_threads(of_part, np.array_split(rows, _READERS if len(rows) > _ROWS else 1)))
    products = products if scale is None else products * scale[rows]
    return np.where(np.isnan(products), -np.inf, products).astype(np.float32)


@contextmanager
def _random_reads(array: ndarray | None) -> Iterator[None]:
    """Disable read-ahead for an array that is mapped from a file. By default, Linux reads 128 KiB around each page."""
    file: object = array
    while isinstance(file, ndarray):
        file = file.base
    if not isinstance(file, mmap.mmap) or not hasattr(mmap, "MADV_RANDOM"):
        yield
        return
    file.madvise(mmap.MADV_RANDOM)
    try:
        yield
    finally:
        file.madvise(mmap.MADV_NORMAL)


def _continued(
    first: Int64[ndarray, "Q F"],
    first_scores: Float32[ndarray, "Q F"],
    rows: Int64[ndarray, "Q K"],
    scores: Float32[ndarray, "Q K"],
) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
    """The hits of a larger answer (`rows`, `scores`), reordered so that `first` comes first."""
    num = first.shape[1]
    for query in np.flatnonzero((first != rows[:, :num]).any(axis=1)):
        others = ~np.isin(rows[query], first[query])
        for side, head in ((rows, first), (scores, first_scores)):
            side[query] = np.concatenate([head[query], side[query][others]])[: side.shape[1]]
    return rows, scores


__getattr__ = renamed_names(__name__, {"About": "AnnInfo", "Kind": "AnnKind"})
