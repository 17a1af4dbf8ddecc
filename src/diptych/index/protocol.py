"""The interface of an index in a folder or in PostgreSQL. Shapes: E embedding, Q queries."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from jaxtyping import Float32
from numpy import ndarray

from diptych.index.approximate import AnnInfo, AnnKind
from diptych.index.entry import Entry, FileStat, SearchHit
from diptych.index.filters import Filter
from diptych.index.groups import DuplicateGroup
from diptych.index.hnsw import Hnsw


@runtime_checkable
class Index(Protocol):
    """An open index. It can be read at any time, and changed within `writing`.

    A vector belongs to a content: entries refer to it by digest, and files with the same content share it. Readers see the last
    committed change. Every method raises IndexingError if the index cannot be read.
    """

    place: str
    """The folder or the address, for messages."""
    dim: int
    """Embedding dimension."""
    models: tuple[str, ...]
    """Names of the model that computed the vectors. The current name comes first; older versions of Diptych used others."""
    bundle: str
    """Path of the bundle of that model when the index was created."""

    @property
    def model(self) -> str:
        """Identity of the model that computed the vectors: the first of `models`."""

    def close(self) -> None:
        """Close files and connections."""

    def __enter__(self) -> "Index": ...

    def __exit__(self, *_: object) -> None: ...

    def __len__(self) -> int:
        """Number of entries."""

    def writing(self, *, wait_s: float = 10.0) -> AbstractContextManager[None]:
        """Context in which this process is the only writer. Others can still read.

        Args:
            wait_s: time limit for waiting for another writer, in seconds.

        Raises:
            BusyError: another process is still writing after the time limit. The message names the process.
            IndexingError: the index cannot be written.
        """

    def rename_model(self, models: Sequence[str]) -> None:
        """Store the names of the same model, the current one first.

        Raises:
            IndexingError: the index could not be written.
        """

    def stamps(self, below: Sequence[str] | None = None) -> dict[str, FileStat]:
        """File size and modification time of entries and unreadable pictures, by key.

        Args:
            below: folders. Only pictures in them and their subfolders are returned; None for all pictures.
        """

    def sidecars(self, below: Sequence[str] | None = None) -> dict[str, FileStat]:
        """Size and modification time of the text files that captions were read from, by key of the entry.

        The size is -1 if it is unknown. For `below`, see `stamps`.
        """

    def targets(self, below: Sequence[str] | None = None) -> dict[str, str]:
        """Paths with all symbolic links resolved, by key, of the entries for which they differ from the key (see `stamps`)."""

    def some_captions(self, num: int) -> list[str]:
        """The first captions of at most `num` entries, which are an arbitrary but fixed sample of those with captions."""

    def digest_of(self, key: str) -> str | None:
        """The digest of the content of an entry; None if the entry does not exist."""

    def with_digest(self, digest: str) -> list[Entry]:
        """The entries with a content, sorted by key."""

    def has_vector(self, digest: str) -> bool:
        """Whether the index has the vector of a content."""

    def broken(self, below: Sequence[str] | None = None) -> dict[str, str]:
        """The reasons why pictures could not be read, by key (see `stamps`)."""

    def num_broken(self) -> int:
        """Number of pictures that could not be read."""

    def left_out(self) -> dict[str, int]:
        """Number of pictures of unsupported formats in the indexed folders, by suffix."""

    def set_left_out(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Store the number of pictures of unsupported formats in scanned folders, by folder and suffix.

        Raises:
            IndexingError: the index could not be written.
        """

    def entries(self, selected: Filter | None = None, *, after: str = "", limit: int | None = None) -> list[Entry]:
        """The entries that a filter selects, sorted by key.

        Args:
            selected: the filter; None for all entries.
            after: return only entries with a greater key.
            limit: maximum number of entries; None for no limit.
        """

    def keys(self, selected: Filter | None = None) -> list[str]:
        """The sorted keys of the entries that a filter selects; of all entries if it is None."""

    def keys_at(self, place: str) -> list[str]:
        """The key of the entry with a path, if it exists, and the sorted keys of the entries in the folder with that path."""

    def without_phash(self) -> list[Entry]:
        """The entries without a perceptual hash, sorted by key."""

    def common_folder(self) -> str | None:
        """The deepest folder that contains all pictures; None if it is the root of the file system, or if there are none."""

    def add(
        self,
        entries: Sequence[Entry],
        vectors: Mapping[str, Float32[ndarray, " E"]],
        *,
        broken: Sequence[tuple[str, FileStat, str]] = (),
        gone: Sequence[str] = (),
    ) -> None:
        """Add or replace entries, in one transaction. For an index in a folder, call it only within `writing`.

        Args:
            entries: the entries. An entry with the same key is replaced.
            vectors: unit vectors by digest, for the contents whose vectors are not in the index.
            broken: (key, size and modification time, reason) of pictures that could not be read.
            gone: keys of entries to remove, such as the old paths of pictures that were moved.

        Raises:
            IndexingError: a vector is missing or has the wrong dimension, the index could not be written, or the method was
                called outside `writing`.
        """

    def repair(self) -> None:
        """Repair the damage that `verify` finds; call it within `writing`.

        Damaged vectors are removed, and `lost` lists their entries, which must be added again. Damaged codes and ANN structures
        are rebuilt.

        Raises:
            IndexingError: the index cannot be read or written.
        """

    def lost(self) -> set[str]:
        """Keys of entries without a vector. Searches do not find them until they are added again with a vector."""

    def remove(self, keys: Iterable[str]) -> int:
        """Remove entries, and return their number. Their vectors stay until `compact`.

        Raises:
            IndexingError: the index could not be written.
        """

    def compact(self, *, least_share: float = 0.0) -> int:
        """Remove vectors without an entry, and return their number. For an index in a folder, call it only within `writing`.

        Args:
            least_share: in a folder, do nothing unless more than this share of all vectors has no entry, because the whole
                file of vectors is rewritten.

        Raises:
            IndexingError: the index could not be written.
        """

    def search(
        self, queries: Float32[ndarray, "Q E"], *, top: int, skip: int = 0, selected: Filter | None = None
    ) -> list[list[SearchHit]]:
        """The entries nearest to each query, sorted by decreasing score.

        The order is total: equal scores are sorted by the order in which the vectors were added, and entries of one vector by
        key. Scores do not depend on the request, so a smaller request returns the first hits of a larger one.

        Args:
            queries: unit vectors.
            top: maximum number of hits per query, including those that are skipped.
            skip: number of first hits to leave out. Their metadata is not read.
            selected: filter of the entries to search; None for all entries.
        """

    def set_phashes(self, phashes: Mapping[str, int]) -> None:
        """Store perceptual hashes by digest, for entries that were added without.

        Raises:
            IndexingError: the index could not be written.
        """

    def duplicates(self, threshold: float, *, phashes: Mapping[str, int] | None = None) -> list[DuplicateGroup]:
        """Groups of identical files, of the same picture, and of similar pictures (`groups.duplicate_groups`).

        Args:
            threshold: minimum cosine of similar pictures.
            phashes: perceptual hashes by digest, for contents that have none in the index.
        """

    def vectors(self, digests: Sequence[str]) -> dict[str, Float32[ndarray, " E"]]:
        """The vectors of contents, by digest.

        Raises:
            IndexingError: a content has no vector.
        """

    def build(self, kind: AnnKind | None, queries: Float32[ndarray, "Q E"] | None = None) -> AnnInfo | Hnsw | None:
        """Build a structure for approximate nearest-neighbor (ANN) search, or delete it, and return its description.

        For an index in a folder, call it only within `writing`.

        Args:
            kind: "hnsw" in PostgreSQL, "signs" in a folder; None to delete the structure and search exactly.
            queries: unit vectors of texts, on which the recall is measured in addition to pictures of the index.

        Raises:
            ConfigError: the index is empty, it does not support this kind, or the exact search is faster.
            IndexingError: the index could not be written.
        """

    def built(self) -> AnnInfo | Hnsw | None:
        """The description of the ANN structure, whose `str` is a one-line summary; None if there is none."""

    def verify(self) -> list[str]:
        """Messages about faults of the index and what to do about them; empty if there are none.

        In a folder, every block of the files and every row of the tables is compared with its checksum.
        """

    def remarks(self) -> list[str]:
        """Messages about unusual facts that are not faults, such as an interrupted addition."""

    def size(self) -> dict[str, int]:
        """Numbers of `entries`, `vectors`, `unused` vectors (without entry), `unreadable` pictures, and `bytes` on the disk."""
