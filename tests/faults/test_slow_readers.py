"""Who reads slowly, or goes away, costs a bounded share of the connector and keeps nobody else waiting."""

import os
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import text
from support.project import DAY, connector_over, running, stalled_reader, wait_until

from fonte.connector import MEDIA_TYPES
from fonte_alvo import engine
from fonte_alvo.copy import CopyOut
from fonte_alvo.serving import POOL_SIZE


@pytest.fixture
def large_connector(large_fonte):
    with connector_over(large_fonte) as base_url:
        yield base_url


def stalled_readers(base_url, count, held):
    """Readers that got the beginning of everything, and read no further."""
    for reader in [held.enter_context(stalled_reader(base_url)) for _ in range(count)]:
        assert reader.recv(12) == b"HTTP/1.1 200"


def test_slow_readers_keep_nobody_waiting_and_hold_little_memory(large_connector):
    assert len(httpx.get(large_connector + DAY).json()) == 1440
    memory = psutil.Process().memory_info().rss
    with ExitStack() as held:
        stalled_readers(large_connector, POOL_SIZE - 1, held)
        assert len(httpx.get(large_connector + DAY).json()) == 1440
        # Each asked for more than 50 MiB.
        assert psutil.Process().memory_info().rss - memory < 4 * 2**20 * POOL_SIZE


def test_more_slow_readers_than_connections_are_told_to_come_again(administrator, large_fonte, monkeypatch, request):
    monkeypatch.setattr(engine, "CONNECT_TIMEOUT_S", 8)
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


def left_behind():
    """What this process, in which the connector runs, holds: open files, pipes and sockets, and threads that copy."""
    copying = [thread for thread in threading.enumerate() if "_copy" in thread.name]
    return len(list(Path("/proc/self/fd").iterdir())), len(copying)


def test_aborted_downloads_leave_nothing_behind(administrator, large_fonte, large_connector):
    url = httpx.URL(large_connector)
    assert len(httpx.get(large_connector + DAY).json()) == 1440
    # The thread ends a moment after its answer.
    wait_until(lambda: left_behind()[1] == 0)
    files, _ = left_behind()
    for number, form in zip(range(200), cycle(MEDIA_TYPES), strict=False):
        with socket.create_connection((url.host, url.port)) as reader:
            reader.sendall(f"GET /data?format={form} HTTP/1.1\r\nHost: fonte\r\n\r\n".encode())
            # Some go before the answer begins, some in the midst of it.
            reader.recv(1 + 1000 * (number % 5)) if number % 4 else None
    with administrator.connect() as connection:
        wait_until(lambda: running(connection, large_fonte.database) == 0)
    assert len(httpx.get(large_connector + DAY).json()) == 1440
    # Connections to the database may stay in their pools.
    wait_until(lambda: left_behind()[0] < files + POOL_SIZE and left_behind()[1] == 0)


@contextmanager
def no_descriptor_left():
    """Let this process open nothing, as a server with too many clients."""
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


def test_a_query_ends_without_a_descriptor_to_spare(administrator, large_fonte, make_pool):
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
        """A lock whose holder learns at the last moment that nobody wants more."""

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
    wait_until(lambda: left_behind()[1] == 0)


def test_a_connection_that_is_gone_already_is_cut_without_an_error(administrator, fonte, make_pool):
    with make_pool(fonte).connect() as connection:
        raw = connection.connection.driver_connection
        engine.cut(raw)
        with administrator.connect() as other:
            sessions = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name")
            wait_until(lambda: other.scalar(sessions, {"name": fonte.database}) == 0)
        engine.cut(raw)
        connection.invalidate()
