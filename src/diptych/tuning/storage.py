"""Where a study is kept: SQLite in the run folder, or a PostgreSQL that several machines reach."""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from diptych.core.address import redacted, shown_address
from diptych.core.database import is_postgres_address, postgres_address
from diptych.core.errors import ConfigError, DiptychError, SaveError
from diptych.tuning.study import Succession, this_worker

_ATTEMPTS = 5
STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""What Optuna raises when the database cannot be read or written."""
MAX_RETRIES = 5
"""So often is a trial gone on with whose process dies: by then it is most likely the trial that kills it."""


def sqlite_url(folder: Path) -> str:
    """Of the study that lies in a run folder."""
    return f"sqlite:///{(folder / 'study.db').resolve()}"


class StudyLostError(SaveError):
    """The database of a study cannot be read or written any more."""


class _Storage(RDBStorage):
    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state; a queued trial that starts also gets its worker, before the sampler takes its time.

        If the process dies in that time, there is no heartbeat yet, and others find the trial only by its worker.
        """
        is_set = super().set_trial_state_values(trial_id, state, values)
        if is_set and state == TrialState.RUNNING:
            self.set_trial_user_attr(trial_id, "worker", this_worker())
        return is_set

    def record_heartbeat(self, trial_id: int) -> None:
        """One that is lost is nothing: the thread tries again, and the trial itself says when the database is gone."""
        with suppress(*STORAGE_ERRORS):
            super().record_heartbeat(trial_id)


@contextmanager
def opened_storage(url: str, *, heartbeat_s: int = 30) -> Iterator[RDBStorage]:
    """A database of trials, made if it is not there. A trial that is silent for three heartbeats is another's to go on with.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`.
        heartbeat_s: seconds between signs of life.

    Raises:
        ConfigError: it cannot be reached, or is damaged.
        StudyLostError: it could not be read or written later, while the block ran.
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
            f"{shown_address(url)}: cannot be read or written any more ({_one_line(lost)}); mend it, or make room on the "
            "disk, then the same command continues"
        ) from None
    finally:
        with suppress(*STORAGE_ERRORS):
            storage.remove_session()
        storage.engine.dispose()


def _storage_error(error: BaseException | None) -> Exception | None:
    """What the database raised, if that led to an error. Optuna itself fails with an UnboundLocalError after some of them."""
    while error is not None and not isinstance(error, DiptychError):
        if isinstance(error, STORAGE_ERRORS):
            return error
        error = error.__cause__ or error.__context__
    return None


def _check_file(url: str) -> None:
    """Refuse a damaged file before anything is written into it."""
    scheme, _, name = url.partition(":///")
    file = Path(name)
    if scheme != "sqlite" or not name or not file.is_file() or not file.stat().st_size:
        return
    try:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True)
        try:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError:  # It may not be written, or another process holds it: opening it says so.
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
    for attempt in range(_ATTEMPTS):
        try:
            return _Storage(
                address,
                engine_kwargs={"connect_args": connect, "pool_pre_ping": True},
                heartbeat_interval=heartbeat_s,
                grace_period=3 * heartbeat_s,
                heartbeat_stale_trial_callback=Succession(max_retry=MAX_RETRIES),
            )
        except ModuleNotFoundError:
            raise ConfigError("a study in PostgreSQL needs psycopg: pip install 'diptych[postgres]'") from None
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise ConfigError(f"storage {shown!r} is invalid: {_one_line(error)}") from None
        except (DBAPIError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if attempt + 1 == _ATTEMPTS or "already exists" not in str(error):  # Two workers that make it at once.
                raise ConfigError(f"storage {shown} cannot be reached: {_one_line(error)}") from None
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _sqlalchemy_url(url: str) -> str:
    """The address of a study, with the database driver."""
    if is_postgres_address(url):
        return f"postgresql+psycopg://{postgres_address(url).partition('://')[2]}"
    scheme, colon, rest = url.strip().partition("://")
    if not colon or scheme.lower() != "sqlite":
        what = f"storage {shown_address(url)!r}" if colon else "the storage"
        raise ConfigError(f"{what} is not known: write sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    return f"sqlite://{rest}"


def _one_line(error: Exception) -> str:
    cause: BaseException = error
    while (inner := getattr(cause, "orig", None) or cause.__cause__) is not None:
        cause = inner
    return " ".join(redacted(str(cause)).split())[:200]
