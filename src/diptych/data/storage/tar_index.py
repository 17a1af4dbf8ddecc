"""Index of a tar, which makes a WebDataset shard a sequence with random access.

The index contains the position of each image and all captions, so that only images are read from the tar afterwards. It is
written next to the tar, or into the cache if the tar's folder is not writable.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from diptych.core.cache import cache_folder
from diptych.core.errors import DataError
from diptych.core.files import atomic_write
from diptych.data.storage.columns import NameColumn, TextColumn, named_arrays
from diptych.data.storage.oddities import Oddity, OddityCounter, from_plain
from diptych.data.storage.tar_samples import read_samples

_VERSION = 4


@dataclass
class TarIndex:
    """The complete samples of one tar, in its order."""

    keys: TextColumn = field(default_factory=TextColumn)
    captions: TextColumn = field(default_factory=TextColumn)
    caption_ends: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Cumulative number of captions, for each sample."""
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    """(offset, length) in bytes of each sample's image."""
    labels: NameColumn = field(default_factory=NameColumn)
    label_numbers: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Class number of each sample; -1 if its label is not a number."""
    splits: NameColumn = field(default_factory=NameColumn)
    problems: dict[str, int] = field(default_factory=dict)
    """Number of samples that were left out, by reason."""
    oddities: tuple[Oddity, ...] = ()


def tar_index(path: Path, *, lines: bool = False) -> TarIndex:
    """Return the index of a tar: the stored one if it is up to date, else a new one, which is stored.

    Args:
        path: the tar.
        lines: whether each line of a `.txt` is a caption, as in CLIP_benchmark's retrieval datasets.

    Raises:
        DataError: the tar is missing, cannot be read, or is not a tar.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    version = f"{state.st_size} {state.st_mtime_ns}"
    next_to_tar = path.with_name(path.name + ".index.npz")
    return _stored_index(version, (next_to_tar, _in_cache(str(path.resolve()))), lambda: path, lines)


def remote_tar_index(url: str, version: str, fetch: Callable[[], Path], *, lines: bool = False) -> TarIndex:
    """Return the index of a remote tar: from the cache if it is up to date, else from the tar, which is fetched.

    Args:
        url: URL of the tar.
        version: size of the tar and other properties that change with its content.
        fetch: returns the path of a local copy.
        lines: as for `tar_index`.

    Raises:
        DataError: the tar cannot be fetched, or is not a tar.
    """
    return _stored_index(version, (_in_cache(url),), fetch, lines)


def _stored_index(version: str, paths: Sequence[Path], tar: Callable[[], Path], lines: bool) -> TarIndex:
    version = f"{_VERSION}{' lines' if lines else ''} {version}"
    for path in paths:
        index = _load(path, version)
        if index is not None:
            return index
    tar_path = tar()
    index = _scan(tar_path, tar_path.stat().st_size, lines=lines)
    for path in paths:
        if _save(index, path, version):
            break
    return index


def _in_cache(address: str) -> Path:
    name = sha256(address.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return cache_folder() / "tar-index" / f"{name}.npz"


def _scan(path: Path, size: int, *, lines: bool) -> TarIndex:
    index, problems, oddities = TarIndex(), Counter[str](), OddityCounter()
    places, caption_ends, numbers = list[tuple[int, int]](), list[int](), list[int]()
    endings, end, repeats = Counter[str](), 0, Counter[str]()
    with path.open("rb") as file:
        for sample in read_samples(path, file, problems, oddities):
            endings.update(list(sample.places))
            end = max(end, *(start + length for start, length in sample.places.values()))
            row, problem = sample.row(lines=lines)
            images = sample.images()
            if not images or sum(images[0]) > size:
                problem = "an image that is cut off" if images else "no image"
            if problem is not None:
                problems[problem] += 1
                continue
            if len(images) > 1:
                oddities.add("samples with several images", "read with the first", sample.key)
            index.keys.append(_own_key(sample.key, repeats, oddities))
            for caption in row["captions"]:
                index.captions.append(caption)
            caption_ends.append(len(index.captions))
            index.labels.append(row.get("label"))
            index.splits.append(row.get("split"))
            numbers.append(row.get("number", -1))
            places.append(images[0])
    if end and end + tarfile.BLOCKSIZE > size and "an image that is cut off" not in problems:
        problems["its end cut off"] += 1  # The tar does not end with a block of zeros: at least one sample is lost.
    if not places and endings:
        seen = ", ".join(f"{ending} ({count})" for ending, count in sorted(endings.items())[:6])
        raise DataError(f"{path}: none of its samples has both an image and a caption; endings seen: {seen}")
    index.places = np.array(places, dtype=np.int64).reshape(-1, 2)
    index.label_numbers = np.array(numbers, dtype=np.int64)
    index.caption_ends, index.problems = np.array(caption_ends, dtype=np.int64), dict(problems)
    index.oddities = oddities.oddities()
    return index


def _own_key(key: str, repeats: Counter[str], oddities: OddityCounter) -> str:
    """Return the key, with a number appended if earlier samples have the same key."""
    repeats[key] += 1
    if repeats[key] == 1:
        return key
    oddities.add("samples with repeated keys", "kept under keys with a number", f"{key}#{repeats[key]}")
    return _own_key(f"{key}#{repeats[key]}", repeats, OddityCounter())


def _save(index: TarIndex, path: Path, version: str) -> bool:
    """Write the index atomically, because other processes may read it, and return whether it could be written."""
    arrays = {
        "mark": np.array(version),
        "places": index.places,
        "caption_ends": index.caption_ends,
        "label_numbers": index.label_numbers,
        "problems": np.array(json.dumps(index.problems)),
        "oddities": np.array(json.dumps([astuple(oddity) for oddity in index.oddities])),
    }
    arrays |= named_arrays(keys=index.keys, captions=index.captions, labels=index.labels, splits=index.splits)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as tmp, tmp.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # Its other argument is a boolean.
    except OSError:
        return False
    return True


def _load(path: Path, version: str) -> TarIndex | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["mark"]) != version:
                return None
            return TarIndex(
                keys=TextColumn.from_arrays(arrays["keys_bytes"], arrays["keys_ends"]),
                captions=TextColumn.from_arrays(arrays["captions_bytes"], arrays["captions_ends"]),
                caption_ends=arrays["caption_ends"],
                places=arrays["places"],
                labels=NameColumn.from_arrays(arrays["labels_names"], arrays["labels_codes"]),
                splits=NameColumn.from_arrays(arrays["splits_names"], arrays["splits_codes"]),
                problems=json.loads(str(arrays["problems"])),
                label_numbers=arrays["label_numbers"],
                oddities=from_plain(json.loads(str(arrays["oddities"]))),
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # Missing or damaged: create a new one.
        return None
