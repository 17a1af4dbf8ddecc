"""Vectors of an index, normalized on access. Shapes: V vectors, N contents, M selected contents, E embedding."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from numpy import ndarray

from diptych.core.lists import chunks

_CHUNK = 4096
_SHORTEST = np.float32(1e-12)


class UnitVectors:
    """The vectors of contents, normalized to unit length in float32. Vectors of length 0 stay 0.

    Args:
        vectors: an array, which can be mapped from a file. It is not copied.
        rows: for each content, the row of its vector; if None, content i has row i.
    """

    def __init__(self, vectors: Float[ndarray, "V E"], rows: Int64[ndarray, " N"] | None = None) -> None:
        self._vectors = vectors
        self._rows = np.arange(len(vectors)) if rows is None else rows
        self.dim = vectors.shape[1]
        norms = [np.linalg.norm(self._read(part), axis=1) for part in chunks(len(self), _CHUNK)]
        self._norms = np.maximum(np.concatenate([*norms, np.empty(0, np.float32)]), _SHORTEST)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, contents: slice | Int64[ndarray, " M"]) -> Float32[ndarray, "M E"]:
        unit = self._read(contents)
        unit /= self._norms[contents, None]
        return unit

    def is_valid(self) -> Bool[ndarray, " N"]:
        """Whether all numbers of each vector are finite."""
        return np.isfinite(self._norms)

    def is_zero(self) -> Bool[ndarray, " N"]:
        """Whether each vector has length 0, so that its cosine with every vector is 0."""
        return self._norms <= _SHORTEST

    def _read(self, contents: slice | Int64[ndarray, " M"]) -> Float32[ndarray, "M E"]:
        return self._vectors[self._rows[contents]].astype(np.float32)
