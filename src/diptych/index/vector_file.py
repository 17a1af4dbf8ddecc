"""A file of vectors that only grows, and beside it their codes, which are made from them and can be made again.

vectors-0.f32  vectors of float32, or .f16 of float16; the number counts how often the file was written anew
codes-0.i8     eight-bit integers of each (`exact.py`)
codes-0.f32    scale and error of each
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy import ndarray

from diptych.core.files import atomic_write
from diptych.index.exact import Codes, Vectors, encode

Kind: TypeAlias = Literal["float32", "float16"]
"""What the file keeps of a number."""

_SUFFIX = {"float32": "f32", "float16": "f16"}
_CHUNK = 65_536


class VectorFile:
    """The files of one number. Whoever opens it knows how many vectors count."""

    def __init__(self, folder: Path, number: int, dim: int, kind: Kind) -> None:
        self.dim, self.kind = dim, np.dtype(kind).newbyteorder("<")
        self.path = folder / f"vectors-{number}.{_SUFFIX[kind]}"
        self._integers, self._scales = folder / f"codes-{number}.i8", folder / f"codes-{number}.f32"

    def create(self) -> None:
        """Empty files.

        Raises:
            OSError: they cannot be written.
        """
        for path in (self.path, self._integers, self._scales):
            path.write_bytes(b"")

    def append(self, vectors: Vectors, first: int) -> None:
        """Write vectors behind the first so many, over whatever lies there, and flush them.

        Raises:
            OSError: the disk is full, or the files may not be written.
        """
        kept = np.ascontiguousarray(vectors, dtype=self.kind)
        _write(self.path, first * self.dim * self.kind.itemsize, kept)
        if self._num_codes() >= first:
            self._append_codes(kept, first, self._integers, self._scales)

    def read(self, num: int) -> Vectors:
        """The first so many, mapped into memory.

        Raises:
            OSError: there is no such file.
            ValueError: it is shorter.
        """
        if num == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        return np.memmap(self.path, dtype=self.kind, mode="r", shape=(num, self.dim))

    def codes(self, num: int) -> Codes | None:
        """Of the first so many; None if some are lacking, or have just gone."""
        if num == 0 or self._num_codes() < num:
            return None
        try:
            return self._read_codes(num)
        except (OSError, ValueError):
            return None

    def _read_codes(self, num: int) -> Codes:
        integers = np.memmap(
            self._integers, dtype=np.int8, mode="c", shape=(num, self.dim)
        )  # PyTorch wants it writable.
        scales = np.memmap(self._scales, dtype="<f4", mode="r", shape=(num, 2))
        return Codes(integers, np.ascontiguousarray(scales[:, 0]), np.ascontiguousarray(scales[:, 1]))

    def make_codes(self, num: int) -> None:
        """Write the codes of the first so many anew.

        Raises:
            OSError: they cannot be written.
            ValueError: the vectors are not there.
        """
        vectors, places = self.read(num), (self._integers, self._scales)
        with ExitStack() as stack:  # Readers have the old ones mapped.
            tmp = [stack.enter_context(atomic_write(path)) for path in places]
            for start in range(0, num, _CHUNK):
                self._append_codes(vectors[start : start + _CHUNK], start, *tmp)

    def copy(self, places: Sequence[int], target: "VectorFile", num: int) -> None:
        """Write some of the first so many into another file."""
        vectors = self.read(num)
        target.create()
        for start in range(0, len(places), _CHUNK):
            target.append(vectors[list(places[start : start + _CHUNK])], start)

    def faults(self, num: int) -> list[str]:
        """What is wrong with the first so many, and what to do."""
        needed = num * self.dim * self.kind.itemsize
        held = self.path.stat().st_size if self.path.exists() else 0
        if held < needed:
            return [f"{self.path.name} has {held:,} bytes of {needed:,}; index the folders again"]
        faults = []
        if held > needed:
            said = f"{self.path.name} has {held - needed:,} bytes of an addition that was cut off"
            faults.append(f"{said}; the next addition writes over them")
        vectors, codes = self.read(num), self.codes(num)
        for start in range(0, num, _CHUNK):
            chunk = np.asarray(vectors[start : start + _CHUNK], dtype=np.float32)
            bad = np.flatnonzero(~(np.abs(np.linalg.norm(chunk, axis=1) - 1) < 1e-3))
            if len(bad):
                said = f"{len(bad)} vectors are not of unit length, the first is number {start + bad[0]}"
                return [*faults, f"{said}; index again"]
            if codes is not None and not np.array_equal(encode(chunk).integers, codes.integers[start : start + _CHUNK]):
                codes = None
        if num and codes is None:
            faults.append("its codes are not those of its vectors; diptych index build makes them anew")
        return faults

    def unlink(self) -> None:
        """Remove the files; who has them open reads on."""
        for path in (self.path, self._integers, self._scales):
            path.unlink(missing_ok=True)

    def _num_codes(self) -> int:
        try:
            return min(self._integers.stat().st_size // self.dim, self._scales.stat().st_size // 8)
        except OSError:
            return -1

    def _append_codes(self, vectors: Vectors, first: int, integers: Path, scales: Path) -> None:
        codes = encode(vectors)
        _write(integers, first * self.dim, codes.integers)
        _write(scales, first * 8, np.stack([codes.scale, codes.error], axis=1).astype("<f4"))


def _write(path: Path, place: int, array: ndarray) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.truncate()
        file.write(array.tobytes())
        file.flush()
        os.fsync(file.fileno())
