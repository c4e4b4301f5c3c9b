"""A reader that is slow or disconnects costs the connector little, and does not delay others."""

import os
import re
import resource
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from psycopg2 import Error as PostgresError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from support.project import (
    DAY,
    alvo_api,
    connector_over,
    copying_threads,
    running,
    seeded,
    stalled_reader,
    terminate,
    wait_until,
)

from fonte.connector import MEDIA_TYPES
from fonte_alvo import engine
from fonte_alvo.copy import CopyOut
from fonte_alvo.serving import POOL_SIZE


@pytest.fixture
def large_connector(large_fonte):
    with connector_over(large_fonte) as base_url:
        yield base_url


def stalled_readers(base_url, count, held):
    """Open readers that got the beginning of all data and read no further."""
    for reader in [held.enter_context(stalled_reader(base_url)) for _ in range(count)]:
        assert reader.recv(12) == b"HTTP/1.1 200"


def test_slow_readers_delay_nobody_and_take_little_memory(large_connector):
    assert len(httpx.get(large_connector + DAY).json()) == 1440
    memory = psutil.Process().memory_info().rss
    with ExitStack() as held:
        stalled_readers(large_connector, POOL_SIZE - 1, held)
        assert len(httpx.get(large_connector + DAY).json()) == 1440
        # Each has requested more than 50 MiB.
        assert psutil.Process().memory_info().rss - memory < 4 * 2**20 * POOL_SIZE


def test_without_a_free_connection_a_reader_gets_a_503_with_retry_after(
    administrator, large_fonte, monkeypatch, request
):
    monkeypatch.setattr(engine, "CONNECT_TIMEOUT_S", 15)
    large_connector = request.getfixturevalue("large_connector")
    with ExitStack() as held, ThreadPoolExecutor(2 * POOL_SIZE) as pool, httpx.Client(timeout=60) as client:
        stalled_readers(large_connector, POOL_SIZE, held)
        waiting = [pool.submit(httpx.get, large_connector + DAY, timeout=60) for _ in range(2 * POOL_SIZE)]
        for path in ("/health", "/period", "/columns"):
            assert client.get(large_connector + path).status_code == 200
        assert not all(each.done() for each in waiting)
        for answer in [each.result() for each in waiting]:
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["detail"].startswith("all connections to Fonte's database are in use")
    with administrator.connect() as connection:
        wait_until(lambda: running(connection, large_fonte.database) == 0)
    assert len(httpx.get(large_connector + DAY).json()) == 1440


def descriptors_and_copies():
    """The number of open descriptors of this process, in which the connector runs, and of its copying threads."""
    return len(list(Path("/proc/self/fd").iterdir())), len(copying_threads())


def test_aborted_downloads_leave_nothing_open(administrator, large_fonte, large_connector):
    url = httpx.URL(large_connector)
    assert len(httpx.get(large_connector + DAY).json()) == 1440
    # The thread ends a moment after its answer.
    wait_until(lambda: descriptors_and_copies()[1] == 0)
    files, _ = descriptors_and_copies()
    for number, form in zip(range(200), cycle(MEDIA_TYPES), strict=False):
        with socket.create_connection((url.host, url.port)) as reader:
            reader.sendall(f"GET /data?format={form} HTTP/1.1\r\nHost: fonte\r\n\r\n".encode())
            # Some disconnect before the answer begins, some within it.
            reader.recv(1 + 1000 * (number % 5)) if number % 4 else None
    with administrator.connect() as connection:
        wait_until(lambda: running(connection, large_fonte.database) == 0)
    assert len(httpx.get(large_connector + DAY).json()) == 1440
    # Connections to the database may stay in their pools.
    wait_until(lambda: descriptors_and_copies()[0] < files + POOL_SIZE and descriptors_and_copies()[1] == 0)


def test_a_client_that_disconnects_before_the_first_row_ends_its_query(administrator, make_database, make_pool):
    fonte = seeded(make_database(), 1)
    with make_pool(fonte).begin() as connection:
        connection.execute(text("ALTER TABLE data RENAME TO kept"))
        connection.execute(text("CREATE VIEW data AS SELECT kept.* FROM kept, pg_sleep(100)"))
    sleeping = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND wait_event = 'PgSleep'")
    with connector_over(fonte) as base_url, administrator.connect() as connection:
        with stalled_reader(base_url):
            wait_until(lambda: connection.scalar(sleeping, {"name": fonte.database}) == 1)
        wait_until(lambda: running(connection, fonte.database) == 0)


@contextmanager
def no_descriptor_left():
    """Keep this process from opening anything, like a server with too many clients."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("api", [connector_over, alvo_api])
def test_clients_without_a_descriptor_are_logged_once_a_second_and_served_later(caplog, fonte, alvo, monkeypatch, api):
    # uvloop, where it is installed, logs nothing here.
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with api({connector_over: fonte, alvo_api: alvo}[api]) as base_url, ExitStack() as held:
        # A descriptor or two may become free meanwhile.
        clients = [held.enter_context(socket.socket()) for _ in range(10)]
        with no_descriptor_left():
            for client in clients:
                client.connect((httpx.URL(base_url).host, httpx.URL(base_url).port))
                client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: host\r\n\r\n")
            wait_until(lambda: len(caplog.records) > 1)
        assert [client.recv(15) for client in clients] == [b"HTTP/1.1 200 OK"] * 10
    # While the server stops, asyncio reports other errors.
    assert {(record.name, record.exc_info) for record in caplog.records} == {("uvicorn.error", None)}
    assert re.fullmatch(r"socket\.accept.*: .*Too many open files", caplog.messages[0])
    assert len(caplog.records) < 10
    assert not any("\n" in message for message in caplog.messages)


def test_closing_a_query_needs_no_free_descriptor(administrator, large_fonte, make_pool):
    pool = make_pool(large_fonte)
    rows = CopyOut(pool, "SELECT * FROM data", {}, "FORMAT csv")
    assert next(iter(rows))
    with administrator.connect() as connection:
        assert running(connection, large_fonte.database) == 1
        with no_descriptor_left():
            rows.close()
        wait_until(lambda: running(connection, large_fonte.database) == 0)


def test_a_close_just_after_a_piece_is_read_ends_the_query_and_its_thread(administrator, large_fonte, make_pool):
    rows = CopyOut(make_pool(large_fonte), "SELECT * FROM data", {}, "FORMAT csv")

    class ClosedAtTheEnd:
        """A lock that closes the rows just before its release."""

        def __init__(self, lock):
            self.acquire, self.release = lock.acquire, lock.release

        def __enter__(self):
            self.acquire()

        def __exit__(self, *_):
            rows.close()
            self.release()

    rows._reading = ClosedAtTheEnd(rows._reading)
    assert next(iter(rows))
    with administrator.connect() as connection:
        wait_until(lambda: running(connection, large_fonte.database) == 0)
    wait_until(lambda: descriptors_and_copies()[1] == 0)


def test_an_answer_that_the_server_ends_says_why(administrator, large_fonte, make_pool):
    with closing(CopyOut(make_pool(large_fonte), "SELECT * FROM data", {}, "FORMAT csv")) as rows:
        assert next(iter(rows))
        with administrator.connect() as connection:
            terminate(connection, large_fonte.database)
        # psycopg2 sometimes loses the server's last words.
        said = "terminating connection|server closed the|no message from the libpq"
        with pytest.raises((SQLAlchemyError, PostgresError), match=said):
            list(rows)


def test_a_connection_that_is_gone_already_is_cut_without_an_error(administrator, fonte, make_pool):
    with make_pool(fonte).connect() as connection:
        raw = connection.connection.driver_connection
        engine.cut(raw)
        with administrator.connect() as other:
            sessions = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name")
            wait_until(lambda: other.scalar(sessions, {"name": fonte.database}) == 0)
        engine.cut(raw)
        connection.invalidate()


def test_a_connection_without_a_thread_for_its_time_limit_is_closed(administrator, fonte, make_pool, monkeypatch):
    def no_thread_left(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread_left)
    # A reference to the error keeps what its frames hold.
    with pytest.raises(RuntimeError) as _held:
        make_pool(fonte).connect()
    with administrator.connect() as other:
        sessions = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name")
        wait_until(lambda: other.scalar(sessions, {"name": fonte.database}) == 0)


def test_a_cut_connection_is_reset_when_it_closes():
    """A server with a full send buffer would not notice an ordinary end for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, (theirs, _) = socket.create_connection(listener.getsockname()), listener.accept()
        engine.cut(SimpleNamespace(closed=0, fileno=ours.fileno))
        ours.close()
        with theirs, pytest.raises(BrokenPipeError):
            theirs.send(b"a row")
