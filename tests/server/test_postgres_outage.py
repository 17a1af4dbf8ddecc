"""A server whose index is in PostgreSQL, when the database restarts, hangs or is slow."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest

from diptych.index.open_index import open_index
from diptych.inference.loaded import LoadedBundle
from diptych.search.collection import open_or_create, update
from diptych.server.app import create_app
from diptych.server.limits import Limits
from tests.server.site import Site, served
from tests.servers import Server

_SEARCH = {"text": "a red circle", "limit": 3}


@pytest.fixture(scope="module")
def address(own_database: Server, clip: LoadedBundle, pictures: Path) -> str:
    """Of an index with 48 pictures."""
    with open_or_create(own_database.address, clip) as index:
        update(index, clip, [pictures])
    return own_database.address


@contextmanager
def _site(clip: LoadedBundle, address: str, *, deadline_s: float) -> Iterator[Site]:
    """As `diptych serve --deadline` does it."""
    limits = Limits(deadline_s=deadline_s)
    with open_index(address, timeout_s=deadline_s) as index, served(create_app(clip, index, limits=limits)) as site:
        yield site


def _wait_for(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_a_restart_of_the_database_costs_no_answer_and_an_outage_is_reported(
    clip: LoadedBundle, own_database: Server, address: str
) -> None:
    with _site(clip, address, deadline_s=20) as site:
        before = site.post("/v1/search", _SEARCH)
        own_database.stop()
        own_database.start()
        assert site.post("/v1/search", _SEARCH) == before
        own_database.stop()
        try:
            for _ in range(2):
                refused = site.ask("POST", "/v1/search", _SEARCH)
                assert (refused.status, refused.json["detail"]) == (503, "the index cannot be read")
                ready = site.ask("GET", "/readyz")
                assert (ready.status, ready.json["detail"]) == (503, "not ready: the index cannot be read")
                assert site.ask("GET", "/healthz").status == 200
                assert site.ask("POST", "/v1/embed", {"texts": ["a"]}).status == 200
        finally:
            own_database.start()
        assert site.ask("GET", "/readyz").status == 200
        assert site.post("/v1/search", _SEARCH) == before


def test_a_database_that_hangs_is_reported_and_the_server_recovers(
    clip: LoadedBundle, own_database: Server, address: str
) -> None:
    with _site(clip, address, deadline_s=1) as site:
        before = site.post("/v1/search", _SEARCH)
        with own_database.paused():
            assert site.ask("POST", "/v1/search", _SEARCH).json["detail"].startswith("the request took too long")
            ready = site.ask("GET", "/readyz")
            assert ready.status == 503
            _wait_for(lambda: "a thread for" not in site.ask("GET", "/readyz").json["detail"])  # It gave up.
        _wait_for(lambda: site.ask("GET", "/readyz").status == 200)
        assert site.post("/v1/search", _SEARCH) == before


def test_the_deadline_ends_a_search_in_the_database(clip: LoadedBundle, own_database: Server, address: str) -> None:
    active = b"SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'diptych%' AND state = 'active'"
    with (
        _site(clip, address, deadline_s=0.5) as site,
        psycopg.connect(own_database.address) as raw,
        psycopg.connect(own_database.address, autocommit=True) as watch,
    ):
        _wait_for(lambda: site.ask("POST", "/v1/search", _SEARCH).status == 200)
        raw.execute("LOCK TABLE diptych.entries IN ACCESS EXCLUSIVE MODE")
        assert site.ask("POST", "/v1/search", _SEARCH).status == 503
        _wait_for(lambda: watch.execute(active).fetchone() == (0,))
        raw.rollback()
        # A busy machine may need more than half a second for the next answer; one that never comes ends the wait.
        _wait_for(lambda: site.ask("POST", "/v1/search", _SEARCH).status == 200)


def test_sigterm_ends_the_process_while_the_database_hangs(
    tiny_bundle: Path, own_database: Server, address: str
) -> None:
    words = ["serve", str(tiny_bundle), "--index", address, "--port", "0", "--deadline", "3"]
    with subprocess.Popen(
        [sys.executable, "-m", "diptych", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        site = Site(process.stdout.readline().split()[1])

        def is_ready() -> bool:
            with suppress(OSError):
                urlopen(f"{site.url}/readyz", timeout=5).close()
                return True
            return False

        _wait_for(is_ready)
        statuses = list[int]()
        with own_database.paused():
            asking = threading.Thread(target=lambda: statuses.append(site.ask("POST", "/v1/search", _SEARCH).status))
            asking.start()
            time.sleep(0.5)
            process.terminate()
            said, wrong = process.communicate(timeout=35)  # As docs/guides/serving.md says.
        asking.join()
    assert (statuses, process.returncode, wrong) == ([503], 0, "")
    assert "Stopped" in said
