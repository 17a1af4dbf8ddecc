"""Where everything lies inside a tar: what makes a WebDataset shard a sequence with random access.

A shard's members are grouped by the part of their name before its first dot: `0001.jpg`, `0001.txt` and `0001.json` are one
sample (the convention of webdataset and img2dataset). The index holds the place of each image and all captions, so that only
images are read from the tar afterwards. It is written beside the tar, or into the cache where that is not allowed.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from diptych.core.cache import cache_folder
from diptych.core.errors import DataError
from diptych.core.files import atomic_write
from diptych.data.sources.columns import NameColumn, TextColumn
from diptych.images.decode import IMAGE_SUFFIXES

_VERSION = 3


@dataclass
class TarIndex:
    """The whole samples of one tar, in its order."""

    keys: TextColumn = field(default_factory=TextColumn)
    captions: TextColumn = field(default_factory=TextColumn)
    caption_ends: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Of each sample the number of captions up to its last one."""
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    """Of each sample's image: first byte and number of bytes."""
    labels: NameColumn = field(default_factory=NameColumn)
    splits: NameColumn = field(default_factory=NameColumn)
    problems: dict[str, int] = field(default_factory=dict)
    """What was left out: reason, and how many samples."""


def tar_index(path: Path) -> TarIndex:
    """The index of a tar: the one that lies beside it if it fits, else a new one.

    Raises:
        DataError: the tar is missing, or is none.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    mark = f"{_VERSION} {state.st_size} {state.st_mtime_ns}"
    beside = path.with_name(path.name + ".index.npz")
    return _kept_index(mark, (beside, _in_cache(str(path.resolve()))), lambda: path)


def remote_tar_index(url: str, version: str, fetch: Callable[[], Path]) -> TarIndex:
    """The index of a tar that lies elsewhere: from the cache if it fits, else from the tar, which is fetched for it.

    Args:
        url: where it lies.
        version: its size and whatever else says that it has changed.
        fetch: gives a copy on this machine.

    Raises:
        DataError: it cannot be fetched, or is no tar.
    """
    return _kept_index(f"{_VERSION} {version}", (_in_cache(url),), fetch)


def _kept_index(mark: str, places: Sequence[Path], tar: Callable[[], Path]) -> TarIndex:
    for place in places:
        index = _load(place, mark)
        if index is not None:
            return index
    path = tar()
    index = _scan(path, path.stat().st_size)
    for place in places:
        if _save(index, place, mark):
            break
    return index


def _in_cache(where: str) -> Path:
    name = sha256(where.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return cache_folder() / "tar-index" / f"{name}.npz"


def _scan(path: Path, size: int) -> TarIndex:
    index, places, problems = TarIndex(), [], Counter[str]()
    caption_ends = list[int]()
    endings, ends = Counter[str](), list[int]()
    with path.open("rb") as file:
        for key, members in _samples(path, file, problems):
            endings.update(list(members))
            ends.append(max(start + length for start, length in members.values()))
            image = next((members[ending] for ending in members if f".{ending}" in IMAGE_SUFFIXES), None)
            row, problem = _row(file, members)
            if image is None or sum(image) > size:
                problem = "no image" if image is None else "an image that is cut off"
            if problem is not None:
                problems[problem] += 1
                continue
            assert image is not None
            index.keys.append(key)
            for caption in row["captions"]:
                index.captions.append(caption)
            caption_ends.append(len(index.captions))
            index.labels.append(row.get("label"))
            index.splits.append(row.get("split"))
            places.append(image)
    if ends and max(ends) + tarfile.BLOCKSIZE > size and "an image that is cut off" not in problems:
        problems["its end cut off"] += 1  # No block of zeros closes the tar: at least one sample is lost.
    if not places and endings:
        seen = ", ".join(f"{ending} ({count})" for ending, count in sorted(endings.items())[:6])
        raise DataError(f"{path}: none of its samples has both an image and a caption; endings seen: {seen}")
    index.places = np.array(places, dtype=np.int64).reshape(-1, 2)
    index.caption_ends, index.problems = np.array(caption_ends, dtype=np.int64), dict(problems)
    return index


def _samples(path: Path, file: Any, problems: Counter[str]) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """(key, place by ending) of neighbouring members; what comes after a damaged header is lost, which is a problem."""
    key, members = "", dict[str, tuple[int, int]]()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar, problems):
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if f"{folder}{slash}{stem}" != key and members:
                    yield key, members
                    members = {}
                key = f"{folder}{slash}{stem}"
                members[ending.lower()] = (member.offset_data, member.size)
    except tarfile.ReadError as error:
        if not key:
            raise DataError(f"{path}: is no tar ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if members:
        yield key, members


def _members(tar: tarfile.TarFile, problems: Counter[str]) -> Iterator[tarfile.TarInfo]:
    """All there are; `tarfile` says nothing when it stops at a header that is none."""
    try:
        yield from tar
    finally:
        tar.fileobj.seek(tar.offset)
        header = tar.fileobj.read(tarfile.BLOCKSIZE)
        if len(header) == tarfile.BLOCKSIZE and any(header):
            problems["a damaged header, and what comes after it"] += 1


def _row(file: Any, members: dict[str, tuple[int, int]]) -> tuple[dict[str, Any], str | None]:
    """What the index keeps of a sample beside its image, or why it is of no use."""

    def read(ending: str) -> bytes:
        place, length = members[ending]
        file.seek(place)
        content = bytes(file.read(length))
        return content if len(content) == length else b""

    row: dict[str, Any] = {"captions": []}
    if "json" in members:
        try:
            content = json.loads(read("json"))
        except ValueError:
            return row, "JSON that cannot be read"
        given = content if isinstance(content, dict) else {}
        captions = given.get("captions", given.get("caption"))
        row["captions"] = captions if isinstance(captions, list) else [captions]
        row |= {name: given[name] for name in ("label", "split") if isinstance(given.get(name), str)}
    if "txt" in members and not any(isinstance(caption, str) for caption in row["captions"]):
        row["captions"] = [read("txt").decode("utf-8", "replace")]
    captions = [caption.strip() for caption in row["captions"] if isinstance(caption, str) and caption.strip()]
    return {**row, "captions": captions}, None if captions or "label" in row else "no caption"


def _save(index: TarIndex, path: Path, mark: str) -> bool:
    """Whether the index could be written: whole or not at all, since other processes may be looking for it."""
    arrays = {
        "mark": np.array(mark),
        "places": index.places,
        "caption_ends": index.caption_ends,
        "problems": np.array(json.dumps(index.problems)),
    }
    for name in ("keys", "captions", "labels", "splits"):
        arrays |= {f"{name}_{part}": array for part, array in getattr(index, name).to_arrays().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as tmp, tmp.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # Its other argument is a boolean.
    except OSError:
        return False
    return True


def _load(path: Path, mark: str) -> TarIndex | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["mark"]) != mark:
                return None
            return TarIndex(
                keys=TextColumn.from_arrays(arrays["keys_bytes"], arrays["keys_ends"]),
                captions=TextColumn.from_arrays(arrays["captions_bytes"], arrays["captions_ends"]),
                caption_ends=arrays["caption_ends"],
                places=arrays["places"],
                labels=NameColumn.from_arrays(arrays["labels_names"], arrays["labels_codes"]),
                splits=NameColumn.from_arrays(arrays["splits_names"], arrays["splits_codes"]),
                problems=json.loads(str(arrays["problems"])),
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # Not there, or damaged: it is made anew.
        return None
