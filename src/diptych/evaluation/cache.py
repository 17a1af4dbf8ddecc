"""Embeddings that were computed before, by all that they depend on: the tower's weights and what it reads."""

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
    """A folder of arrays by their keys. When it grows beyond its size, what was not used for longest goes."""

    def __init__(self, folder: Path | None = None, *, max_bytes: int = _MAX_BYTES) -> None:
        self.folder = folder or cache_folder() / "embeddings"
        self.max_bytes = max_bytes

    def get(self, key: str, compute: Callable[[], Float32[ndarray, "N E"]]) -> Float32[ndarray, "N E"]:
        """What the folder has for the key, or what is computed now and kept. A disk that is full only costs the keeping."""
        place = self.folder / f"{key}.npy"
        try:
            emb: Float32[ndarray, "N E"] = np.load(place, allow_pickle=False)
            os.utime(place)
            return emb
        except (OSError, ValueError, EOFError, BadZipFile):  # Not there, or damaged.
            pass
        emb = compute()
        try:
            self._keep(place, emb)
        except OSError:
            with suppress(OSError):
                place.unlink(missing_ok=True)
        return emb

    def _keep(self, place: Path, emb: Float32[ndarray, "N E"]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as tmp, tmp.open("wb") as written:
            np.save(written, emb)
        make_room(self.folder, "*.npy", max_bytes=self.max_bytes, keep=place)


def tower_hash(tower: nn.Module, *settings: object) -> str:
    """Of weights and buffers, where and in which precision they are, and the settings that they are used with."""
    digest = blake2b(repr(settings).encode(), digest_size=16)
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name}{tensor.device.type}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def combined_hash(parts: Iterable[bytes | str]) -> str:
    """Of parts in their order."""
    digest = blake2b(digest_size=16)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def ids_hash(ids: ndarray, lengths: ndarray) -> str:
    """Of what a text tower reads."""
    return combined_hash(
        [repr(ids.shape), np.ascontiguousarray(ids).tobytes(), np.ascontiguousarray(lengths).tobytes()]
    )
