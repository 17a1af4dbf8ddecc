"""Find duplicates among the pictures of an index, and compute missing perceptual hashes."""

from concurrent.futures import ThreadPoolExecutor

from diptych.core.errors import BusyError, ImageError, IndexingError
from diptych.core.lists import batched
from diptych.core.progress import Track, silently
from diptych.images.pool import DecodePool
from diptych.index.entry import Entry
from diptych.index.groups import DuplicateGroup
from diptych.index.protocol import Index
from diptych.search.scan import ScannedFile, digest_of, read_picture

_BATCH = 256
"""Number of contents whose hashes are stored at a time."""


def find_duplicates(index: Index, *, threshold: float = 0.98, track: Track = silently) -> list[DuplicateGroup]:
    """Groups of identical files, of copies of the same picture, and of pictures that are similar according to the model.

    Copies are found by perceptual hashes. Hashes that are missing in an index of an earlier version are computed from the
    files, and stored if the index can be written. If the file of a picture was deleted or changed, only its digest and vector
    are compared.

    Args:
        index: the index to search.
        threshold: minimum cosine of similar pictures.
        track: reports the number of computed hashes.

    Raises:
        IndexingError: the index cannot be read.
    """
    missing = dict[str, list[Entry]]()
    for entry in index.without_phash():
        missing.setdefault(entry.digest, []).append(entry)
    phashes, can_write = dict[str, int](), True
    with track("pictures", len(missing)) as advance, DecodePool() as pool, ThreadPoolExecutor(2) as threads:
        for batch in batched(missing.values(), _BATCH):
            found = dict[str, int]()
            for entries, phash in zip(batch, threads.map(lambda files: _phash(pool, files), batch), strict=True):
                if phash is not None:
                    found[entries[0].digest] = phash
                advance()
            if found and can_write:
                try:
                    with index.writing(wait_s=0):
                        index.set_phashes(found)
                except (BusyError, IndexingError):  # The index cannot be written now.
                    can_write = False
            phashes |= found
    return index.duplicates(threshold, phashes=phashes)


def _phash(pool: DecodePool, entries: list[Entry]) -> int | None:
    """The perceptual hash of a content, from its first unchanged file; None if there is none, or it cannot be decoded."""
    for entry in entries:
        try:
            content = read_picture(ScannedFile(key=entry.key, stamp=entry.stamp, target=entry.target))
            if digest_of(content) == entry.digest:
                return pool.phash(content)
        except (OSError, ImageError):
            continue
    return None
