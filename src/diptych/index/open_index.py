"""Open and create indexes in a folder or in PostgreSQL."""

from collections.abc import Sequence
from pathlib import Path

from diptych.core.address import shown_address
from diptych.core.errors import BusyError, ConfigError, IndexingError
from diptych.index.address import folder_of, is_address
from diptych.index.create_local import create_local_index
from diptych.index.local import LocalIndex
from diptych.index.protocol import Index
from diptych.index.tables import holds_local_index
from diptych.index.vector_file import VectorDtype


def open_index(place: str | Path, *, timeout_s: float | None = None) -> Index:
    """Open an existing index.

    Args:
        place: a folder, or `postgresql://USER@HOST/DATABASE?index=NAME`, where NAME is `diptych` if it is left out.
        timeout_s: limit in seconds for a read of a database; a longer read is canceled and raises IndexingError. None for no
            limit. Reads of a folder have no limit.

    Raises:
        IndexingError: the index does not exist, it is damaged, or its server cannot be reached.
        ConfigError: the address is invalid, or an extra is missing.
    """
    if not is_address(place):
        return LocalIndex(folder_of(place))
    _need_psycopg()
    from diptych.index.postgres import PostgresIndex  # noqa: PLC0415  (an extra)

    return PostgresIndex(str(place), timeout_s=timeout_s)


def create_index(
    place: str | Path, *, dim: int, model: str, bundle: str, kind: VectorDtype = "float32", aliases: Sequence[str] = ()
) -> Index:
    """Create an empty index.

    Args:
        place: a folder, or the address of a database (`open_index`). It must be empty or not exist.
        dim: embedding dimension.
        model: identity of the model that computes the vectors.
        bundle: path of the bundle of the model, which is shown in messages and used by commands.
        kind: number format of the stored vectors. A database supports only float32.
        aliases: other names of the same model.

    Raises:
        IndexingError: an index or something else exists at this place, or it cannot be written.
        BusyError: another process has been creating the index for ten seconds.
        ConfigError: the address is invalid, or an extra is missing.
    """
    if not is_address(place):
        return create_local_index(folder_of(place), dim=dim, model=model, bundle=bundle, kind=kind, aliases=aliases)
    if kind != "float32":
        raise ConfigError(f"an index in PostgreSQL stores float32, not {kind}")
    _need_psycopg()
    from diptych.index.create_postgres import create_postgres_index  # noqa: PLC0415  (an extra)

    return create_postgres_index(str(place), dim=dim, model=model, bundle=bundle, aliases=aliases)


def open_or_create_index(
    place: str | Path, *, dim: int, model: str, bundle: str, kind: VectorDtype = "float32", aliases: Sequence[str] = ()
) -> Index:
    """Open an index, or create an empty one. If several processes call this, one creates the index and the others open it.

    The arguments are those of `create_index`. An existing index may have been created with other arguments.

    Raises:
        IndexingError: something else exists at this place, the server cannot be reached, or the index cannot be written.
        BusyError: another process has been creating the index for ten seconds.
        ConfigError: the address is invalid, or an extra is missing.
    """
    if not index_exists(place):
        try:
            return create_index(place, dim=dim, model=model, bundle=bundle, kind=kind, aliases=aliases)
        except (IndexingError, BusyError):
            if not index_exists(place):
                raise
    return open_index(place)


def index_exists(place: str | Path) -> bool:
    """Whether an index exists at a place: a folder, or the address of a database.

    Raises:
        IndexingError: the server cannot be reached.
        ConfigError: the address is invalid, or an extra is missing.
    """
    if not is_address(place):
        return holds_local_index(folder_of(place))
    _need_psycopg()
    from diptych.index.create_postgres import holds_postgres_index  # noqa: PLC0415  (an extra)

    return holds_postgres_index(str(place))


def shown_place(place: str | Path) -> str:
    """The place of an index for messages, without a password."""
    return shown_address(place) if isinstance(place, str) and is_address(place) else str(place)


def _need_psycopg() -> None:
    try:
        import psycopg  # noqa: F401, PLC0415  (an extra)
    except ImportError:
        raise ConfigError("an index in PostgreSQL needs psycopg: pip install 'diptych[postgres]'") from None
