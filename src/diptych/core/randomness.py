"""Randomness that depends on what it is for, never on who asks first.

Every random choice is drawn from a generator that is keyed by (seed, purpose, epoch, key). Hence the number of workers,
the number of ranks, a kill and a resume change nothing.
"""

from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray


def stable_hash(*parts: int | str) -> int:
    """A 64-bit hash of the parts, the same on every machine and in every process.

    >>> stable_hash("photo.jpg", 3) == stable_hash("photo.jpg", 3)
    True
    """
    return int.from_bytes(_digest(parts, 8), "little")


def _digest(parts: tuple[int | str, ...], size: int) -> bytes:
    text = "\x1f".join([f"{type(part).__name__}:{part}" for part in parts])
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def stable_fraction(*parts: int | str) -> float:
    """A number in [0, 1) that belongs to the parts: what splits and subsets by key are cut by."""
    return stable_hash(*parts) / 2**64


def keyed_generator(*parts: int | str) -> np.random.Generator:
    """A generator of its own for each combination of parts."""
    seed: Any = _HashedSeed(_digest(parts, 32))  # NumPy documents what it takes here, its stubs do not.
    return np.random.Generator(np.random.PCG64(seed))


class _HashedSeed(ISeedSequence):
    """A hash as a generator's first state. NumPy's own way from a seed to a state takes five times as long, once a sample."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint32) -> NDArray[Any]:
        """The first words of the hash."""
        return np.frombuffer(self.digest, dtype=dtype, count=n_words)


def keyed_permutation(size: int, *parts: int | str) -> NDArray[np.int64]:
    """A permutation of `range(size)`; sorted raw bits, so that it does not change with NumPy's versions.

    >>> sorted(keyed_permutation(5, 0, "epoch", 1).tolist())
    [0, 1, 2, 3, 4]
    """
    bits = np.random.PCG64(stable_hash(*parts)).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64)
