"""Opens the database of a study: SQLite in the study's folder, or PostgreSQL for several machines."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from diptych.core.address import redacted, shown_address
from diptych.core.database import is_postgres_address, postgres_address
from diptych.core.errors import ConfigError, DiptychError, SaveError
from diptych.core.retry import retry
from diptych.tuning.study import Succession, this_worker

_ATTEMPTS = 5
STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""What Optuna raises when the database cannot be read or written."""
MAX_RETRIES = 5
"""Number of times that a trial is queued again after its process has died. After that, the trial is the likely cause."""


def sqlite_url(folder: Path) -> str:
    """The SQLite URL of the study in a folder.

    >>> sqlite_url(Path("/runs/tune"))
    'sqlite:////runs/tune/study.db'
    """
    return f"sqlite:///{(folder / 'study.db').resolve()}"


class StudyLostError(SaveError):
    """The database of a study cannot be read or written any more."""


class _Storage(RDBStorage):
    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial. If a queued trial starts, also set its worker, before the sampler runs.

        If the process dies while the sampler runs, there is no heartbeat yet, and other processes need the worker to detect it.
        """
        is_set = super().set_trial_state_values(trial_id, state, values)
        if is_set and state == TrialState.RUNNING:
            self.set_trial_user_attr(trial_id, "worker", this_worker())
        return is_set

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat and ignore errors: the thread tries again, and the trial itself reports a lost database."""
        with suppress(*STORAGE_ERRORS):
            super().record_heartbeat(trial_id)


@contextmanager
def opened_storage(url: str, *, heartbeat_s: int = 30) -> Iterator[RDBStorage]:
    """Context manager that opens the database of a study, and creates it if it does not exist.

    A trial that misses three heartbeats is queued again.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`.
        heartbeat_s: seconds between heartbeats.

    Raises:
        ConfigError: the database cannot be reached, or is damaged.
        StudyLostError: the database could not be read or written while the block ran.
    """
    address = _sqlalchemy_url(url)
    _check_file(address)
    storage = _open(address, heartbeat_s, shown=shown_address(url))
    try:
        yield storage
    except Exception as error:
        lost = _storage_error(error)
        if lost is None:
            raise
        raise StudyLostError(
            f"{shown_address(url)}: cannot be read or written any more ({_one_line(lost)}); repair it, or make room on the "
            "disk, then the same command continues"
        ) from None
    finally:
        with suppress(*STORAGE_ERRORS):
            storage.remove_session()
        storage.engine.dispose()


def _storage_error(error: BaseException | None) -> Exception | None:
    """The database error that caused an error, or None. After some of them, Optuna raises an UnboundLocalError."""
    while error is not None and not isinstance(error, DiptychError):
        if isinstance(error, STORAGE_ERRORS):
            return error
        error = error.__cause__ or error.__context__
    return None


def _check_file(url: str) -> None:
    """Check that an SQLite file is not damaged, before anything is written to it."""
    scheme, _, name = url.partition(":///")
    file = Path(name)
    if scheme != "sqlite" or not name or not file.is_file() or not file.stat().st_size:
        return
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:  # It is read-only or locked by another process; `_open` reports that.
        return
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise ConfigError(
            f"{file}: is damaged ({' '.join(found.split())[:200]}); put a copy of it in its place, or begin a new study in "
            "another folder with --out"
        )


def _open(address: str, heartbeat_s: int, *, shown: str) -> RDBStorage:
    connect = {"timeout": 60} if address.startswith("sqlite") else {"connect_timeout": 10}

    def open_storage() -> RDBStorage:
        return _Storage(
            address,
            engine_kwargs={"connect_args": connect, "pool_pre_ping": True},
            heartbeat_interval=heartbeat_s,
            grace_period=3 * heartbeat_s,
            heartbeat_stale_trial_callback=Succession(max_retry=MAX_RETRIES),
        )

    try:
        return retry(
            open_storage,
            attempts=_ATTEMPTS,
            is_temporary=lambda error: "already exists" in str(error),  # Two workers create it at once.
            wait_s=lambda attempt, _: 0.2 * 2**attempt,
        )
    except ModuleNotFoundError:
        raise ConfigError("a study in PostgreSQL needs psycopg: pip install 'diptych[postgres]'") from None
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ConfigError(f"storage {shown!r} is invalid: {_one_line(error)}") from None
    except (DBAPIError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise ConfigError(f"storage {shown} cannot be reached: {_one_line(error)}") from None


def _sqlalchemy_url(url: str) -> str:
    """The address of a study, with the database driver."""
    if is_postgres_address(url):
        return f"postgresql+psycopg://{postgres_address(url).partition('://')[2]}"
    scheme, colon, rest = url.strip().partition("://")
    if not colon or scheme.lower() != "sqlite":
        what = f"storage {shown_address(url)!r}" if colon else "the storage"
        raise ConfigError(f"{what} is unknown: write sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    return f"sqlite://{rest}"


def _one_line(error: Exception) -> str:
    cause: BaseException = error
    while (inner := getattr(cause, "orig", None) or cause.__cause__) is not None:
        cause = inner
    return " ".join(redacted(str(cause)).split())[:200]
