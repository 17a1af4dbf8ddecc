"""An index kept in step with folders: what is new is embedded, what moved is recognised, what is as it was is not read."""

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
from diptych.inference.loaded import LoadedBundle
from diptych.search.scan import Omissions, ScannedFile, describe_picture, digest_of, read_captions, read_picture, scan

_BATCH_FILES, _BATCH_BYTES = 256, 128 * 2**20
"""A batch is committed at once: so much is done again after a crash."""
COMPACT_SHARE = 0.25
"""Vectors of removed pictures are dropped from the files when they are more than this share of all: that writes all anew."""
_UNREAD = "cannot be read ("
"""Start of the reason if a file could not be read. Earlier versions stored such reasons in the index."""
_WAIT_S = 30.0
"""Seconds to wait for another process that writes; short additions that were started together take turns."""


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
    recaptioned: int = 0
    """Pictures as before whose captions have changed; not embedded again."""
    repaired: int = 0
    """Unchanged pictures whose vectors were missing or damaged; embedded again."""
    lost: int = 0
    """Pictures of other folders whose vectors are missing; searches do not find them until their folders are added."""
    vanished: int = 0
    """Gone from the folders."""
    dropped: int = 0
    """Of those, taken out of the index."""
    is_prune_refused: bool = False
    """Whether nothing was dropped because it would have been more than half of the index."""
    links: int = 0
    """Symbolic links that lead out of the folders and were not followed."""
    hidden: int = 0
    """Hidden pictures and folders, and those of other programs; left out."""
    excluded: int = 0
    """Pictures and folders that match a pattern of `exclude`; left out."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Pictures of unsupported formats by suffix, with what to do about them."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of pictures and subfolders. A picture that cannot be decoded is not read again until it changes.
    Everything else is tried again by the next update."""
    unread_captions: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of captions that could not be read; their pictures are in the index without them."""


def open_or_create(place: str | Path, clip: LoadedBundle | None, *, kind: VectorDtype = "float32") -> Index:
    """The index at a folder or an address; a new one for the bundle, if there is none, which keeps numbers of a kind.

    Of several processes that create it at once, one does, and the others open what it created.

    Raises:
        IndexingError: there is none and no bundle is given, or it has another model's vectors.
        ConfigError: the address is none, or an extra is missing.
        BusyError: another process has been creating it for ten seconds.
    """
    if clip is None:
        return open_index(place)
    bundle = "" if clip.path is None else str(clip.path.resolve() if clip.path.exists() else clip.path)
    model, *aliases = _names_of(clip)
    dim = clip.bundle.config.embed_dim
    index = open_or_create_index(place, dim=dim, model=model, bundle=bundle, kind=kind, aliases=aliases)
    check_model(index, clip)
    return index


def check_model(index: Index, clip: LoadedBundle) -> None:
    """Refuse another model's vectors. The index may have any name of the model, such as one that an earlier version gave it.

    Raises:
        IndexingError: the index was made with another model.
    """
    if index.model not in _names_of(clip):
        index.close()
        raise IndexingError(
            f"{index.place}: has vectors of the model {index.model} ({index.bundle}), and {clip.path} is {clip.identity}: "
            "their numbers do not compare; make another index for it"
        )


def _names_of(clip: LoadedBundle) -> tuple[str, ...]:
    """All names of a model, the current one first."""
    names: tuple[str, ...] = getattr(clip, "identities", (clip.identity,))
    return names


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one of several processes takes up: the files whose path's hash falls to it, and that nobody has yet."""

    rank: int
    size: int
    known: Mapping[str, FileStat]
    """What the index has that all shares will be merged into."""

    def has(self, key: str, stamp: FileStat) -> bool:
        """Whether a file is this one's."""
        return crc32(key.encode()) % self.size == self.rank and self.known.get(key) != stamp


def _refuse(num_gone: int, num_entries: int) -> bool:
    """The default of `confirm`: do not drop more than half of an index."""
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
    """Bring an index in step with folders. Stopped at any moment, it loses no more than the batch under way.

    An index of an earlier format is upgraded, damage is repaired (`Index.repair`), and the model's current name is stored.

    Args:
        index: what is brought in step.
        clip: the model of its vectors.
        folders: where to look, subfolders included.
        prune: drop entries of these folders whose file has gone.
        confirm: called with the number of entries to drop and the number of entries if more than half of the index would be
            dropped, for example because a disk is not mounted. Nothing is dropped unless it returns True.
        follow_links: follow symbolic links that lead out of the folders (`scan`).
        exclude: patterns of files and folders to leave out (`scan`). Entries that match one count as deleted files.
        share: take up these files alone.
        track: told how far it is.

    Raises:
        BusyError: another process writes, and still does after 30 seconds.
        IndexingError: a folder cannot be read, or the disk is full.
    """
    check_list(folders, "folders")
    phashes = dict[str, int]()

    def note(content: bytes, phash: int) -> None:
        phashes[digest_of(content)] = phash

    with index.writing(wait_s=_WAIT_S), DecodePool(on_phash=note) as pool:
        index.repair()
        embedder = Embedder(clip.bundle, batch_size=clip.embedder.batch_size, decode_pool=pool)
        names = _names_of(clip)
        names += tuple(name for name in index.models if name not in names)
        if index.models != names:
            index.rename_model(names)
        omissions = Omissions()
        files = scan(folders, follow_links=follow_links, exclude=exclude, omissions=omissions)
        updater = _Updater(index, embedder, files, share, phashes, roots=[str(folder.resolve()) for folder in folders])
        updater.find_gone(folders, omissions)
        return updater.go(prune=prune, confirm=confirm, track=track)


class _Updater:
    """One pass over the folders."""

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
        # An addition costs what its folders hold, not what the index holds.
        self.known, self.sidecars, self.targets = index.stamps(roots), index.sidecars(roots), index.targets(roots)
        self.unread = {key for key, reason in index.broken(roots).items() if reason.startswith(_UNREAD)}
        self.lost = index.lost()
        self.gone = set[str]()
        self.gone_of_digest: dict[str | None, list[str]] = {}

    def find_gone(self, folders: Sequence[Path], omissions: Omissions) -> None:
        """Which entries have no file any more, and what the scan left out."""
        self.report.links, self.report.hidden = omissions.links, omissions.hidden
        self.report.excluded, self.report.left_out = omissions.excluded, omissions.formats.left_out()
        self._left_out = omissions.formats.counts
        self.report.unreadable += [(_shown(path), reason) for path, reason in omissions.unreadable]
        self.report.unread_captions += [(_shown(path), reason) for path, reason in omissions.unread_captions]
        if self.share is not None:  # Who sees a share of the files does not know which have gone.
            return
        roots = tuple(f"{folder.resolve()}/" for folder in folders)
        there = {*self.found, *(path for path, _ in omissions.unreadable)}
        unread = tuple(f"{path}/" for path in omissions.unread_folders)
        self.gone = {
            key for key in self.known if key.startswith(roots) and key not in there and not key.startswith(unread)
        }
        for key in sorted(self.gone):
            self.gone_of_digest.setdefault(self.index.digest_of(key), []).append(key)

    def go(self, *, prune: bool, confirm: Callable[[int, int], bool], track: Track) -> Update:
        """Batch by batch, then captions that have changed, then what has gone."""
        files = self.found.values()
        new = [file for file in files if not self._is_known(file)]
        self.report.unchanged = len(files) - len(new)
        with track("pictures", len(new)) as advance:
            for batch in _batches(new):
                self._take_up(batch)
                for _ in batch:
                    advance()
        self._read_captions_again()
        if self.share is None:
            self.index.set_left_out(self._left_out)
        self.report.vanished = len(self.gone)
        if prune:
            self._prune(confirm)
        self.report.lost = len(self.index.lost()) if self.lost else 0
        return self.report

    def _prune(self, confirm: Callable[[int, int], bool]) -> None:
        """Drop entries of deleted files; more than half of all entries only after confirmation."""
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

    def _take_up(self, batch: list[ScannedFile]) -> None:
        """Read, embed what is new, and commit."""
        entries: list[Entry] = []
        broken: list[tuple[str, FileStat, str]] = []
        contents: dict[str, bytes] = {}
        for file in batch:
            try:
                content = read_picture(file)
            except OSError as error:  # The file is tried again next time, so the index is not changed.
                self.report.unreadable.append((file.key, f"{_UNREAD}{error.strerror})"))
                continue
            entry = describe_picture(file, content, self._captions(file))
            entries.append(entry)
            if entry.digest not in contents and not self.index.has_vector(entry.digest):
                contents[entry.digest] = content
        vectors, reasons = self._embed(contents)
        broken += [(entry.key, entry.stamp, reasons[entry.digest]) for entry in entries if entry.digest in reasons]
        whole = [replace(entry, phash=self._phash(entry.digest)) for entry in entries if entry.digest not in reasons]
        moved_from = self._count(whole, vectors)
        self.index.add(whole, vectors, broken=broken, gone=moved_from)
        self.gone.difference_update(moved_from)
        self.report.unreadable += [(key, reason) for key, _, reason in broken]

    def _phash(self, digest: str) -> int | None:
        """The perceptual hash of a content, from this pass or from the index."""
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

    def _read_captions_again(self) -> None:
        """Of pictures that are as before, whose sidecar came, changed or went."""
        stale = [file for file in self.found.values() if self._is_known(file) and self._is_stale(file)]
        for batch in _batches(stale):
            entries = list[Entry]()
            for file in batch:
                entry = self._entry_of(file.key)
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

    def _entry_of(self, key: str) -> Entry | None:
        digest = self.index.digest_of(key)
        entries = [] if digest is None else self.index.with_digest(digest)
        return next((entry for entry in entries if entry.key == key), None)

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
    """Whether a database takes it; bytes of a name that are no UTF-8 are read as halves of a pair."""
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
