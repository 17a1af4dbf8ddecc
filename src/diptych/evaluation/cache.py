"""A cache of embeddings. The key covers everything that they depend on: the weights of the tower and its inputs."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from torch import nn

from diptych.core.cache import cache_folder, make_room
from diptych.core.files import atomic_write

_MAX_BYTES = 4 * 2**30


class EmbeddingCache:
    """A folder of arrays by key. The least recently used files are removed when it grows beyond its maximum size.

    Args:
        folder: the folder; by default `embeddings` in the cache folder.
        max_bytes: maximum size of all files together.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = _MAX_BYTES) -> None:
        self.folder = folder or cache_folder() / "embeddings"
        self.max_bytes = max_bytes

    def get(self, key: str, compute: Callable[[], Float32[ndarray, "N E"]]) -> Float32[ndarray, "N E"]:
        """Return the cached array of a key, or compute and store it. If the disk is full, the array is not stored.

        Args:
            key: name of the file, without suffix.
            compute: returns the array.
        """
        path = self.folder / f"{key}.npy"
        try:
            emb: Float32[ndarray, "N E"] = np.load(path, allow_pickle=False)
            os.utime(path)
            return emb
        except (OSError, ValueError, EOFError, BadZipFile):  # The file is missing or damaged.
            pass
        emb = compute()
        try:
            self._store(path, emb)
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        return emb

    def _store(self, path: Path, emb: Float32[ndarray, "N E"]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as tmp, tmp.open("wb") as file:
            np.save(file, emb)
        make_room(self.folder, "*.npy", max_bytes=self.max_bytes, keep=path)


def tower_hash(tower: nn.Module, *settings: object) -> str:
    """Return a hash of the weights and buffers of a tower, their device types and dtypes, and the given settings."""
    digest = blake2b(repr(settings).encode(), digest_size=16)
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name}{tensor.device.type}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def combined_hash(parts: Iterable[bytes | str]) -> str:
    """Return a hash of the parts, which depends on their order."""
    digest = blake2b(digest_size=16)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def ids_hash(ids: ndarray, lengths: ndarray) -> str:
    """Return a hash of the token ids and lengths of texts."""
    return combined_hash(
        [repr(ids.shape), np.ascontiguousarray(ids).tobytes(), np.ascontiguousarray(lengths).tobytes()]
    )
