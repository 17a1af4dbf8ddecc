"""An append-only file of vectors, and files with their eight-bit codes, which can be rebuilt from the vectors.

vectors-0.f32  vectors in float32, or .f16 in float16; the number is incremented when the file is rewritten
codes-0.i8     integers of the codes (`exact.py`)
codes-0.f32    scale and error of the codes
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from diptych.core.deprecation import renamed_names
from diptych.core.files import atomic_write
from diptych.index.checksums import Block, block_ranges, hash_block, missing_rows, named_rows
from diptych.index.exact import Codes, Vectors, encode

VectorDtype: TypeAlias = Literal["float32", "float16"]
"""Number format of the vectors in the file."""

NEXT_ADD = "the next index add"
"""The command that repairs an index, for messages of `verify`."""
AGAIN = f"{NEXT_ADD} embeds the pictures again"
"""Advice for messages about lost vectors."""
_SUFFIX = {"float32": "f32", "float16": "f16"}
_CHUNK = 65_536
"""Number of vectors that are read at a time."""


class VectorFile:
    """A file of vectors and the files of their codes. The caller knows how many of the vectors are valid.

    Args:
        folder: the folder of the files.
        number: number in the name of the file of vectors.
        dim: embedding dimension.
        kind: number format of the vectors.
        codes: number in the names of the files of codes; by default that of the vectors.
    """

    def __init__(self, folder: Path, number: int, dim: int, kind: VectorDtype, *, codes: int | None = None) -> None:
        self.dim, self.kind = dim, np.dtype(kind).newbyteorder("<")
        self.path = folder / f"vectors-{number}.{_SUFFIX[kind]}"
        self.codes_number = number if codes is None else codes
        self._integers, self._scales = (folder / f"codes-{self.codes_number}.{suffix}" for suffix in ("i8", "f32"))

    def paths(self) -> tuple[Path, Path, Path]:
        """The file of vectors and the two files of codes."""
        return self.path, self._integers, self._scales

    def create(self) -> None:
        """Create empty files.

        Raises:
            OSError: the files cannot be written.
        """
        for path in self.paths():
            path.write_bytes(b"")

    def append(self, vectors: Vectors, first: int) -> list[Block]:
        """Write vectors from row `first` on, flush them, and return their checksums. Later rows are removed.

        Raises:
            OSError: the disk is full, or the files cannot be written.
        """
        kept = np.ascontiguousarray(vectors, dtype=self.kind)
        _write(self.path, first * self.dim * self.kind.itemsize, kept)
        codes = None
        if self._num_codes() >= first:
            codes = _as_written(encode(kept))
            _write(self._integers, first * self.dim, codes[0])
            _write(self._scales, first * 8, codes[1])
        return self._hash(kept, codes, first, first)

    def blocks(self, num: int) -> list[Block]:
        """Checksums of the first `num` vectors as they are now, for an index without checksums.

        Raises:
            OSError: the file does not exist.
            ValueError: the file is too short.
        """
        return self._hash(self.read(num), self._raw_codes(num), 0, 0) if num else []

    def _hash(self, vectors: ndarray, codes: tuple[ndarray, ndarray] | None, first: int, offset: int) -> list[Block]:
        """Checksums of the rows from `first` on. `offset` is the number of the first row of the arrays."""
        blocks = []
        for start, num in block_ranges(first, len(vectors), self.dim * self.kind.itemsize):
            rows = slice(start - offset, start - offset + num)
            of_codes = (None, None) if codes is None else (hash_block(codes[0][rows]), hash_block(codes[1][rows]))
            blocks.append(Block(start, num, hash_block(vectors[rows]), *of_codes))
        return blocks

    def read(self, num: int) -> Vectors:
        """The first `num` vectors, mapped into memory.

        Raises:
            OSError: the file does not exist.
            ValueError: the file is too short.
        """
        if num == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        return np.memmap(self.path, dtype=self.kind, mode="r", shape=(num, self.dim))

    def codes(self, num: int) -> Codes | None:
        """The codes of the first `num` vectors, mapped into memory; None if some are missing."""
        raw = self._raw_codes(num)
        if raw is None:
            return None
        integers, scales = raw
        return Codes(integers, scales[:, 0], scales[:, 1])  # Views, which are read on access.

    def _raw_codes(self, num: int) -> tuple[ndarray, ndarray] | None:
        if num == 0 or self._num_codes() < num:
            return None
        try:
            integers = np.memmap(self._integers, dtype=np.int8, mode="r", shape=(num, self.dim))
            return integers, np.memmap(self._scales, dtype="<f4", mode="r", shape=(num, 2))
        except (OSError, ValueError):
            return None

    def make_codes(self, num: int, blocks: Sequence[Block]) -> list[Block]:
        """Rewrite the codes of the first `num` vectors, and return the blocks with the checksums of the new codes.

        Raises:
            OSError: the files cannot be written.
            ValueError: the file of vectors is too short.
        """
        vectors = self.read(num)
        with ExitStack() as stack:  # Readers may have the old files mapped.
            integers, scales = (stack.enter_context(atomic_write(path)) for path in (self._integers, self._scales))
            for start in range(0, num, _CHUNK):
                new = _as_written(encode(vectors[start : start + _CHUNK]))
                _write(integers, start * self.dim, new[0])
                _write(scales, start * 8, new[1])
        codes = self._raw_codes(num)
        if codes is None:
            return []
        return [
            block._replace(integers=hash_block(codes[0][block.rows]), scales=hash_block(codes[1][block.rows]))
            for block in blocks
        ]

    def copy(self, places: Int64[ndarray, " M"], target: "VectorFile") -> list[Block]:
        """Write the vectors at the given places, which are sorted, to another file. Returns their checksums."""
        vectors, blocks = self.read(int(places[-1]) + 1 if len(places) else 0), list[Block]()
        target.create()
        for start in range(0, len(places), _CHUNK):
            blocks += target.append(vectors[places[start : start + _CHUNK]], start)
        return blocks

    def intact(self, blocks: Sequence[Block]) -> Bool[ndarray, " N"]:
        """Whether each row has the right checksum and unit length.

        Raises:
            OSError: the file cannot be read.
        """
        num = max((block.rows.stop for block in blocks), default=0)
        intact = np.zeros(num, dtype=bool)
        vectors = self.read(min(num, self._num_bytes() // (self.dim * self.kind.itemsize)))
        for block in blocks:
            if block.rows.stop <= len(vectors) and hash_block(vectors[block.rows]) == block.vectors:
                intact[block.rows] = _are_unit(vectors[block.rows])
        return intact

    def damaged_vectors(self, num: int, blocks: Sequence[Block]) -> str | None:
        """A message that lists the rows with wrong checksums in the file of vectors; None if there are none.

        Raises:
            OSError: the file does not exist.
            ValueError: the file is too short.
        """
        return _damage(self.path, self.read(num), blocks, "vectors")

    def is_whole(self, num: int) -> bool:
        """Whether the files are long enough for `num` vectors. Their content is not read."""
        return self._num_bytes() >= num * self.dim * self.kind.itemsize and self._num_codes() >= num

    def remarks(self, num: int) -> list[str]:
        """A remark if the file has more than `num` vectors, which is not a fault."""
        extra = self._num_bytes() - num * self.dim * self.kind.itemsize
        if extra <= 0:
            return []
        return [
            f"{self.path.name} has {extra:,} bytes of an addition that was interrupted or is under way; "
            "the next addition writes over them"
        ]

    def faults(self, num: int, blocks: Sequence[Block] | None) -> list[str]:
        """Messages about faults of the first `num` vectors and what to do about them; empty if there are none.

        Args:
            num: number of valid vectors.
            blocks: their checksums, sorted by first row; None for an index without checksums.
        """
        needed, present = num * self.dim * self.kind.itemsize, self._num_bytes()
        if present < needed:
            return [f"{self.path.name} has {present:,} bytes of {needed:,}; {AGAIN}"]
        if blocks is not None:
            if missing_rows(blocks, num):
                return [f"the checksums do not belong to these vectors; {AGAIN}"]
            damaged = self.damaged_vectors(num, blocks)
            if damaged is not None:
                return [f"{damaged}; {AGAIN}"]
        return self._not_unit(num) or self.faults_of_codes(num, blocks)

    def _not_unit(self, num: int) -> list[str]:
        vectors = self.read(num)
        for start in range(0, num, _CHUNK):
            bad = np.flatnonzero(~_are_unit(vectors[start : start + _CHUNK]))
            if len(bad):
                return [f"{len(bad)} vectors are not of unit length, the first is number {start + bad[0]}; {AGAIN}"]
        return []

    def faults_of_codes(self, num: int, blocks: Sequence[Block] | None) -> list[str]:
        """Messages about damaged codes, which are compared with `blocks`, or with the codes of the vectors if it is None."""
        if num == 0:
            return []
        again = f"{NEXT_ADD} rebuilds them"
        codes = self._raw_codes(num)
        if codes is None or any(block.integers is None for block in blocks or ()):
            return [f"its codes are not those of its vectors; {again}"]
        if blocks is None:
            return [] if _are_codes(self.read(num), codes) else [f"its codes are not those of its vectors; {again}"]
        faults = (
            _damage(self._integers, codes[0], blocks, "integers"),
            _damage(self._scales, codes[1], blocks, "scales"),
        )
        return [f"{fault}; {again}" for fault in faults if fault is not None]

    def unlink(self) -> None:
        """Remove the files. Processes that have opened them can still read."""
        self.path.unlink(missing_ok=True)
        self.unlink_codes()

    def unlink_codes(self) -> None:
        """Remove only the codes."""
        for path in (self._integers, self._scales):
            path.unlink(missing_ok=True)

    def _num_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _num_codes(self) -> int:
        try:
            return min(self._integers.stat().st_size // self.dim, self._scales.stat().st_size // 8)
        except OSError:
            return -1


def _damage(path: Path, rows: ndarray, blocks: Sequence[Block], column: str) -> str | None:
    """A message that lists the blocks whose rows do not have the checksum in this column; None if there are none."""
    damaged = [block for block in blocks if hash_block(rows[block.rows]) != getattr(block, column)]
    return f"{path.name} is damaged in {named_rows(damaged)}" if damaged else None


def _are_unit(vectors: Vectors) -> Bool[ndarray, " N"]:
    return np.abs(np.linalg.norm(np.asarray(vectors, dtype=np.float32), axis=1) - 1) < 1e-3


def _as_written(codes: Codes) -> tuple[ndarray, ndarray]:
    """Integers and scales as they are stored in the files."""
    return codes.integers, np.stack([codes.scale, codes.error], axis=1).astype("<f4")


def _are_codes(vectors: Vectors, codes: tuple[ndarray, ndarray]) -> bool:
    """Whether codes belong to vectors. The errors may differ by rounding between machines."""
    for start in range(0, len(vectors), _CHUNK):
        integers, scales = _as_written(encode(vectors[start : start + _CHUNK]))
        kept = codes[1][start : start + _CHUNK]
        is_same = np.array_equal(integers, codes[0][start : start + _CHUNK])
        if not (is_same and np.array_equal(scales[:, 0], kept[:, 0]) and np.allclose(scales[:, 1], kept[:, 1])):
            return False
    return True


def _write(path: Path, offset: int, array: ndarray) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.truncate()
        file.write(array.tobytes())
        file.flush()
        os.fsync(file.fileno())


__getattr__ = renamed_names(__name__, {"Kind": "VectorDtype"})
