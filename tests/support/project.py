"""The project under test, and helpers for it."""

import atexit
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn
from sqlalchemy import create_engine, event, text

from fonte import local, schema, seeding
from fonte_alvo import engine

ROOT = Path(__file__).resolve().parents[2]
# The path of a day of the connector.
DAY = "/data?start_timestamp=2024-05-20T00:00:00&end_timestamp=2024-05-21T00:00:00&columns=wind_speed&columns=power"
RANGE = ["2024-05-20", "2024-05-29", "--columns", "power"]
SIXTY_DAYS = ["2024-05-20", "2024-07-18", "--columns", "power"]
TOKEN = "a-token.of_the~tests+/0123=="
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
SETTINGS = (
    "FONTE_ALVO_HOME",
    "FONTE_API_URL",
    "FONTE_DATABASE_URL",
    "FONTE_ADMIN_DATABASE_URL",
    "FONTE_ADMIN_TOKEN",
    "ALVO_DATABASE_URL",
    "ALVO_ADMIN_DATABASE_URL",
    "ALVO_ADMIN_TOKEN",
    "FONTE_ALLOWED_ORIGINS",
    "FONTE_ALLOWED_HOSTS",
    "ALVO_ALLOWED_ORIGINS",
    "ALVO_ALLOWED_HOSTS",
    "DAGSTER_TIMEZONE",
    "DAGSTER_START_DATE",
)


def scripts() -> Path:
    """Make a folder with only the scripts and log.json, so that Python imports the installed packages."""
    folder = Path(tempfile.mkdtemp(prefix="fonte-alvo-")) / "scripts"
    folder.mkdir()
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    for name in ("etl.py", "seed.py", "log.json"):
        shutil.copy(ROOT / name, folder)
    return folder


SCRIPTS = scripts()
sys.path.append(str(SCRIPTS))


def seeded(url, days: int):
    """Fill a Fonte with this many days from the default start on."""
    pool = engine.create(url, "test")
    with pool.begin() as connection:
        schema.create_absent(connection)
        start, end = seeding.midnight(seeding.START), seeding.midnight(seeding.START, days)
        seeding.fill_synthetic(connection, start, end, "turbine", seeding.RANDOM_SEED)
    pool.dispose()
    return url


def alvo_values(url_or_pool):
    """Alvo's values, read over another connection: {(timestamp, name): value}; None without tables."""
    pool = create_engine(url_or_pool) if not hasattr(url_or_pool, "connect") else url_or_pool
    with pool.connect() as connection:
        if connection.scalar(text("SELECT to_regclass('data')")) is None:
            return None
        query = "SELECT data.timestamp, signal.name, data.value FROM data JOIN signal ON signal.id = data.signal_id"
        rows = connection.execute(text(query))
        values = {(timestamp, name): value for timestamp, name, value in rows}
    pool.dispose()
    return values


def bare(home):
    """The environment of a command without settings, with its embedded server in this folder."""
    return {name: value for name, value in os.environ.items() if name not in SETTINGS} | {"FONTE_ALVO_HOME": str(home)}


def external(connector, alvo):
    """The environment of a command that uses these services."""
    return os.environ | {"FONTE_API_URL": connector, "ALVO_DATABASE_URL": alvo.render_as_string(hide_password=False)}


def values_of_days_alone(alvo, connector, asked):
    """The values in this Alvo after a run of each day of a range alone."""
    import etl

    first, last = map(date.fromisoformat, asked[:2])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FONTE_API_URL", connector)
        environment.setenv("ALVO_DATABASE_URL", alvo.render_as_string(hide_password=False))
        for number in range((last - first).days + 1):
            assert etl.main([str(first + timedelta(days=number)), *asked[2:]]) == 0
    return alvo_values(alvo)


@contextmanager
def connector_over(database):
    """Serve the connector over a database; yield its base URL."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FONTE_DATABASE_URL", database.render_as_string(hide_password=False))
        environment.delenv("FONTE_API_URL", raising=False)
        with local.base_url() as base_url:
            # The connector reads its settings while it starts: the environment lasts until it answers.
            httpx.get(f"{base_url}/columns").raise_for_status()
            yield base_url


@contextmanager
def alvo_api(database):
    """Serve the API over an Alvo; yield its base URL."""
    import alvo.api

    with pytest.MonkeyPatch.context() as environment, socket.create_server(("127.0.0.1", 0)) as listener:
        environment.setenv("ALVO_DATABASE_URL", database.render_as_string(hide_password=False))
        server = uvicorn.Server(uvicorn.Config(alvo.api.app, http="h11", ws="none", log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            # The API reads its settings while it starts: the environment lasts until it answers.
            httpx.get(f"{base_url}/openapi.json").raise_for_status()
            yield base_url
        finally:
            server.should_exit = True
            thread.join()


def set_admin(environment, side, database):
    """Set the admin of an API, Fonte or Alvo: requests with the headers ADMIN may change this database."""
    environment.setenv(f"{side.upper()}_ADMIN_DATABASE_URL", database.render_as_string(hide_password=False))
    environment.setenv(f"{side.upper()}_ADMIN_TOKEN", TOKEN)


@contextmanager
def begun(url):
    """Give a connection in a transaction, which is committed at the end."""
    pool = engine.create(url, "test")
    with pool.begin() as connection:
        yield connection
    pool.dispose()


def terminate(connection, database):
    """End all sessions of a database."""
    sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
    connection.execute(text(sessions), {"name": database})


def fill_year(connection):
    """Fill an Alvo with 2023 of eight signals, so that a scan of the whole table is expensive."""
    import alvo.schema

    alvo.schema.create_absent(connection)
    connection.execute(text("INSERT INTO signal (name) SELECT 's' || number FROM generate_series(1, 8) AS number"))
    year = "generate_series('2023-01-01Z', '2023-12-31 23:50Z'::timestamptz, '10 minutes') AS moment"
    connection.execute(text(f"INSERT INTO data SELECT moment, id, 1 FROM signal, {year}"))
    connection.execute(text("ANALYZE data, signal"))


def plans(source):
    """Return a list that collects the plan of each query on data that this engine or connection runs."""
    found = []

    def explain(connection, cursor, statement, parameters, *others):
        if " data" in statement and statement.split()[0] in ("SELECT", "WITH"):
            cursor.execute(f"EXPLAIN {statement}", parameters)
            found.append("\n".join(line for (line,) in cursor.fetchall()))

    event.listen(source, "before_cursor_execute", explain)
    return found


@contextmanager
def machine_in(zone):
    """Set the time zone of this process."""
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TZ", zone)
            time.tzset()
            yield
    finally:
        time.tzset()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def running(connection, database):
    """The number of sessions of a database that run a statement or are in a transaction."""
    # Many new rows start autovacuum, which is not counted.
    clients = "datname = :name AND backend_type = 'client backend'"
    busy = text(f"SELECT count(*) FROM pg_stat_activity WHERE {clients} AND state <> 'idle'")
    return connection.scalar(busy, {"name": database})


def copying_threads():
    """The threads of this process's connectors that still copy."""
    return [thread for thread in threading.enumerate() if "_copy" in thread.name]


def wait_until(condition):
    """Poll a condition; if it never holds, fail instead of hanging."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"


def interrupt(process):
    """Send SIGINT once the command waits: if it meets a lock of coverage, that may be held for ever."""
    main, seen, since = psutil.Process(process.pid), None, time.monotonic()

    def waits():
        nonlocal seen, since
        now = main.status(), main.num_ctx_switches()
        if now != seen:
            seen, since = now, time.monotonic()
        return seen[0] == psutil.STATUS_SLEEPING and time.monotonic() - since > 0.05

    try:
        wait_until(waits)
    except AssertionError:
        # Otherwise the end of its context would wait for it for ever.
        process.kill()
        raise
    process.send_signal(signal.SIGINT)


def stalled_reader(base_url):
    """Request all data, and read nothing."""
    url = httpx.URL(base_url)
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect((url.host, url.port))
    reader.sendall(b"GET /data HTTP/1.1\r\nHost: fonte\r\n\r\n")
    return reader


def servers(folder: Path):
    """The ids of this folder's server and guard processes that still run."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if str(folder) in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
