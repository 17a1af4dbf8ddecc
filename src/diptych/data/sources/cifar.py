"""`cifar10` and `cifar100` (Krizhevsky 2009): the official archives, packed or unpacked, or images in class folders.

The Python archives are pickles. They are read by an unpickler that allows only NumPy arrays, so that no code from a file is
executed.
"""

import hashlib
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from diptych.core.cache import cache_folder
from diptych.core.errors import DataError
from diptych.core.files import atomic_write
from diptych.data.sources.class_folder import read_class_folder
from diptych.data.sources.location import read_location
from diptych.data.sources.protocol import ColumnSource, Source
from diptych.data.sources.templates import FIVE_TEMPLATES, filled, readable, templates_of


@dataclass(frozen=True)
class Cifar:
    """Files and names of one of the two datasets."""

    name: str
    pickles: Mapping[str, tuple[str, ...]]
    """File names of each split in the Python archive. The binary archive has the same names with the suffix `.bin`."""
    label_key: str
    names_file: tuple[str, str]
    """Pickle with the class names, and their key in it."""
    names_text: str
    """Text file with the class names in the binary archive."""
    label_bytes: int
    """Bytes before each image in the binary archive; the last one is the class."""
    checksums: Mapping[str, str]
    """MD5 checksums of the official archives."""


CIFAR10 = Cifar(
    name="cifar10",
    pickles={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    label_key="labels",
    names_file=("batches.meta", "label_names"),
    names_text="batches.meta.txt",
    label_bytes=1,
    checksums={
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    },
)
CIFAR100 = Cifar(
    name="cifar100",
    pickles={"train": ("train",), "test": ("test",)},
    label_key="fine_labels",
    names_file=("meta", "fine_label_names"),
    names_text="fine_label_names.txt",
    label_bytes=2,
    checksums={
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    },
)
URL = "https://www.cs.toronto.edu/~kriz"
_PICTURE = 3 * 32 * 32


class CifarSource(ColumnSource):
    """Images of 32x32 pixels in memory, with captions made from the class names and templates."""

    is_decoded = True

    def __init__(
        self,
        parts: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]],
        classes: tuple[str, ...],
        templates: tuple[str, ...] = FIVE_TEMPLATES,
    ) -> None:
        self.classes = tuple(readable(name) for name in classes)
        self.templates = templates
        sizes = [len(pictures) for pictures, _ in parts.values()]
        self._split_names, self._splits = tuple(parts), np.repeat(np.arange(len(parts)), sizes)
        self._numbers = np.concatenate([np.arange(size) for size in sizes])
        self._pictures = np.concatenate([pictures for pictures, _ in parts.values()])
        self._labels = np.concatenate([labels for _, labels in parts.values()])

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels."""
        return self._pictures[index].reshape(3, 32, 32).transpose(1, 2, 0)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return each template with the name of the class."""
        return filled(self.templates, self.classes[self._labels[index]])

    def key(self, index: int) -> str:
        """Return the split and the number within it, as in `train/00042`."""
        return f"{self.split(index)}/{self._numbers[index]:05d}"


def read_cifar10(location: str) -> Source:
    """Return CIFAR-10 from a folder or archive; without a location, it is downloaded to the cache.

    Raises:
        DataError: the files are missing or damaged, or cannot be downloaded.
    """
    return _read(CIFAR10, location)


def read_cifar100(location: str) -> Source:
    """Return CIFAR-100 with its fine labels from a folder or archive; without a location, it is downloaded to the cache.

    Raises:
        DataError: the files are missing or damaged, or cannot be downloaded.
    """
    return _read(CIFAR100, location)


def _read(cifar: Cifar, location: str) -> Source:
    named, options = read_location(location, ("templates",))
    path = _download(cifar) if named == Path() else named
    templates = templates_of(options) or FIVE_TEMPLATES
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _from_files(cifar, _archive_reader(cifar, path), path, templates)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    folders = (path, *(entry for entry in path.iterdir() if entry.is_dir())) if path.is_dir() else ()
    for folder in folders:
        if (folder / cifar.names_file[0]).is_file() or (folder / cifar.names_text).is_file():
            return _from_files(cifar, _folder_reader(folder), folder, templates)
    archive = _archive_in(cifar, path)
    if archive is not None:
        _, question, rest = location.partition("?")
        return _read(cifar, f"{archive}{question}{rest}")
    return read_class_folder(location)


def _archive_in(cifar: Cifar, folder: Path) -> Path | None:
    """Return the official archive in a folder, or a zip of class folders that is named after the dataset."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.name in cifar.checksums or (entry.name.startswith(cifar.name) and entry.suffix == ".zip"):
            return entry
    return None


def _from_files(
    cifar: Cifar, read: Callable[[str], bytes | None], path: Path, templates: tuple[str, ...]
) -> CifarSource:
    """Return the source from the files of the Python or the binary archive."""
    names_pickle, names_text = read(cifar.names_file[0]), read(cifar.names_text)
    if names_pickle is None and names_text is None:
        raise DataError(f"{path}: holds neither {cifar.names_file[0]} nor {cifar.names_text} of {cifar.name}")
    parse, suffix = (_parse_binary, ".bin") if names_pickle is None else (_parse_pickle, "")
    parts = {}
    try:
        for split, names in cifar.pickles.items():
            contents = {f"{name}{suffix}": read(f"{name}{suffix}") for name in names}
            lacking = [name for name, content in contents.items() if content is None]
            if lacking:
                raise DataError(f"{path}: {', '.join(lacking)} of {cifar.name} is missing")
            read_parts = [parse(content, cifar) for content in contents.values() if content is not None]
            parts[split] = (np.concatenate([p for p, _ in read_parts]), np.concatenate([y for _, y in read_parts]))
        if names_pickle is not None:
            classes = tuple(name.decode() for name in _unpickle(names_pickle)[cifar.names_file[1].encode()])
        else:
            classes = tuple((names_text or b"").decode().split())
        _check_labels(parts, len(classes))
    except (pickle.UnpicklingError, KeyError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: is not {cifar.name}'s ({type(error).__name__}: {error})") from None
    return CifarSource(parts, classes, templates)


def _check_labels(parts: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]], num_classes: int) -> None:
    for split, (pictures, labels) in parts.items():
        if len(pictures) != len(labels):
            raise ValueError(f"{len(pictures)} pictures and {len(labels)} labels in {split}")
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise ValueError(f"label {wrong[0]} of {num_classes} classes in {split}")


def _parse_pickle(content: bytes, cifar: Cifar) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _unpickle(content)
    pictures = np.ascontiguousarray(batch[b"data"], dtype=np.uint8).reshape(-1, _PICTURE)
    return pictures, np.array(batch[cifar.label_key.encode()], dtype=np.int64)


def _parse_binary(content: bytes, cifar: Cifar) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, cifar.label_bytes + _PICTURE)
    return rows[:, cifar.label_bytes :], rows[:, cifar.label_bytes - 1].astype(np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Allows only the globals that NumPy arrays need. Any other global is refused without importing it."""

    def find_class(self, module: str, name: str) -> Any:
        array = np.zeros(0).__reduce__()[0]
        known = {"_reconstruct": array, "ndarray": np.ndarray, "dtype": np.dtype}
        if module.split(".", maxsplit=1)[0] == "numpy" and name in known:
            return known[name]
        if (module, name) == ("_codecs", "encode"):  # Pickle protocol 2 encodes bytes with it.
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array")


def _unpickle(content: bytes) -> Any:
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


def _folder_reader(folder: Path) -> Callable[[str], bytes | None]:
    return lambda name: (folder / name).read_bytes() if (folder / name).is_file() else None


def _archive_reader(cifar: Cifar, path: Path) -> Callable[[str], bytes | None]:
    """Return a function that gives a file of a tar by its base name. An archive with an official name is verified."""
    expected = cifar.checksums.get(path.name)
    if expected is not None and _md5(path) != expected:
        raise DataError(f"{path}: is damaged or incomplete; its MD5 is not {expected}. Fetch it again.")
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    contents[Path(member.name).name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a tar ({error})") from None
    return contents.get


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _download(cifar: Cifar) -> Path:
    """Return the path of the Python archive in the cache; download it if necessary.

    The environment variable `DIPTYCH_CIFAR_URL` replaces the authors' URL.
    """
    name = next(iter(cifar.checksums))
    path = cache_folder() / name
    if path.is_file():
        return path
    url = f"{os.environ.get('DIPTYCH_CIFAR_URL', URL)}/{name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as tmp:
            with urlopen(url, timeout=30) as response, tmp.open("wb") as file:
                shutil.copyfileobj(response, file, length=2**20)
            if _md5(tmp) != cifar.checksums[name]:
                raise DataError(
                    f"{url}: the downloaded file is not the official one; download it yourself and use {cifar.name}:PATH"
                )
    except (URLError, OSError) as error:
        raise DataError(f"{url}: cannot be fetched ({error}); download it yourself and use {cifar.name}:PATH") from None
    return path
