"""Keep an index in sync with folders: embed new pictures, recognize moved ones, and skip unchanged ones."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ImageError, IndexingError
from diptych.core.lists import check_list
from diptych.core.progress import Track, silently
from diptych.images.formats import LeftOut
from diptych.images.pool import DecodePool
from diptych.index.entry import Entry, FileStat
from diptych.index.open_index import open_index, open_or_create_index
from diptych.index.protocol import Index
from diptych.index.vector_file import VectorDtype
from diptych.inference.embedder import Embedder
from diptych.inference.loaded_bundle import LoadedBundle
from diptych.search.check_model import check_model
from diptych.search.scan import Omissions, ScannedFile, describe_picture, digest_of, read_captions, read_picture, scan

_BATCH_FILES, _BATCH_BYTES = 256, 128 * 2**20
"""Maximum size of a batch, which is committed in one transaction and repeated after a crash."""
COMPACT_SHARE = 0.25
"""Vectors of removed pictures are deleted when they exceed this share of all vectors, because this rewrites the whole file."""
_UNREAD = "cannot be read ("
"""Prefix of the reason if a file could not be read. Earlier versions stored such reasons in the index."""
_WAIT_S = 30.0
"""Time limit for waiting for another writer, in seconds. Short additions that were started together take turns."""


@dataclass(kw_only=True)
class Update:
    """Report of an update: numbers of files by what happened to them, and the files that were left out."""

    unchanged: int = 0
    """Pictures that are in the index already, with the same content and captions."""
    added: int = 0
    """New pictures."""
    changed: int = 0
    """Files of the index with a new content."""
    moved: int = 0
    """Files that were moved or renamed; not embedded again."""
    copies: int = 0
    """New files whose content is in the index already; not embedded again."""
    recaptioned: int = 0
    """Unchanged pictures with changed captions; not embedded again."""
    repaired: int = 0
    """Unchanged pictures whose vectors were missing or damaged; embedded again."""
    lost: int = 0
    """Pictures of other folders without a vector. Searches do not find them until their folders are added again."""
    vanished: int = 0
    """Entries whose files no longer exist."""
    dropped: int = 0
    """Vanished entries that were removed from the index."""
    is_prune_refused: bool = False
    """Whether nothing was removed because it would have been more than half of the index."""
    links: int = 0
    """Symbolic links to places outside the folders, which were not followed."""
    hidden: int = 0
    """Hidden pictures and folders, and those of other programs; left out."""
    excluded: int = 0
    """Pictures and folders that match a pattern of `exclude`; left out."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Pictures of unsupported formats by suffix, with advice."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of pictures and subfolders. A picture that cannot be decoded is not read again until it changes. The next
    update tries the others again."""
    unread_captions: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of caption files that could not be read. The index contains their pictures without captions."""


def open_or_create(place: str | Path, clip: LoadedBundle | None, *, kind: VectorDtype = "float32") -> Index:
    """Open the index at a folder or an address. If it does not exist, create it for the model of a bundle.

    Args:
        place: a folder, or the address of a database (`open_index`). Several processes may create it at the same time.
        clip: the model of the index; None opens an existing index without checking its model.
        kind: number format of the vectors of a new index.

    Raises:
        IndexingError: the index does not exist and `clip` is None, or it has vectors of another model.
        ConfigError: the address is invalid, or an extra is missing.
        BusyError: another process has been creating the index for ten seconds.
    """
    if clip is None:
        return open_index(place)
    bundle = "" if clip.path is None else str(clip.path.resolve() if clip.path.exists() else clip.path)
    model, *aliases = clip.identities
    dim = clip.bundle.config.embed_dim
    index = open_or_create_index(place, dim=dim, model=model, bundle=bundle, kind=kind, aliases=aliases)
    check_model(index, clip, adds=True)
    return index


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of the files that one of several processes adds, selected by a hash of the path."""

    rank: int
    """Number of the process, within [0, size)."""
    size: int
    """Number of processes."""
    known: Mapping[str, FileStat]
    """Files of the index into which all shares will be merged, by key. Unchanged ones are in no share."""

    def has(self, key: str, stamp: FileStat) -> bool:
        """Whether a file belongs to this share."""
        return crc32(key.encode()) % self.size == self.rank and self.known.get(key) != stamp


def _refuse(num_gone: int, num_entries: int) -> bool:
    """The default of `confirm`: do not remove more than half of an index."""
    return False


def update(
    index: Index,
    clip: LoadedBundle,
    folders: Sequence[Path],
    *,
    prune: bool = False,
    confirm: Callable[[int, int], bool] = _refuse,
    follow_links: bool = False,
    exclude: Sequence[str] = (),
    share: Share | None = None,
    track: Track = silently,
) -> Update:
    """Update an index with the pictures of folders and their subfolders. An interruption loses at most the current batch.

    An index of an earlier format is upgraded, damage is repaired (`Index.repair`), and the current name of the model is stored.

    Args:
        index: the index to update.
        clip: the model of the vectors.
        folders: the folders to scan.
        prune: remove entries of these folders whose files no longer exist.
        confirm: called with the number of entries to remove and the number of all entries if more than half of the index would
            be removed, for example because a disk is not mounted. Nothing is removed unless it returns True.
        follow_links: follow symbolic links that lead out of the folders (`scan`).
        exclude: patterns of files and folders to leave out (`scan`). Entries that match one count as deleted files.
        share: add only the files of this share.
        track: reports progress.

    Raises:
        BusyError: another process is still writing after 30 seconds.
        IndexingError: a folder cannot be read, or the disk is full.
    """
    check_list(folders, "folders")
    phashes = dict[str, int]()

    def store_phash(content: bytes, phash: int) -> None:
        phashes[digest_of(content)] = phash

    with index.writing(wait_s=_WAIT_S), DecodePool(clip.embedder.num_decoders, on_phash=store_phash) as pool:
        index.repair()
        embedder = Embedder(clip.bundle, batch_size=clip.embedder.batch_size, decode_pool=pool)
        names = tuple(dict.fromkeys((*clip.identities, *index.models)))
        if index.models != names:
            index.rename_model(names)
        omissions = Omissions()
        files = scan(folders, follow_links=follow_links, exclude=exclude, omissions=omissions)
        updater = _Updater(index, embedder, files, share, phashes, roots=[str(folder.resolve()) for folder in folders])
        updater.find_gone(folders, omissions)
        return updater.update(prune=prune, confirm=confirm, track=track)


class _Updater:
    """One update of an index."""

    def __init__(
        self,
        index: Index,
        embedder: Embedder,
        files: Iterable[ScannedFile],
        share: Share | None,
        phashes: dict[str, int],
        *,
        roots: Sequence[str],
    ) -> None:
        self.index, self.embedder, self.report, self.share = index, embedder, Update(), share
        self.phashes = phashes
        """Perceptual hashes of the decoded pictures, by digest."""
        self.found = dict[str, ScannedFile]()
        for file in files:
            if _is_text(file.key) and _is_text(file.path):
                if share is None or share.has(file.key, file.stamp):
                    self.found[file.key] = file
            elif share is None or share.rank == 0:
                self.report.unreadable.append((_shown(file.key), "has a name that is not UTF-8"))
        # Read only the entries of these folders, so that the cost does not depend on the size of the index.
        self.known, self.sidecars, self.targets = index.stamps(roots), index.sidecars(roots), index.targets(roots)
        self.unread = {key for key, reason in index.broken(roots).items() if reason.startswith(_UNREAD)}
        self.lost = index.lost()
        self.gone = set[str]()
        self.gone_of_digest: dict[str | None, list[str]] = {}

    def find_gone(self, folders: Sequence[Path], omissions: Omissions) -> None:
        """Find the entries whose files no longer exist, and add to the report what the scan left out."""
        self.report.links, self.report.hidden = omissions.links, omissions.hidden
        self.report.excluded, self.report.left_out = omissions.excluded, omissions.formats.left_out()
        self._left_out = omissions.formats.counts
        self.report.unreadable += [(_shown(path), reason) for path, reason in omissions.unreadable]
        self.report.unread_captions += [(_shown(path), reason) for path, reason in omissions.unread_captions]
        if self.share is not None:  # A share of the files does not show which entries have no file.
            return
        roots = tuple(f"{folder.resolve()}/" for folder in folders)
        existing = {*self.found, *(path for path, _ in omissions.unreadable)}
        unread = tuple(f"{path}/" for path in omissions.unread_folders)
        self.gone = {
            key for key in self.known if key.startswith(roots) and key not in existing and not key.startswith(unread)
        }
        for key in sorted(self.gone):
            self.gone_of_digest.setdefault(self.index.digest_of(key), []).append(key)

    def update(self, *, prune: bool, confirm: Callable[[int, int], bool], track: Track) -> Update:
        """Add new and changed pictures, then update changed captions, then remove vanished entries, and return the report."""
        files = self.found.values()
        new = [file for file in files if not self._is_known(file)]
        self.report.unchanged = len(files) - len(new)
        with track("pictures", len(new)) as advance:
            for batch in _batches(new):
                self._add_batch(batch)
                for _ in batch:
                    advance()
        self._update_captions()
        if self.share is None:
            self.index.set_left_out(self._left_out)
        self.report.vanished = len(self.gone)
        if prune:
            self._prune(confirm)
        self.report.lost = len(self.index.lost()) if self.lost else 0
        return self.report

    def _prune(self, confirm: Callable[[int, int], bool]) -> None:
        """Remove entries of deleted files. Removing more than half of all entries needs confirmation."""
        num_gone = sum(len(keys) for digest, keys in self.gone_of_digest.items() if digest is not None)
        num = len(self.index)
        if 2 * num_gone > num and not confirm(num_gone, num):
            self.report.is_prune_refused = True
            return
        self.report.dropped = self.index.remove(self.gone)
        self.index.compact(least_share=COMPACT_SHARE)

    def _is_known(self, file: ScannedFile) -> bool:
        if file.key in self.unread or file.key in self.lost:
            return False
        return self.known.get(file.key) == file.stamp and self.targets.get(file.key) == file.target

    def _add_batch(self, batch: list[ScannedFile]) -> None:
        """Read a batch of files, embed new contents, and commit."""
        entries: list[Entry] = []
        contents: dict[str, bytes] = {}
        for file in batch:
            try:
                content = read_picture(file)
            except OSError as error:  # The next update tries again, so the index is not changed.
                self.report.unreadable.append((file.key, f"{_UNREAD}{error.strerror})"))
                continue
            entry = describe_picture(file, content, self._captions(file))
            entries.append(entry)
            if entry.digest not in contents and not self.index.has_vector(entry.digest):
                contents[entry.digest] = content
        vectors, reasons = self._embed(contents)
        broken = [(entry.key, entry.stamp, reasons[entry.digest]) for entry in entries if entry.digest in reasons]
        decoded = [replace(entry, phash=self._phash(entry.digest)) for entry in entries if entry.digest not in reasons]
        moved_from = self._count(decoded, vectors)
        self.index.add(decoded, vectors, broken=broken, gone=moved_from)
        self.gone.difference_update(moved_from)
        self.report.unreadable += [(key, reason) for key, _, reason in broken]

    def _phash(self, digest: str) -> int | None:
        """The perceptual hash of a content, from this update or from the index."""
        if digest in self.phashes:
            return self.phashes[digest]
        known = (entry.phash for entry in self.index.with_digest(digest))
        return next((phash for phash in known if phash is not None), None)

    def _captions(self, file: ScannedFile) -> tuple[str, ...]:
        try:
            return read_captions(file.sidecar)
        except OSError as error:
            assert file.sidecar is not None
            self.report.unread_captions.append((file.sidecar.path, f"cannot be read ({error.strerror})"))
            return ()

    def _update_captions(self) -> None:
        """Update the captions of unchanged pictures whose caption file was added, changed or deleted."""
        stale = [file for file in self.found.values() if self._is_known(file) and self._is_stale(file)]
        for batch in _batches(stale):
            entries = list[Entry]()
            for file in batch:
                known = self.index.with_digest(self.index.digest_of(file.key) or "")
                entry = next((entry for entry in known if entry.key == file.key), None)
                if entry is None:  # A picture that could not be read.
                    continue
                stamp = None if file.sidecar is None else file.sidecar.stamp
                entries.append(replace(entry, captions=self._captions(file), sidecar=stamp))
                is_new = entries[-1].captions != entry.captions
                self.report.recaptioned += is_new
                self.report.unchanged -= is_new
            self.index.add(entries, {})

    def _is_stale(self, file: ScannedFile) -> bool:
        return self.sidecars.get(file.key) != (None if file.sidecar is None else file.sidecar.stamp)

    def _embed(self, contents: dict[str, bytes]) -> tuple[dict[str, Float32[ndarray, " E"]], dict[str, str]]:
        """Vectors by digest, and by digest of pictures that cannot be decoded, the reason."""
        digests, reasons = list(contents), dict[str, str]()

        def store_reason(position: int, error: ImageError) -> None:
            reasons[digests[position]] = str(error).partition(": ")[2]

        emb = self.embedder.encode_images(list(contents.values()), on_error=store_reason)
        vectors = {digest: emb[row] for row, digest in enumerate(digests) if digest not in reasons}
        if not all(np.isfinite(vector).all() for vector in vectors.values()):
            raise IndexingError("the model computes vectors that are not numbers; is the bundle damaged?")
        return vectors, reasons

    def _count(self, entries: Sequence[Entry], new: Iterable[str]) -> list[str]:
        """Count what happened to each entry, and return the old keys of moved pictures; `new` are the embedded digests."""
        left, report = set(new), self.report
        moved_from: list[str] = []
        for entry in entries:
            if self.index.digest_of(entry.key) == entry.digest:  # The file was rewritten with the same content.
                report.repaired += entry.key in self.lost
                report.unchanged += entry.key not in self.lost
            elif entry.key in self.known and entry.key not in self.unread:
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


def _shown(path: str) -> str:
    """A printable path: bytes that are not UTF-8 are shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_text(key: str) -> bool:
    """Whether a database can store a path. Python decodes bytes of file names that are not UTF-8 to surrogates."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _batches(files: Iterable[ScannedFile]) -> Iterator[list[ScannedFile]]:
    batch: list[ScannedFile] = []
    size = 0
    for file in files:
        if batch and (len(batch) == _BATCH_FILES or size + file.stamp.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.stamp.size
    if batch:
        yield batch
