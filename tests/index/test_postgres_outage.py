"""An index in PostgreSQL whose server is restarted, hangs or closes connections, and that several threads share."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest

from diptych.core.errors import IndexingError
from diptych.index.address import parse_address
from diptych.index.open_index import create_index, open_index
from diptych.index.protocol import Index
from tests.index.pictures import DIM, add_ten, entry, unit
from tests.servers import Server

_BACKENDS = "FROM pg_stat_activity WHERE application_name LIKE 'diptych%'"


@pytest.fixture
def address(own_database: Server) -> str:
    """Of an index with ten pictures."""
    made = f"{own_database.address}?index=i{uuid4().hex}"
    with create_index(made, dim=DIM, model="m", bundle="b") as index:
        add_ten(index)
    return made


def _check_reads(index: Index) -> None:
    """Every kind of read."""
    assert [found.entry.digest for found in index.search(unit(10)[3:4], top=1)[0]] == ["d3"]
    assert index.vectors(["d7"])["d7"].tobytes() == unit(10)[7].tobytes()
    assert len(index.duplicates(-1)[0].pictures) == 10
    assert (len(index), len(index.stamps()), index.size()["entries"], index.verify()) == (10, 10, 10, [])


def test_a_restart_is_not_noticed_and_an_outage_ends_with_the_server_s_return(
    own_database: Server, address: str
) -> None:
    with open_index(address) as index, ThreadPoolExecutor(4) as threads:
        barrier = threading.Barrier(4)
        list(threads.map(lambda _: (barrier.wait(), len(index)), range(4)))  # Several connections are open.
        own_database.stop()
        own_database.start()
        _check_reads(index)
        own_database.stop()
        try:
            for _ in range(2):
                with pytest.raises(IndexingError, match=r"cannot be reached \([^\n]*[Cc]onnection refused"):
                    index.search(unit(1), top=1)
                with pytest.raises(IndexingError, match="cannot be reached"):
                    index.add([entry(11, digest="d1")], {})
        finally:
            own_database.start()
        assert list(threads.map(lambda _: len(index), range(8))) == [10] * 8
        _check_reads(index)
        with index.writing():
            index.add([entry(11, digest="d1")], {})
        assert len(index) == 11


def test_each_operation_survives_the_end_of_all_connections(own_database: Server, address: str) -> None:
    with psycopg.connect(own_database.address, autocommit=True) as raw, open_index(address) as index:

        def close_all() -> None:
            raw.execute(f"SELECT pg_terminate_backend(pid, 10000) {_BACKENDS}".encode())

        for read in (
            lambda: index.search(unit(10)[:2], top=3),
            lambda: index.duplicates(-1),
            lambda: index.vectors(["d1", "d2"]),
            index.entries,
        ):
            before = read()
            close_all()
            assert repr(read()) == repr(before)
        close_all()
        index.add([entry(11, digest="d1")], {})
        close_all()
        assert index.remove(["/photos/11.jpg"]) == 1
        close_all()
        with index.writing():
            index.rename_model(("n", "m"))
    with open_index(address) as again:
        assert (again.models, len(again)) == (("n", "m"), 10)


def test_a_server_that_hangs_costs_no_more_than_the_limit(own_database: Server, address: str) -> None:
    with open_index(address, timeout_s=1) as index:
        _check_reads(index)
        with own_database.paused():
            with pytest.raises(IndexingError, match=r"cannot be read \(no answer within 2 s\)"):
                index.search(unit(1), top=1)
            with pytest.raises(IndexingError, match=r"cannot be reached \([^\n]*timeout"):  # A new connection.
                index.search(unit(1), top=1)
        _check_reads(index)


def test_a_search_that_is_too_slow_is_canceled_in_the_server(own_database: Server, address: str) -> None:
    schema = parse_address(address).schema
    with open_index(address, timeout_s=1) as index, psycopg.connect(own_database.address) as raw:
        raw.execute(f'LOCK TABLE "{schema}".entries IN ACCESS EXCLUSIVE MODE'.encode())
        with pytest.raises(IndexingError, match=r"cannot be read \(canceling statement due to statement timeout\)"):
            index.search(unit(1), top=1)
        active = raw.execute(f"SELECT count(*) {_BACKENDS} AND state = 'active'".encode()).fetchone()
        assert active == (0,)
        raw.rollback()
        _check_reads(index)


@pytest.mark.parametrize("alone", [False, True])
def test_threads_that_share_an_index_lose_no_addition(address: str, alone: bool) -> None:
    with open_index(address) as index:

        def add(thread: int) -> int:
            for number in range(100 * thread, 100 * thread + 20):
                vector = unit(1, seed=number)[0]
                if alone:
                    with index.writing(wait_s=60):
                        index.add([entry(number)], {f"d{number}": vector})
                else:
                    index.add([entry(number)], {f"d{number}": vector})
                assert index.search(vector[None], top=1)[0][0].entry.digest == f"d{number}"
            return 20

        with ThreadPoolExecutor(4) as threads:
            acknowledged = sum(threads.map(add, range(1, 5)))
        assert (len(index), index.size()["vectors"], index.verify()) == (10 + acknowledged, 10 + acknowledged, [])
    with open_index(address) as again:
        for number in (119, 219, 319, 419):
            assert again.vectors([f"d{number}"])[f"d{number}"].tobytes() == unit(1, seed=number)[0].tobytes()
