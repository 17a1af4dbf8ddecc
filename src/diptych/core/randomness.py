"""Keyed randomness: random numbers depend on their purpose, not on the order in which they are drawn.

Every random choice uses a generator that is keyed by (seed, purpose, epoch, key). Therefore the number of workers, the number
of ranks, and killing and resuming a run do not change the results.
"""

from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray


def stable_hash(*parts: int | str) -> int:
    """Return a 64-bit hash of the parts, the same on every machine and in every process.

    >>> stable_hash("photo.jpg", 3) == stable_hash("photo.jpg", 3)
    True
    """
    return int.from_bytes(_digest(parts, 8), "little")


def _digest(parts: tuple[int | str, ...], size: int) -> bytes:
    text = "\x1f".join([f"{type(part).__name__}:{part}" for part in parts])
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def stable_fraction(*parts: int | str) -> float:
    """Return a number in [0, 1) that depends only on the parts; used to assign keys to splits and subsets.

    >>> 0 <= stable_fraction("photo.jpg") < 1
    True
    """
    return stable_hash(*parts) / 2**64


def keyed_generator(*parts: int | str) -> np.random.Generator:
    """Return a new generator whose state depends only on the parts.

    >>> keyed_generator(0, "crop", "photo.jpg").random() == keyed_generator(0, "crop", "photo.jpg").random()
    True
    """
    seed: Any = _HashedSeed(_digest(parts, 32))  # NumPy documents that it accepts this type; its stubs do not list it.
    return np.random.Generator(np.random.PCG64(seed))


class _HashedSeed(ISeedSequence):
    """Uses a hash as the initial state of a generator. NumPy's `SeedSequence` takes five times as long, once per sample."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint32) -> NDArray[Any]:
        """Return the first words of the hash."""
        return np.frombuffer(self.digest, dtype=dtype, count=n_words)


def keyed_permutation(size: int, *parts: int | str) -> NDArray[np.int64]:
    """Return a permutation of `range(size)` that depends only on the parts.

    It is the argsort of raw generator output, so it is the same in all versions of NumPy.

    >>> sorted(keyed_permutation(5, 0, "epoch", 1).tolist())
    [0, 1, 2, 3, 4]
    """
    bits = np.random.PCG64(stable_hash(*parts)).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64)
