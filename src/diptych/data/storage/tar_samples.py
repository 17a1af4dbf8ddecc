"""Group the members of a tar into samples and read their texts.

Members belong to the same sample if their names agree up to the first dot of the file name: `0001.jpg`, `0001.txt` and
`0001.json` are one sample (the convention of webdataset and img2dataset). `./0001.jpg` is the same as `0001.jpg`.
"""

import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diptych.core.encodings import decode_text
from diptych.core.errors import DataError
from diptych.core.foreign import is_foreign
from diptych.data.storage.oddities import OddityCounter
from diptych.images.decode import IMAGE_SUFFIXES

_TEXT = re.compile(r"(\d+\.)?txt|json|cls")
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"(\xb5/\xfd": "unzstd"}
"""Tool that unpacks a compressed file, by the first bytes of the file."""


class TarSample:
    """The members of one sample."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.places: dict[str, tuple[int, int]] = {}
        """(offset, length) in bytes of each member, by ending."""
        self.names: dict[str, tuple[str, str]] = {}
        """Name of each member without and with `./`, by ending."""
        self.texts: dict[str, str] = {}
        """Content of the text members, by ending."""

    def images(self) -> list[tuple[int, int]]:
        """Return (offset, length) of the images, in the tar's order."""
        return [place for ending, place in self.places.items() if _is_image(ending)]

    def row(self, *, lines: bool) -> tuple[dict[str, Any], str | None]:
        """Return the captions, label, label number and split of the sample, as far as present, and why it must be left out.

        The reason is None for a usable sample.

        Args:
            lines: whether each line of `.txt` is a caption.
        """
        row: dict[str, Any] = {"captions": []}
        if "json" in self.texts:
            try:
                content = json.loads(self.texts["json"])
            except (ValueError, RecursionError):
                return row, "JSON that cannot be read"
            given = content if isinstance(content, dict) else {}
            captions = given.get("captions", given.get("caption"))
            row["captions"] = captions if isinstance(captions, list) else [captions]
            row |= {name: given[name] for name in ("label", "split") if isinstance(given.get(name), str)}
            row |= {} if "label" in row else _label(given.get("label"))
        if "cls" in self.texts and not row.keys() & {"label", "number"}:
            row |= _label(self.texts["cls"].strip())
        if not any(isinstance(caption, str) for caption in row["captions"]):
            row["captions"] = self._plain_captions(lines)
        captions = [caption.strip() for caption in row["captions"] if isinstance(caption, str) and caption.strip()]
        is_usable = captions or row.keys() & {"label", "number"}
        return {**row, "captions": captions}, None if is_usable else "no caption"

    def _plain_captions(self, lines: bool) -> list[str]:
        """Return the captions in `txt`, then those in `0.txt`, `1.txt` and so on."""
        numbered = sorted((int(ending[:-4]), text) for ending, text in self.texts.items() if ending.endswith(".txt"))
        texts = [self.texts["txt"]] if "txt" in self.texts else []
        texts += [text for _, text in numbered]
        return [line for text in texts for line in text.splitlines()] if lines else texts


def _label(value: object) -> dict[str, Any]:
    """Return a label as `number` if it is one, else as the name `label`; nothing for -1, which unlabeled datasets use.

    >>> _label("3"), _label("dog"), _label(-1)
    ({'number': 3}, {'label': 'dog'}, {})
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        return {}
    try:
        number = int(value)
    except ValueError:
        return {"label": value} if value else {}
    return {"number": number} if 0 <= number < 2**31 else {}


def _is_image(ending: str) -> bool:
    return f".{ending}" in IMAGE_SUFFIXES


class _Grouping:
    """Groups members into samples; the members of a sample need not be adjacent."""

    def __init__(self, oddities: OddityCounter) -> None:
        self.samples: list[TarSample] = []
        self._last_of_key: dict[str, TarSample] = {}
        self._oddities = oddities

    def add(self, names: tuple[str, str], place: tuple[int, int]) -> TarSample:
        """Add a member and return its sample, which is a new one if the last sample of this key already has such a member.

        Args:
            names: name of the member without and with `./`.
            place: (offset, length) of its content in bytes.
        """
        key, ending = _key_and_ending(names[0])
        sample = self._last_of_key.get(key)
        is_neighbor = bool(self.samples) and sample is self.samples[-1]
        if sample is not None:
            twin = sample.names.get(ending)
            if twin is not None and twin[0] == names[0] and twin[1] != names[1]:
                self._oddities.add("members named with and without ./", "taken as one", names[0])
            elif twin is not None or (not is_neighbor and _is_image(ending) and sample.images()):
                sample = None
            elif not is_neighbor:
                self._oddities.add("members separated from their sample", "joined to it", names[0])
        if sample is None:
            sample = self._last_of_key[key] = TarSample(key)
            self.samples.append(sample)
        sample.places[ending], sample.names[ending] = place, names
        return sample


def read_samples(path: Path, file: Any, problems: Counter[str], oddities: OddityCounter) -> list[TarSample]:
    """Return the samples in the order of their first members.

    The members after a damaged header are lost; this is counted in `problems`.

    Raises:
        DataError: the file is not a tar, or cannot be read.
    """
    grouping, places = _Grouping(oddities), dict[str, tuple[int, int]]()
    has_members = False
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar, problems):
                has_members = True
                name = _plain(member.name)
                place = _place(member, name, places)
                if member.isdir() or (place is None and not (member.issym() or member.islnk())):
                    continue
                if is_foreign(name):
                    oddities.add("members of other programs", "left out", name)
                elif place is None:
                    oddities.add("links whose target is not an earlier member", "left out", name)
                else:
                    _read(grouping.add((name, member.name), place), name, file, oddities)
    except tarfile.ReadError as error:
        if not has_members:
            raise _no_tar(path, file, error) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return grouping.samples


def _read(sample: TarSample, name: str, file: Any, oddities: OddityCounter) -> None:
    """Store the content of a member if it is a text."""
    _, ending = _key_and_ending(name)
    if not _TEXT.fullmatch(ending):
        return
    start, length = sample.places[ending]
    file.seek(start)
    content = bytes(file.read(length))
    text, encoding = decode_text(content if len(content) == length else b"")
    if encoding != "UTF-8":
        oddities.add("texts that are not UTF-8", f"read as {encoding}", name)
    sample.texts[ending] = text


def _key_and_ending(name: str) -> tuple[str, str]:
    """Split a member's name into the key of its sample and its ending.

    >>> _key_and_ending("a.b/0001.0.TXT")
    ('a.b/0001', '0.txt')
    """
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _plain(name: str) -> str:
    """Return a member's name without `./` and repeated slashes.

    >>> _plain("./a//0.jpg")
    'a/0.jpg'
    """
    return "/".join(part for part in name.split("/") if part not in {"", "."})


def _place(member: tarfile.TarInfo, name: str, places: dict[str, tuple[int, int]]) -> tuple[int, int] | None:
    """Return (offset, length) of a member's content, for a link that of the earlier target; None if there is no content."""
    if member.isreg():
        places[name] = (member.offset_data, member.size)
    elif member.islnk():
        return places.get(_plain(member.linkname))
    elif member.issym():
        return places.get(posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)))
    return places[name] if member.isreg() else None


def _members(tar: tarfile.TarFile, problems: Counter[str]) -> Iterator[tarfile.TarInfo]:
    """Yield all members. `tarfile` stops silently at an invalid header; it is counted in `problems`."""
    try:
        yield from tar
    finally:
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        header = tar.fileobj.read(tarfile.BLOCKSIZE)
        if len(header) == tarfile.BLOCKSIZE and any(header):
            problems["a damaged header, and what comes after it"] += 1


def _no_tar(path: Path, file: Any, error: Exception) -> DataError:
    file.seek(0)
    start = file.read(6)
    tool = next((tool for magic, tool in _COMPRESSED.items() if start.startswith(magic)), None)
    if tool is None:
        return DataError(f"{path}: is not a tar ({error})")
    return DataError(f"{path}: is compressed, which does not allow random access; unpack it once: {tool} {path}")
