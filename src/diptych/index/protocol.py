"""What an index promises, wherever it lies. Shapes: E embedding, Q queries."""

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
    """One index, open for reading; `writing` opens it for changes. Every method raises IndexingError where it cannot be read.

    Vectors belong to contents: entries point to them by digest. Readers see the last whole change.
    """

    place: str
    """The folder or the address, as people are told."""
    dim: int
    """Numbers of a vector."""
    models: tuple[str, ...]
    """Names of the model that made the vectors, the current one first; older versions of Diptych named it otherwise."""
    bundle: str
    """Where that model lies, or lay."""

    @property
    def model(self) -> str:
        """Tells the model that made the vectors from any other: the first of `models`."""

    def close(self) -> None:
        """Let go of what is open."""

    def __enter__(self) -> "Index": ...

    def __exit__(self, *_: object) -> None: ...

    def __len__(self) -> int:
        """Entries."""

    def writing(self, *, wait_s: float = 10.0) -> AbstractContextManager[None]:
        """Alone among all who write; readers go on.

        Raises:
            BusyError: another process writes, and still does after so many seconds; its name is told.
            IndexingError: it cannot be written.
        """

    def rename_model(self, models: Sequence[str]) -> None:
        """Store the names of the same model, the current one first.

        Raises:
            IndexingError: it could not be written.
        """

    def stamps(self, below: Sequence[str] | None = None) -> dict[str, FileStat]:
        """Of every entry and every picture that could not be read, by key; of all, or of those in some folders."""

    def sidecars(self, below: Sequence[str] | None = None) -> dict[str, FileStat]:
        """Stamps of the text files that captions were read from, by key of the entry; size -1 if the stamp is not known."""

    def targets(self, below: Sequence[str] | None = None) -> dict[str, str]:
        """Resolved paths of the pictures that a symbolic link leads to, by key of the entry."""

    def some_captions(self, num: int) -> list[str]:
        """The first captions of so many entries at most, drawn as by chance; fewer where few entries have one."""

    def digest_of(self, key: str) -> str | None:
        """The content of an entry; None if there is no such entry."""

    def with_digest(self, digest: str) -> list[Entry]:
        """The entries of a content, by key."""

    def has_vector(self, digest: str) -> bool:
        """Whether the content was embedded before."""

    def broken(self, below: Sequence[str] | None = None) -> dict[str, str]:
        """Pictures that could not be read, with the reason; all, or those in some folders."""

    def num_broken(self) -> int:
        """How many pictures could not be read."""

    def left_out(self) -> dict[str, int]:
        """How many pictures of unsupported formats the indexed folders have, by suffix."""

    def set_left_out(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Store how many pictures of unsupported formats some folders have, by folder and suffix.

        Raises:
            IndexingError: it could not be written.
        """

    def entries(self, selected: Filter | None = None, *, after: str = "", limit: int | None = None) -> list[Entry]:
        """The entries that a filter lets through, by key; at most `limit` of those with a key greater than `after`."""

    def keys(self, selected: Filter | None = None) -> list[str]:
        """Keys of all entries, or of those that a filter lets through, in order."""

    def keys_at(self, place: str) -> list[str]:
        """The keys of an entry and of the entries in a folder, by the path of both, in order."""

    def without_phash(self) -> list[Entry]:
        """The entries without a perceptual hash, by key."""

    def common_folder(self) -> str | None:
        """The nearest folder that contains all pictures; None if that is the root of the file system, or without pictures."""

    def add(
        self,
        entries: Sequence[Entry],
        vectors: Mapping[str, Float32[ndarray, " E"]],
        *,
        broken: Sequence[tuple[str, FileStat, str]] = (),
        gone: Sequence[str] = (),
    ) -> None:
        """Add or replace entries, either all or none. In a folder, call it only within `writing`.

        Args:
            entries: what is known of each picture.
            vectors: unit vectors by digest, of those digests that have none yet.
            broken: (key, stamp, reason) of pictures that could not be read.
            gone: keys to drop, such as the old places of pictures that were moved.

        Raises:
            IndexingError: a vector is missing or has the wrong length, the index could not be written, or another thread or
                process may be writing.
        """

    def repair(self) -> None:
        """Repair the damage that `verify` finds; call it within `writing`.

        Damaged vectors are dropped, and `lost` lists their entries, which must be added again. Damaged codes and structures
        are rebuilt.

        Raises:
            IndexingError: the index cannot be read or written.
        """

    def lost(self) -> set[str]:
        """Keys of entries without a vector. Searches do not find them until they are added again with a vector."""

    def remove(self, keys: Iterable[str]) -> int:
        """Drop entries; how many there were. Their vectors stay until `compact`.

        Raises:
            IndexingError: it could not be written.
        """

    def compact(self, *, least_share: float = 0.0) -> int:
        """Drop vectors without an entry, and return their number. In a folder, call it only within `writing`.

        Args:
            least_share: do nothing unless more than this share of all vectors has no entry. In a folder, all vectors are
                written anew.

        Raises:
            IndexingError: it could not be written.
        """

    def search(
        self, queries: Float32[ndarray, "Q E"], *, top: int, skip: int = 0, selected: Filter | None = None
    ) -> list[list[SearchHit]]:
        """The entries nearest to each query, the nearest first; of pictures of one content all, by key.

        The order is total: equal scores are sorted by the order in which the vectors were added, entries of one vector by key.
        The scores do not depend on the request. Therefore a smaller request returns the first hits of a larger one.

        Args:
            queries: unit vectors.
            top: so many entries.
            skip: leave out so many of the first ones. Only the others are read from the tables.
            selected: which entries are asked at all.
        """

    def set_phashes(self, phashes: Mapping[str, int]) -> None:
        """Store perceptual hashes by digest. Entries of earlier versions have none.

        Raises:
            IndexingError: the index could not be written.
        """

    def duplicates(self, threshold: float, *, phashes: Mapping[str, int] | None = None) -> list[DuplicateGroup]:
        """Groups of identical files, of the same picture by its perceptual hash, and of similar vectors.

        Args:
            threshold: vectors with at least this cosine are similar.
            phashes: perceptual hashes by digest, for contents that have none in the index.
        """

    def vectors(self, digests: Sequence[str]) -> dict[str, Float32[ndarray, " E"]]:
        """Of some contents.

        Raises:
            IndexingError: one has none.
        """

    def build(self, kind: AnnKind | None, queries: Float32[ndarray, "Q E"] | None = None) -> AnnInfo | Hnsw | None:
        """Build what finds nearly the nearest among millions; for None, drop it and search exactly.

        In a folder, call it only within `writing`.

        Args:
            kind: "hnsw" in PostgreSQL, "signs" in a folder.
            queries: unit vectors of texts, on which the recall is measured in addition to pictures of the index.

        Raises:
            ConfigError: the index is empty, it has no such kind, or the exact search is faster.
            IndexingError: it could not be written.
        """

    def built(self) -> AnnInfo | Hnsw | None:
        """What `build` made, if it is still there. As a text, it is one line for people."""

    def verify(self) -> list[str]:
        """What is wrong with it, and what to do; nothing where all is well.

        In a folder, every block of the files and every row of the tables is compared with its checksum.
        """

    def remarks(self) -> list[str]:
        """What is unusual about it and yet no fault, such as an addition that was interrupted."""

    def size(self) -> dict[str, int]:
        """Entries, vectors, vectors that no entry has any more (`unused`), `unreadable` pictures, bytes on the disk."""
