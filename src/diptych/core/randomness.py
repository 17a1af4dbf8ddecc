"""Randomness that depends on what it is for, never on who asks first.

Every random choice is drawn from a generator that is keyed by (seed, purpose, epoch, key). Hence the number of workers,
the number of ranks, a kill and a resume change nothing.
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def stable_hash(*parts: int | str) -> int:
    """A 64-bit hash of the parts, the same on every machine and in every process.

    >>> stable_hash("photo.jpg", 3) == stable_hash("photo.jpg", 3)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def stable_fraction(*parts: int | str) -> float:
    """A number in [0, 1) that belongs to the parts: what splits and subsets by key are cut by."""
    return stable_hash(*parts) / 2**64


def keyed_generator(*parts: int | str) -> np.random.Generator:
    """A generator of its own for each combination of parts."""
    return np.random.Generator(np.random.PCG64(stable_hash(*parts)))


def keyed_permutation(size: int, *parts: int | str) -> NDArray[np.int64]:
    """A permutation of `range(size)`; sorted raw bits, so that it does not change with NumPy's versions.

    >>> sorted(keyed_permutation(5, 0, "epoch", 1).tolist())
    [0, 1, 2, 3, 4]
    """
    bits = np.random.PCG64(stable_hash(*parts)).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64)
