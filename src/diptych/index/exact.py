"""The nearest of all vectors: compared one and all, or ruled out by eight-bit codes and only the rest compared.

A code is a vector's scale and integers of it. What rounding leaves of a vector v and a query q bounds how far the product of
their codes can be from theirs: |q.v - q'.v'| <= |q - q'| |v'| + |q| |v - v'| (Cauchy and Schwarz). A vector whose product is
more than twice that below the K-th best cannot be among the nearest; the others are compared as they are, so that the answer is
that of the plain scan. Shapes: N vectors, E embedding, Q queries, K found, P pairs of a query and a vector.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8, Int64
from numpy import ndarray

from diptych.core.device import has_fast_int8

_CHUNK = 65_536
_TILE = 2**21
"""Products of codes at a time: they stay in the cache."""
_SMALLEST_TILE = 1024
"""Vectors at a time, at least."""
_QUERIES = 256
_FEW = 10_000
"""So many vectors are compared sooner than they are coded."""
_LARGEST = 127
_ROUNDING = 1e-5
"""More than float32 loses in any of these sums."""

Vectors: TypeAlias = Float[ndarray, "N E"]
"""Of float32, or of float16 as a file may keep them."""


@dataclass(frozen=True)
class Codes:
    """Vectors in eight bits."""

    integers: Int8[ndarray, "N E"]
    scale: Float32[ndarray, " N"]
    error: Float32[ndarray, " N"]
    """Length of what rounding took from each."""

    def __len__(self) -> int:
        return len(self.scale)


def encode(vectors: Vectors) -> Codes:
    """The codes of vectors.

    >>> encode(np.array([[1, 0.5]], dtype=np.float32)).integers
    array([[127,  64]], dtype=int8)
    """
    full = np.asarray(vectors, dtype=np.float32)
    scale = np.maximum(np.abs(full).max(axis=1), np.finfo(np.float32).tiny) / np.float32(_LARGEST)
    integers = np.rint(full / scale[:, None]).astype(np.int8)
    error = np.linalg.norm(full - integers * scale[:, None], axis=1)
    return Codes(integers, scale, error.astype(np.float32))


def nearest(
    vectors: Vectors,
    queries: Float32[ndarray, "Q E"],
    *,
    top: int,
    among: Int64[ndarray, " M"] | None = None,
    codes: Codes | None = None,
) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
    """Rows and inner products of the nearest vectors, the nearest first; K is `top` or as many as there are.

    Args:
        vectors: read chunk by chunk, so that memory does not grow with their number.
        queries: of unit length.
        top: so many of each query.
        among: only these rows.
        codes: of the vectors, if there are any and this CPU is fast with them.

    >>> nearest(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[1]], top=1)[0]
    array([[1]])
    """
    num = len(vectors) if among is None else len(among)
    parts = []
    is_coded = codes is not None and has_fast_int8() and num >= max(_FEW, top, 1)
    for start in range(0, max(1, len(queries)), _QUERIES):
        part = queries[start : start + _QUERIES]
        if codes is not None and is_coded and len(part):
            parts.append(_by_codes(vectors, codes, part, top, among))
        else:
            parts.append(_one_and_all(vectors, part, top, among))
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([scores for _, scores in parts])


def _one_and_all(
    vectors: Vectors, queries: Float32[ndarray, "Q E"], top: int, among: Int64[ndarray, " M"] | None
) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
    rows = np.zeros((len(queries), 0), dtype=np.int64)
    scores = np.zeros((len(queries), 0), dtype=np.float32)
    for places, chunk in _chunks(vectors, among, _CHUNK):
        products = queries @ np.asarray(chunk, dtype=np.float32).T
        candidates = _largest(products, top)
        rows = np.concatenate([rows, places[candidates]], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(products, candidates, axis=1)], axis=1)
        kept = _largest(scores, top)
        rows, scores = np.take_along_axis(rows, kept, axis=1), np.take_along_axis(scores, kept, axis=1)
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _by_codes(
    vectors: Vectors,
    codes: Codes,
    queries: Float32[ndarray, "Q E"],
    top: int,
    among: Int64[ndarray, " M"] | None,
) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
    asked = encode(queries)
    left = torch.from_numpy(asked.integers)
    num_queries = len(queries)
    best = np.full((num_queries, top), -np.inf, dtype=np.float32)
    found: list[tuple[Int64[ndarray, " P"], Int64[ndarray, " P"], Float32[ndarray, " P"]]] = []
    slack = np.zeros(num_queries, dtype=np.float32)
    for places, integers in _chunks(codes.integers, among, max(_SMALLEST_TILE, _TILE // num_queries)):
        scale, error = codes.scale[places], float(codes.error[places].max())
        products = torch._int_mm(left, torch.from_numpy(integers).T) * torch.from_numpy(scale)
        slack = np.maximum(slack, asked.error * (1 + error) + error + _ROUNDING).astype(np.float32)
        if not found and len(places) >= top:
            best[:, -1] = torch.topk(products, top).values[:, -1].numpy() * asked.scale
        floor = (best[:, -1] - 2 * slack) / asked.scale
        query, column = (products >= torch.from_numpy(floor)[:, None]).nonzero(as_tuple=True)
        score = products[query, column].numpy() * asked.scale[query.numpy()]
        found.append((query.numpy(), places[column.numpy()], score))
        best = _merge(best if len(found) > 1 else np.full_like(best, -np.inf), query.numpy(), score)
    pair, row, product = (np.concatenate(side) for side in zip(*found, strict=True))
    kept = product >= (best[:, -1] - 2 * slack)[pair]
    return _exactly(vectors, queries, pair[kept], row[kept], top)


def _merge(
    best: Float32[ndarray, "Q K"], query: Int64[ndarray, " P"], score: Float32[ndarray, " P"]
) -> Float32[ndarray, "Q K"]:
    """The best scores of each query with some more, falling."""
    num_queries, top = best.shape
    order = np.lexsort((-score, query))
    query, score = query[order], score[order]
    rank = np.arange(len(query)) - np.searchsorted(query, np.arange(num_queries))[query]
    new = np.full_like(best, -np.inf)
    is_near = rank < top
    new[query[is_near], rank[is_near]] = score[is_near]
    return -np.sort(-np.concatenate([best, new], axis=1), axis=1)[:, :top]


def _exactly(
    vectors: Vectors,
    queries: Float32[ndarray, "Q E"],
    query: Int64[ndarray, " P"],
    row: Int64[ndarray, " P"],
    top: int,
) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
    """The nearest of some pairs, of which each query has at least K."""
    score = np.empty(len(row), dtype=np.float32)
    for start in range(0, len(row), _CHUNK // 4):
        part = slice(start, start + _CHUNK // 4)
        score[part] = np.einsum("pe,pe->p", np.asarray(vectors[row[part]], dtype=np.float32), queries[query[part]])
    order = np.lexsort((row, -score, query))
    first = np.searchsorted(query[order], np.arange(len(queries)))
    kept = order[first[:, None] + np.arange(top)]
    return row[kept], score[kept]


def _chunks(
    rows: ndarray, among: Int64[ndarray, " M"] | None, size: int
) -> Iterator[tuple[Int64[ndarray, " C"], ndarray]]:
    """Some rows at a time, with their numbers; at least once."""
    num = len(rows) if among is None else len(among)
    for start in range(0, max(1, num), size):
        end = min(start + size, num)
        if among is None:
            yield np.arange(start, end), rows[start:end]
        else:
            yield among[start:end], rows[among[start:end]]


def _largest(scores: Float32[ndarray, "Q N"], num: int) -> Int64[ndarray, "Q K"]:
    """Where the largest of each row are, in any order."""
    if scores.shape[1] <= num:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape).astype(np.int64)
    return np.argpartition(scores, scores.shape[1] - num, axis=1)[:, scores.shape[1] - num :].astype(np.int64)
