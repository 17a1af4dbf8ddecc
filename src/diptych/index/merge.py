"""Merge indexes."""

from collections.abc import Iterable

from diptych.core.errors import IndexingError
from diptych.core.progress import Track, silently
from diptych.index.entry import Entry
from diptych.index.protocol import Index

_BATCH = 4096


def merge(target: Index, parts: Iterable[Index], *, track: Track = silently) -> int:
    """Add the entries of other indexes to an index, and return their number. Existing entries with the same keys are replaced.

    Each batch is committed separately. After an interruption, call the function again with the same arguments.

    Args:
        target: the index to add to.
        parts: the indexes to read.
        track: reports progress.

    Raises:
        BusyError: another process is writing to the target.
        IndexingError: a part has vectors of another model, or the target cannot be written.
    """
    num = 0
    with target.writing():
        for part in parts:
            if part.dim != target.dim or not set(part.models) & set(target.models):
                raise IndexingError(
                    f"{part.place}: has vectors of the model {part.model} ({part.bundle}), and {target.place} those of "
                    f"{target.model} ({target.bundle}); they do not compare"
                )
            with track(part.place, len(part)) as advance:
                batch = list[Entry]()
                while batch := part.entries(after=batch[-1].key if batch else "", limit=_BATCH):
                    num += len(batch)
                    missing = {entry.digest for entry in batch if not target.has_vector(entry.digest)}
                    target.add(batch, part.vectors(sorted(missing)))
                    for _ in batch:
                        advance()
            if part.num_broken():
                stamps = part.stamps()
                target.add([], {}, broken=[(key, stamps[key], reason) for key, reason in part.broken().items()])
    return num
