"""An index kept in step with folders: what is new is embedded, what moved is recognised, what is as it was is not read."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ImageError, IndexingError
from diptych.core.progress import Track, silently
from diptych.images.pool import DecodePool
from diptych.index.choice import create_index, index_exists, open_index
from diptych.index.entry import Entry, Stamp
from diptych.index.protocol import Index
from diptych.index.vector_file import Kind
from diptych.inference.embedder import Embedder
from diptych.inference.loaded import LoadedBundle
from diptych.search.scan import describe_picture, scan

_BATCH_FILES, _BATCH_BYTES = 256, 128 * 2**20
"""A batch is committed at once: so much is done again after a crash."""


@dataclass(kw_only=True)
class Update:
    """What became of each file."""

    unchanged: int = 0
    added: int = 0
    changed: int = 0
    moved: int = 0
    """Found elsewhere with the content that they had; not embedded again."""
    copies: int = 0
    """New files whose content was there already; not embedded again."""
    vanished: int = 0
    """Gone from the folders."""
    dropped: int = 0
    """Of those, taken out of the index."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason)."""


def open_or_create(place: str | Path, clip: LoadedBundle | None, *, kind: Kind = "float32") -> Index:
    """The index at a folder or an address; a new one for the bundle, if there is none, which keeps numbers of a kind.

    Raises:
        IndexingError: there is none and no bundle is given, or it has another model's vectors.
        ConfigError: the address is none, or an extra is missing.
    """
    if clip is None:
        return open_index(place)
    if not index_exists(place):
        bundle = "" if clip.path is None else str(clip.path.resolve() if clip.path.exists() else clip.path)
        return create_index(place, dim=clip.bundle.config.embed_dim, model=clip.identity, bundle=bundle, kind=kind)
    index = open_index(place)
    check_model(index, clip.identity, clip.path)
    return index


def check_model(index: Index, model: str, path: Path | None) -> None:
    """Refuse another model's vectors.

    Raises:
        IndexingError: the index was made with another model.
    """
    if index.model != model:
        index.close()
        raise IndexingError(
            f"{index.place}: has vectors of the model {index.model} ({index.bundle}), and {path} is {model}: their numbers do "
            "not compare; make another index for it"
        )


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one of several processes takes up: the files whose path's hash falls to it, and that nobody has yet."""

    rank: int
    size: int
    known: Mapping[str, Stamp]
    """What the index has that all shares will be merged into."""

    def has(self, key: str, stamp: Stamp) -> bool:
        """Whether a file is this one's."""
        return crc32(key.encode()) % self.size == self.rank and self.known.get(key) != stamp


def update(
    index: Index,
    clip: LoadedBundle,
    folders: Sequence[Path],
    *,
    prune: bool = False,
    share: Share | None = None,
    track: Track = silently,
) -> Update:
    """Bring an index in step with folders. Stopped at any moment, it loses no more than the batch under way.

    Args:
        index: what is brought in step.
        clip: the model of its vectors.
        folders: where to look, subfolders included.
        prune: drop entries of these folders whose file has gone.
        share: take up these files alone.
        track: told how far it is.

    Raises:
        BusyError: another process writes.
        IndexingError: a folder cannot be read, or the disk is full.
    """
    with index.writing(), DecodePool() as pool:
        embedder = Embedder(clip.bundle, batch_size=clip.embedder.batch_size, decode_pool=pool)
        return _Updater(index, embedder, folders, share).go(prune=prune, track=track)


class _Updater:
    """One pass over the folders."""

    def __init__(self, index: Index, embedder: Embedder, folders: Sequence[Path], share: Share | None) -> None:
        self.index, self.embedder, self.report = index, embedder, Update()
        self.found = dict[str, Stamp]()
        for key, stamp in scan(folders):
            if _is_text(key):
                if share is None or share.has(key, stamp):
                    self.found[key] = stamp
            elif share is None or share.rank == 0:
                shown = os.fsencode(key).decode("utf-8", "backslashreplace")
                self.report.unreadable.append((shown, "has a name that is not UTF-8"))
        self.known = index.stamps()
        roots = tuple(f"{folder.resolve()}/" for folder in folders)
        is_alone = share is None  # Who sees a share of the files does not know which have gone.
        self.gone = {key for key in self.known if is_alone and key.startswith(roots) and key not in self.found}
        self.gone_of_digest: dict[str | None, list[str]] = {}
        for key in sorted(self.gone):
            self.gone_of_digest.setdefault(index.digest_of(key), []).append(key)

    def go(self, *, prune: bool, track: Track) -> Update:
        """Batch by batch, then what has gone."""
        new = [(key, stamp) for key, stamp in self.found.items() if self.known.get(key) != stamp]
        self.report.unchanged = len(self.found) - len(new)
        with track("pictures", len(new)) as advance:
            for batch in _batches(new):
                self._take_up(batch)
                for _ in batch:
                    advance()
        self.report.vanished = len(self.gone)
        if prune:
            self.report.dropped = self.index.remove(self.gone)
            self.index.compact()
        return self.report

    def _take_up(self, batch: list[tuple[str, Stamp]]) -> None:
        """Read, embed what is new, and commit."""
        entries: list[Entry] = []
        broken: list[tuple[str, Stamp, str]] = []
        contents: dict[str, bytes] = {}
        for key, stamp in batch:
            try:
                content = Path(key).read_bytes()
            except OSError as error:
                broken.append((key, stamp, f"cannot be read ({error.strerror})"))
                continue
            entry = describe_picture(key, stamp, content)
            entries.append(entry)
            if entry.digest not in contents and not self.index.has_vector(entry.digest):
                contents[entry.digest] = content
        vectors, reasons = self._embed(contents)
        broken += [(entry.key, entry.stamp, reasons[entry.digest]) for entry in entries if entry.digest in reasons]
        whole = [entry for entry in entries if entry.digest not in reasons]
        moved_from = self._count(whole, vectors)
        self.index.add(whole, vectors, broken=broken, gone=moved_from)
        self.gone.difference_update(moved_from)
        self.report.unreadable += [(key, reason) for key, _, reason in broken]

    def _embed(self, contents: dict[str, bytes]) -> tuple[dict[str, Float32[ndarray, " E"]], dict[str, str]]:
        """Vectors by digest, and of pictures that cannot be decoded the reason."""
        digests, reasons = list(contents), dict[str, str]()

        def note(position: int, error: ImageError) -> None:
            reasons[digests[position]] = str(error).partition(": ")[2]

        emb = self.embedder.encode_images(list(contents.values()), on_error=note)
        vectors = {digest: emb[row] for row, digest in enumerate(digests) if digest not in reasons}
        if not all(np.isfinite(vector).all() for vector in vectors.values()):
            raise IndexingError("the model gives vectors that are not numbers; is the bundle whole?")
        return vectors, reasons

    def _count(self, entries: Sequence[Entry], new: Iterable[str]) -> list[str]:
        """Tell what each file is; the places from which pictures were moved."""
        left, report = set(new), self.report
        moved_from: list[str] = []
        for entry in entries:
            if self.index.digest_of(entry.key) == entry.digest:  # Written anew, with what it had.
                report.unchanged += 1
            elif entry.key in self.known:
                report.changed += 1
            elif self.gone_of_digest.get(entry.digest):
                report.moved += 1
                moved_from.append(self.gone_of_digest[entry.digest].pop())
            elif entry.digest in left:
                report.added += 1
            else:
                report.copies += 1
            left.discard(entry.digest)
        return moved_from


def _is_text(key: str) -> bool:
    """Whether a database takes it; bytes of a name that are no UTF-8 are read as halves of a pair."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _batches(new: Iterable[tuple[str, Stamp]]) -> Iterator[list[tuple[str, Stamp]]]:
    batch: list[tuple[str, Stamp]] = []
    size = 0
    for key, stamp in new:
        if batch and (len(batch) == _BATCH_FILES or size + stamp.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((key, stamp))
        size += stamp.size
    if batch:
        yield batch
