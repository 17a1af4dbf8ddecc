"""Sign bits of vectors, for a fast first pass over millions: 64 bytes per vector of dimension 512, compared with NumPy.

Each bit is the sign of a coordinate of v - m after a random rotation, where m is the mean. The inner product of a query with a
vector is estimated from the bits: W is the linear map that reconstructs vectors from their bits with the least squared error,
so the weights of the bits for a query q are W q. They are rounded to -3, -1, 1 or 3 times half their standard deviation. A
weight is then two bits, and up to constants the estimate is -(h + 2 H), where h and H are the Hamming distances between the
bits of the vector and the lower and upper bits of the weights. RaBitQ (Gao and Long 2024) has weights of four bits and no W.
Without W, the bits miss most of the nearest vectors of text queries: texts and pictures have different means, and W removes the
directions in which the vectors do not differ.

The file has a header (`_Header`), then W, then blocks of `_BLOCK` vectors. A block contains the first 64 bits of all its
vectors, then the next 64 bits and so on, so that one NumPy operation counts the bits of many vectors.
Shapes: N vectors, E embedding, B bits (E, rounded up to whole words), W words, P planes, D distances, C vectors of a block,
Q queries, K rows per query, R found.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt16, UInt64
from numpy import ndarray

from diptych.core.cpu import num_cores
from diptych.core.lists import chunks
from diptych.core.threads import in_threads
from diptych.index.exact import Vectors

_MAGIC: Final = b"diptych signs 1\n"
_BLOCK = 8192
"""Number of vectors per block. The words and counts of a block fit in the cache of a core."""
_PLANES: Final = 2
"""Number of bits per weight of a query."""
_SAMPLE = 32_768
"""Maximum number of vectors from which the mean and W are computed."""
_RIDGE = 1e-3
"""Regularization of the least-squares problem for W, relative to the number of sampled vectors."""
_QUERIES = 16
"""Number of queries per pass over the file. Each query has candidates in memory."""


class _Header(NamedTuple):
    """The header of a file, after the magic bytes."""

    num: int
    """Number of vectors."""
    dim: int
    """Embedding dimension."""
    block: int
    """Number of vectors per block."""


def write(vectors: Vectors, path: Path) -> None:
    """Write the sign bits of vectors to a file, block by block.

    Raises:
        OSError: the file cannot be written.
    """
    num, dim = vectors.shape
    rotation, mean, decoder = _fit(vectors)
    limits = rotation @ mean
    with path.open("wb") as file:
        header = np.array(_Header(num, dim, _BLOCK), dtype="<i8")
        file.write(_MAGIC + header.tobytes() + decoder.astype("<f4").tobytes())
        for start in range(0, num, _BLOCK):
            is_set = np.zeros((_BLOCK, len(rotation)), dtype=bool)
            part = np.asarray(vectors[start : start + _BLOCK], dtype=np.float32)
            is_set[: len(part)] = part @ rotation.T > limits
            words = np.packbits(is_set, axis=1, bitorder="little").view("<u8")
            file.write(np.ascontiguousarray(words.T).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _fit(vectors: Vectors) -> tuple[Float32[ndarray, "B E"], Float32[ndarray, " E"], Float32[ndarray, "B E"]]:
    """A random rotation, and the mean and W of a sample of the vectors."""
    num, dim = vectors.shape
    num_bits, rng = -(-dim // 64) * 64, np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((num_bits, dim)))[0].astype(np.float32)
    rows = np.arange(num) if num <= _SAMPLE else np.unique(rng.integers(num, size=_SAMPLE))
    sample = np.asarray(vectors[rows], dtype=np.float32)
    sample = sample[np.isfinite(sample).all(axis=1)]
    mean = sample.mean(axis=0) if len(sample) else np.zeros(dim, dtype=np.float32)
    sample = sample - mean
    bits = np.where(sample @ rotation.T > 0, np.float32(1), np.float32(-1))
    bits -= bits.mean(axis=0) if len(bits) else 0
    gram = (bits.T @ bits).astype(np.float64)
    gram[np.diag_indices(num_bits)] += _RIDGE * len(sample) + 1e-6
    return rotation, mean, np.linalg.solve(gram, (bits.T @ sample).astype(np.float64)).astype(np.float32)


class Signs:
    """A file of sign bits, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            OSError: the file does not exist, is damaged, or is not a file of sign bits.
        """
        start = len(_MAGIC) + 8 * len(_Header._fields)
        with path.open("rb") as file:
            magic, numbers = file.read(len(_MAGIC)), file.read(start - len(_MAGIC))
        if magic != _MAGIC or len(numbers) < start - len(_MAGIC):
            raise OSError(f"{path.name} is damaged or not a file of sign bits")
        self.num, self.dim, self._block = np.frombuffer(numbers, dtype="<i8").tolist()
        words = -(-self.dim // 64)
        shape = (-(-self.num // max(self._block, 1)), words, self._block)
        blocks_start = start + 64 * words * self.dim * 4
        if min(self.num, self.dim, self._block) < 1 or path.stat().st_size != blocks_start + 8 * int(np.prod(shape)):
            raise OSError(f"{path.name} is damaged: its size does not match its header")
        self._decoder = np.fromfile(path, dtype="<f4", count=64 * words * self.dim, offset=start).reshape(-1, self.dim)
        self._blocks = np.memmap(path, dtype="<u8", mode="r", offset=blocks_start, shape=shape)

    def nearest(self, queries: Float32[ndarray, "Q E"], num: int) -> list[Int64[ndarray, " R"]]:
        """For each query, the sorted rows of the `num` largest estimated products; of equal products, the first rows."""
        found: list[Int64[ndarray, " R"]] = []
        for some in chunks(len(queries), _QUERIES):
            parts = in_threads(partial(self._collect, self._planes(queries[some]), num), self._parts())
            found += [_Smallest.joined(of_query, num) for of_query in zip(*parts, strict=True)]
        return found

    def _collect(self, planes: UInt64[ndarray, "Q P W"], num: int, part: slice) -> list["_Smallest"]:
        best = [_Smallest(num) for _ in planes]
        for query, first, distances in self._distances(planes, part):
            best[query].offer(distances, first)
        return best

    def ranks(self, queries: Float32[ndarray, "Q E"], rows: Int64[ndarray, "Q K"]) -> Int64[ndarray, "Q K"]:
        """For each row, an upper bound of the smallest `num` for which `nearest` finds it. A row of -1 has rank 0."""
        ranks = np.zeros_like(rows)
        for some in chunks(len(queries), _QUERIES):
            planes = self._planes(queries[some])
            num_nearer = np.cumsum(sum(in_threads(partial(self._counts, planes), self._parts())), axis=1)
            for query, of_query in enumerate(rows[some]):
                block, column = np.divmod(np.maximum(of_query, 0), self._block)
                words = self._blocks[block, :, column]
                distances = sum(
                    2**i * np.bitwise_count(words ^ plane).sum(axis=1) for i, plane in enumerate(planes[query])
                )
                ranks[some.start + query] = np.where(of_query < 0, 0, num_nearer[query, distances])
        return ranks

    def _counts(self, planes: UInt64[ndarray, "Q P W"], part: slice) -> Int64[ndarray, "Q D"]:
        """Number of vectors by query and distance."""
        counts = np.zeros((len(planes), 1 + (2**_PLANES - 1) * 64 * planes.shape[2]), dtype=np.int64)
        for query, _, distances in self._distances(planes, part):
            counts[query] += np.bincount(distances, minlength=counts.shape[1])
        return counts

    def _planes(self, queries: Float32[ndarray, "Q E"]) -> UInt64[ndarray, "Q P W"]:
        """The lower and the upper bit of each weight, packed like the bits of the vectors."""
        weights = queries @ self._decoder.T
        limit = weights.std(axis=1, keepdims=True)
        codes = (weights > -limit).astype(np.uint8) + (weights > 0) + (weights > limit)
        planes = np.stack([codes & 1, codes >> 1], axis=1)
        return np.packbits(planes, axis=2, bitorder="little").view("<u8")

    def _parts(self) -> list[slice]:
        """Ranges of blocks, one for each thread."""
        return list(chunks(len(self._blocks), max(1, -(-len(self._blocks) // num_cores()))))

    def _distances(
        self, planes: UInt64[ndarray, "Q P W"], part: slice
    ) -> Iterator[tuple[int, int, UInt16[ndarray, " C"]]]:
        """Yield query, first row and distances of each block. The array of distances is reused."""
        words = np.empty(self._blocks.shape[1:], dtype=np.uint64)
        counts, sums = words.astype(np.uint8), np.empty((_PLANES, self._block), dtype=np.uint16)
        for number in range(part.start, part.stop):
            first = number * self._block
            block, size = np.asarray(self._blocks[number]), min(self._block, self.num - first)
            for query, of_query in enumerate(planes):
                for plane, out in zip(of_query, sums, strict=True):
                    np.bitwise_xor(block, plane[:, None], out=words)
                    np.bitwise_count(words, out=counts)
                    np.add.reduce(counts, axis=0, dtype=np.uint16, out=out)
                np.left_shift(sums[1], 1, out=sums[1])
                np.add(sums[0], sums[1], out=sums[0])
                yield query, first, sums[0, :size]


class _Smallest:
    """Collects the rows with the smallest distances; of equal distances, the first rows."""

    def __init__(self, num: int) -> None:
        self._num, self._limit = num, np.uint16(np.iinfo(np.uint16).max)
        self._rows: list[Int64[ndarray, " C"]] = []
        self._distances: list[UInt16[ndarray, " C"]] = []
        self._num_collected = 0

    def offer(self, distances: UInt16[ndarray, " C"], first: int) -> None:
        """Add the distances of consecutive rows from `first` on. Calls must be in ascending order of rows."""
        columns = np.flatnonzero(distances < self._limit)
        self._rows.append(columns + first)
        self._distances.append(distances[columns])
        self._num_collected += len(columns)
        if self._num_collected > 2 * (self._num + _BLOCK):
            self._shrink()

    def _shrink(self) -> None:
        rows, distances = np.concatenate(self._rows), np.concatenate(self._distances)
        kept = smallest(distances, self._num)
        self._rows, self._distances, self._num_collected = [rows[kept]], [distances[kept]], len(kept)
        if len(kept) == self._num:  # Later rows with the same distance come after these.
            self._limit = self._distances[0].max()

    @classmethod
    def joined(cls, parts: Sequence["_Smallest"], num: int) -> Int64[ndarray, " R"]:
        """The rows with the `num` smallest distances of consecutive parts."""
        rows = np.concatenate([rows for part in parts for rows in part._rows])
        distances = np.concatenate([distances for part in parts for distances in part._distances])
        return rows[smallest(distances, num)]


def smallest(values: ndarray, num: int) -> Int64[ndarray, " R"]:
    """Sorted positions of the `num` smallest values; of equal values, the first ones.

    >>> smallest(np.array([5, 3, 9, 3, 3]), 2)
    array([1, 3])
    """
    if num >= len(values):
        return np.arange(len(values))
    limit = np.partition(values, num - 1)[num - 1]
    is_kept = values < limit
    is_kept[np.flatnonzero(values == limit)[: num - np.count_nonzero(is_kept)]] = True
    return np.flatnonzero(is_kept)
