"""Build sign bits: choose the number of vectors that the first pass leaves, and check that the search is faster than a scan.

Shapes: E embedding, Q queries, K found.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from timeit import timeit

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.core.files import atomic_write
from diptych.index.approximate import SCORED, TOP, AnnInfo, Approximate, FileId
from diptych.index.exact import Codes, Vectors, nearest, scores_of
from diptych.index.signs import write

MIN_SPEEDUP = 1.0
"""Sign bits are rejected unless the search is at least this many times as fast as the exact scan."""
_PICTURES = 100
"""Number of picture queries for the measurement."""
_ENOUGH = 0.998
"""Target recall for the measured queries. It leaves a margin, since the recall of other queries must be at least 99 %: among
ten million vectors, a target of 99.5 % for 200 texts gave 98.9 % for 500 others, and 99.8 % gave 99.7 %."""
_TIMED = 5
"""Approximate number of queries that are timed."""


def build(
    vectors: Vectors, path: Path, *, codes: Codes | None = None, queries: Float32[ndarray, "Q E"] | None = None
) -> AnnInfo:
    """Write the sign bits of vectors, and measure the recall and the time of a search.

    Args:
        vectors: unit vectors, which are read block by block.
        path: the file to write. It is not written if the exact scan is faster.
        codes: codes of the vectors, for the exact scan and the second pass.
        queries: unit vectors of texts. The recall is measured on them in addition to picture queries.

    Raises:
        ConfigError: there are no vectors, or the exact scan is faster.
        OSError: the file cannot be written.
    """
    num = len(vectors)
    if num == 0:
        raise ConfigError("the index is empty; add pictures first")
    pictures = _between(vectors)
    kinds = [pictures] if queries is None or not len(queries) else [pictures, queries]
    with atomic_write(path) as tmp:
        write(vectors, tmp)
        file = FileId.of(tmp)
        about = AnnInfo(kind="signs", num=num, effort=min(num, SCORED), recall=0.0, bytes=file.bytes)
        all_queries = np.concatenate(kinds)
        rows, scores = nearest(vectors, all_queries, top=min(TOP, num), codes=codes)
        of_kind = np.repeat(np.arange(len(kinds)), [len(kind) for kind in kinds])
        ranks = Approximate(file, about).ranks(all_queries, rows)
        effort = min(num, max(SCORED, *(_effort(ranks[of_kind == kind]) for kind in range(len(kinds)))))
        while True:
            opened = Approximate(file, replace(about, effort=effort))
            found = opened.search(vectors, all_queries, top=min(TOP, num), codes=codes)[0]
            recall = min(_recall(vectors, all_queries, found, scores, of_kind == kind) for kind in range(len(kinds)))
            if recall >= _ENOUGH or effort == num:
                break
            effort = min(num, 2 * effort)
        timed = all_queries[:: max(1, len(all_queries) // _TIMED)]
        search_s = _time(lambda one: opened.search(vectors, one, top=TOP, codes=codes), timed)
        exact_s = _time(lambda one: nearest(vectors, one, top=TOP, codes=codes), timed)
        if search_s * MIN_SPEEDUP > exact_s:
            raise ConfigError(
                f"sign bits are no faster here: to find {_ENOUGH:.1%} of the {TOP} nearest of {num:,} vectors, {effort:,} must "
                f"be compared, which takes {1e3 * search_s:,.1f} ms a query; the exact scan takes {1e3 * exact_s:,.1f} ms"
            )
    return replace(
        about, effort=effort, recall=recall, search_ms=round(1e3 * search_s, 3), exact_ms=round(1e3 * exact_s, 3)
    )


def rewrite(vectors: Vectors, path: Path, about: AnnInfo) -> AnnInfo:
    """Write the bits of a damaged file again, with the same content. Returns the description with the new file size.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as tmp:
        write(vectors[: about.num], tmp)
        return replace(about, bytes=tmp.stat().st_size)


def _between(vectors: Vectors) -> Float32[ndarray, "Q E"]:
    """Unit vectors halfway between two random vectors, as picture queries."""
    rows = np.random.default_rng(0).integers(len(vectors), size=(2, _PICTURES))
    between = np.asarray(vectors[rows[0]], dtype=np.float32) + vectors[rows[1]]
    between /= np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-6)
    return np.asarray(between, dtype=np.float32)


def _effort(ranks: Int64[ndarray, "Q K"]) -> int:
    """The smallest effort that finds `_ENOUGH` of the nearest vectors."""
    ordered = np.sort(ranks, axis=None)
    return int(ordered[max(0, ceil(_ENOUGH * len(ordered)) - 1)])


def _recall(
    vectors: Vectors,
    queries: Float32[ndarray, "Q E"],
    found: Int64[ndarray, "Q K"],
    scores: Float32[ndarray, "Q K"],
    which: ndarray,
) -> float:
    """Recall of the queries that `which` selects. Any vector whose score is at least that of the last expected hit counts."""
    query, column = np.nonzero((found >= 0) & which[:, None])
    is_near = scores_of(vectors, queries, query, found[query, column]) >= scores[query, -1]
    return float(is_near.sum() / (np.count_nonzero(which) * found.shape[1]))


def _time(search: Callable[[Float32[ndarray, "Q E"]], object], queries: Float32[ndarray, "Q E"]) -> float:
    """Median time of a search for one query, in seconds."""
    return median(timeit(partial(search, one), number=1) for one in queries[:, None])
