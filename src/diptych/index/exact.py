"""The nearest of all vectors, compared one and all. Shapes: N vectors, E embedding, Q queries, K found."""

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

_CHUNK = 65_536


def nearest(
    vectors: Float32[ndarray, "N E"], queries: Float32[ndarray, "Q E"], *, top: int
) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
    """Rows and inner products of the nearest vectors, the nearest first; K is `top` or N.

    Vectors are read chunk by chunk, so that memory does not grow with their number.

    >>> nearest(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[1]], top=1)[0]
    array([[1]])
    """
    num = min(top, len(vectors))
    rows = np.zeros((len(queries), 0), dtype=np.int64)
    scores = np.zeros((len(queries), 0), dtype=np.float32)
    for start in range(0, len(vectors), _CHUNK):
        chunk = queries @ vectors[start : start + _CHUNK].T
        candidates = _largest(chunk, num)
        rows = np.concatenate([rows, candidates + start], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(chunk, candidates, axis=1)], axis=1)
        kept = _largest(scores, num)
        rows, scores = np.take_along_axis(rows, kept, axis=1), np.take_along_axis(scores, kept, axis=1)
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _largest(scores: Float32[ndarray, "Q N"], num: int) -> Int64[ndarray, "Q K"]:
    """Where the largest of each row are, in any order."""
    if scores.shape[1] <= num:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape).astype(np.int64)
    return np.argpartition(scores, scores.shape[1] - num, axis=1)[:, scores.shape[1] - num :].astype(np.int64)
