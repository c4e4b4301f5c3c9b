"""Without a free thread, process or descriptor the APIs answer 503 for a while, and then hold no more than before."""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest
from sqlalchemy import text
from support.project import SCRIPTS, running

from alvo import schema
from fonte_alvo import serving

pytestmark = pytest.mark.faults

# A user without other processes: the kernel limits the processes of a user, and never root's.
USER = 54_321
CLIENTS = 700
# The test looks for leaks after each round, which takes half a minute.
ROUNDS = 3
LIMITS = {"500 processes": ["--nproc=500", "--nofile=4096"], "256 descriptors": ["--nofile=256"]}
SERVERS = {"fonte.connector:app": "FONTE", "alvo.api:app": "ALVO"}


@pytest.fixture
def loaded_alvo(make_database, make_pool):
    """An Alvo with more data than fit into all buffers between it and a reader."""
    url = make_database()
    pool = make_pool(url)
    moments = "generate_series('2000-01-01Z', '2001-06-01Z'::timestamptz, '10 minutes') AS moment"
    names = "SELECT 'signal_' || number FROM generate_series(1, 10) AS number"
    with pool.begin() as connection:
        schema.create_absent(connection)
        connection.execute(text(f"INSERT INTO signal (name) {names}"))
        connection.execute(text(f"INSERT INTO data SELECT moment, id, 1 FROM signal, {moments}"))
    pool.dispose()
    return url


@contextmanager
def limited(app, limit, database, log):
    """Serve an app within limits, as a user without other processes; yield its base URL and its process."""
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--securebits=+no_setuid_fixup"]
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *capability]
    command = [sys.executable, "-m", "uvicorn", app, "--port", "0"]
    line = ["prlimit", *limit, *become, *command]
    variables = {f"{SERVERS[app]}_DATABASE_URL": database.render_as_string(hide_password=False)}
    environment = os.environ | variables | {"OPENBLAS_NUM_THREADS": "1", "FONTE_ALVO_HOME": str(SCRIPTS)}
    with log.open("w") as output:
        process = subprocess.Popen(line, cwd=SCRIPTS, env=environment, stdout=output, stderr=output)
    try:
        while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
        yield found.group(1), psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def come_and_leave(base_url):
    """Connect many clients that request all data, read the beginning at most, and disconnect."""
    url = httpx.URL(base_url)
    clients = []
    for _ in range(CLIENTS):
        clients.append(socket.socket())
        clients[-1].setblocking(False)
        clients[-1].connect_ex((url.host, url.port))
    for client in clients:
        client.settimeout(5)
        with suppress(OSError):
            client.sendall(b"GET /data HTTP/1.1\r\nHost: host\r\nAccept: application/json\r\n\r\n")
    for number, client in enumerate(clients):
        if number % 3 == 0:
            with suppress(OSError):
                client.recv(1000)
        client.close()


def settle(condition, said):
    """Wait until a condition holds; on a quiet machine that takes half a minute at most."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 90, said()[-2000:]


def is_back(process, files, threads):
    """Tell whether a process holds as much as before, apart from the connections in its pool."""
    return process.num_fds() <= files + serving.POOL_SIZE and process.num_threads() <= threads + 5


def served(url):
    try:
        return httpx.get(url, timeout=30).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("app", SERVERS)
def test_clients_that_disconnect_from_a_full_machine_leave_nothing_open(
    app, limit, large_fonte, loaded_alvo, administrator, tmp_path
):
    database = {"FONTE": large_fonte, "ALVO": loaded_alvo}[SERVERS[app]]
    log = tmp_path / "log"
    with limited(app, LIMITS[limit], database, log) as (base_url, process):
        day = f"{base_url}/data?start_timestamp=2000-05-20&end_timestamp=2000-05-21"
        assert served(day)
        threads, files = process.num_threads(), process.num_fds()
        for _ in range(ROUNDS):
            come_and_leave(base_url)
            settle(lambda: served(day), log.read_text)
            with administrator.connect() as connection:
                settle(lambda: running(connection, database.database) == 0, log.read_text)
            # Pools keep their connections, and the other routes a few threads. Requests let idle threads end.
            settle(
                lambda: served(day) and is_back(process, files, threads),
                lambda: f"{process.num_fds()} {process.num_threads()}",
            )
        assert httpx.get(f"{base_url}/health").status_code == 200
    assert "Traceback" not in (said := log.read_text()), said[-3000:]
