"""Nearly the nearest among millions: faiss's inverted lists and graphs, an extra.

Shapes: N vectors, E embedding, Q queries, K found.
"""

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.core.files import atomic_write
from diptych.index.exact import Vectors, nearest

Kind: TypeAlias = Literal["ivf", "hnsw"]
"""Inverted lists, of which some are scanned (`ivf`), or a graph that is walked (`hnsw`): faster, larger, slower to build."""

_CHUNK = 65_536
_LEARNT_FROM = 200_000
"""Vectors that lists are learnt from, at most."""
_TRIED, _TOP = 200, 10
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
    """Share of the 10 nearest that it finds, of queries halfway between two vectors."""


class Approximate:
    """A built structure, opened for search."""

    def __init__(self, path: Path, about: About) -> None:
        """Map the file into memory.

        Raises:
            ConfigError: faiss is not installed.
            OSError: the file is missing or damaged.
        """
        faiss = _faiss()
        flags = faiss.IO_FLAG_MMAP if about.kind == "ivf" else 0
        self.about, self.path = about, path
        try:
            self._index = faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise OSError(str(error).partition("\n")[0]) from None
        _set_effort(self._index, about.kind, about.effort)

    def search(
        self, queries: Float32[ndarray, "Q E"], *, top: int
    ) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
        """Rows and inner products, the nearest first; where fewer are found, rows of -1."""
        scores, rows = self._index.search(np.ascontiguousarray(queries), min(top, self.about.num))
        return rows, scores

    def search_all(
        self, vectors: Vectors, queries: Float32[ndarray, "Q E"], *, top: int
    ) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
        """As `search`, with the vectors that came after it was built, which are compared exactly."""
        rows, scores = self.search(queries, top=top)
        later = np.arange(self.about.num, len(vectors))
        more_rows, more_scores = nearest(vectors, queries, top=top, among=later)
        rows, scores = np.concatenate([rows, more_rows], axis=1), np.concatenate([scores, more_scores], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def build(vectors: Vectors, kind: Kind, path: Path) -> About:
    """Build a structure and write it; the effort is raised until it finds 98 % of what is nearest.

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
    return About(kind=kind, num=num, effort=effort, recall=recall)


def _find_effort(index: Any, kind: Kind, vectors: Vectors, rng: np.random.Generator) -> tuple[int, float]:
    rows = rng.integers(len(vectors), size=(2, _TRIED))
    between = np.asarray(vectors[rows[0]], dtype=np.float32) + vectors[rows[1]]
    between /= np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-6)
    top = min(_TOP, len(vectors))
    expected = nearest(vectors, between, top=top)[0]
    limit = index.nlist if kind == "ivf" else 1024
    effort = 8 if kind == "ivf" else 32
    while True:
        effort = min(effort, limit)
        _set_effort(index, kind, effort)
        found = index.search(between, top)[1]
        recall = float(np.mean([len(set(a) & set(b)) / top for a, b in zip(found, expected, strict=True)]))
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
