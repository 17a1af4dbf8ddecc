"""Where a study is kept: SQLite in the run folder, or a PostgreSQL that several machines reach."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from diptych.core.address import redacted, shown_address
from diptych.core.errors import ConfigError

_ATTEMPTS = 5
MAX_RETRIES = 5
"""So often is a trial gone on with whose process dies: by then it is most likely the trial that kills it."""


def sqlite_url(folder: Path) -> str:
    """Of the study that lies in a run folder."""
    return f"sqlite:///{(folder / 'study.db').resolve()}"


@contextmanager
def opened_storage(url: str, *, heartbeat_s: int = 30) -> Iterator[RDBStorage]:
    """A database of trials, made if it is not there. A trial that is silent for three heartbeats is another's to go on with.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`.
        heartbeat_s: seconds between signs of life.

    Raises:
        ConfigError: it cannot be reached.
    """
    storage = _open(url, heartbeat_s)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _open(url: str, heartbeat_s: int) -> RDBStorage:
    retry = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)
    scheme, colon, rest = url.partition("://")
    known = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
    if not colon or scheme not in known:
        raise ConfigError(
            f"storage {shown_address(url)!r} is not known: write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    connect = {"timeout": 60} if scheme == "sqlite" else {"connect_timeout": 10}
    for attempt in range(_ATTEMPTS):
        try:
            return RDBStorage(
                f"{known[scheme]}://{rest}",
                engine_kwargs={"connect_args": connect, "pool_pre_ping": True},
                heartbeat_interval=heartbeat_s,
                grace_period=3 * heartbeat_s,
                heartbeat_stale_trial_callback=retry,
            )
        except ModuleNotFoundError:
            raise ConfigError("a study in PostgreSQL needs psycopg: pip install 'diptych[postgres]'") from None
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise ConfigError(f"storage {shown_address(url)!r} is not one: {_one_line(error)}") from None
        except (DBAPIError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if attempt + 1 == _ATTEMPTS or "already exists" not in str(error):  # Two workers that make it at once.
                raise ConfigError(f"storage {shown_address(url)} cannot be reached: {_one_line(error)}") from None
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _one_line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error.__cause__ or error
    return " ".join(redacted(str(cause)).split())[:200]
