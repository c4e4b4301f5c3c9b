"""Real PostgreSQL for every test: the server of TEST_POSTGRES_URL, a container, or the embedded server."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as properties
from sqlalchemy import URL, create_engine, make_url, text

from fonte import client, seeding
from fonte_alvo import embedded, engine
from support.faulty import answering
from support.project import RANGE, SCRIPTS, SETTINGS, bare, connector_over, seeded, values_of_days_alone

# The number of faults of each kind that test_faults.py injected.
INJECTED = pytest.StashKey[Counter[str]]()
for profile, examples, steps in (("default", 50, 15), ("soak", 2000, 30)):
    properties.register_profile(
        profile,
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )
properties.load_profile("default")


def pytest_addoption(parser):
    parser.addoption(
        "--postgres",
        choices=["url", "container", "embedded"],
        help="use TEST_POSTGRES_URL, a container of postgres:18, or the embedded server; default: the first there is",
    )
    parser.addoption(
        "--build-network", help="network for the images of test_stack.py; host if only the machine reaches the internet"
    )
    parser.addoption("--kills", type=int, default=10, help="number of kills in each kill test")
    faults = "sample: each operation fails once; all: in every way, for good, and in all pairs"
    parser.addoption("--faults", choices=["sample", "all"], default="sample", help=faults)


def pytest_configure(config):
    # A shell makes background jobs ignore these signals; the commands that tests signal would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    config.stash[INJECTED] = Counter()


def pytest_terminal_summary(terminalreporter, config):
    for kind, number in config.stash[INJECTED].most_common():
        terminalreporter.write_line(f"test_faults.py: {number:,} {kind}")


def pytest_report_header(config):
    return f"postgres: {_kind(config)}"


def _kind(config):
    if chosen := config.getoption("--postgres", default=None):
        return chosen
    if os.environ.get("TEST_POSTGRES_URL"):
        return "url"
    docker = shutil.which("docker")
    answers = docker and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0
    return "container" if answers else "embedded"


@pytest.fixture(scope="session")
def server(pytestconfig, tmp_path_factory) -> Iterator[URL]:
    """The URL of a superuser on a real server."""
    kind = _kind(pytestconfig)
    # Benchmarks compare safe servers: each COMMIT waits for the disk.
    prepared = (lambda url: url) if pytestconfig.getoption("benchmark_only", False) else _without_fsync
    if kind == "url":
        yield engine.parse(os.environ["TEST_POSTGRES_URL"])
    elif kind == "embedded":
        yield prepared(embedded.url("postgres", tmp_path_factory.mktemp("postgres") / "embedded"))
    else:
        from testcontainers.community.postgres import PostgresContainer

        container = PostgresContainer("postgres:18", driver="psycopg2").start()
        try:
            yield prepared(make_url(container.get_connection_url()).set(host="127.0.0.1"))
        finally:
            # The container holds gigabytes: do not wait until Docker has deleted them.
            remove = f"docker rm --force --volumes {container.get_wrapped_container().id} >/dev/null"
            os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", remove)


def _without_fsync(url: URL) -> URL:
    """Turn off fsync: the tests kill processes, not the machine, so no data is lost."""
    pool = create_engine(url, isolation_level="AUTOCOMMIT")
    with pool.connect() as connection:
        for name in ("fsync", "full_page_writes"):
            connection.execute(text(f"ALTER SYSTEM SET {name} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    pool.dispose()
    return url


@pytest.fixture(scope="session")
def administrator(server):
    pool = create_engine(server, isolation_level="AUTOCOMMIT")
    yield pool
    pool.dispose()


@pytest.fixture(scope="session")
def make_database(administrator, server, pytestconfig):
    """Return a function that creates a database, from a template if given, and returns its URL."""
    made = []

    def make(template: str | None = None) -> URL:
        name = f"test_{uuid.uuid4().hex}"
        with administrator.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else "")))
        made.append(name)
        return server.set(database=name)

    yield make
    # The tests' server is deleted as a whole: dropping hundreds of databases one by one takes ten seconds.
    with administrator.connect() as connection:
        for name in made if _kind(pytestconfig) == "url" else []:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def make_pool():
    """Make a function that creates engines; they are disposed of after the test."""
    pools = []

    def make(url: URL):
        pools.append(engine.create(url, "test"))
        return pools[-1]

    yield make
    for pool in pools:
        pool.dispose()


@pytest.fixture(scope="session")
def seeded_template(make_database) -> str:
    """The name of a database that holds the ten default days."""
    return seeded(make_database(), seeding.DAYS).database


@pytest.fixture
def sixty_days_fonte(make_database) -> URL:
    """A Fonte that holds the days of SIXTY_DAYS."""
    return seeded(make_database(), 60)


@pytest.fixture
def fonte(make_database, seeded_template) -> URL:
    """A Fonte that only this test uses, with the ten default days."""
    return make_database(seeded_template)


@pytest.fixture
def fonte_pool(fonte, make_pool):
    return make_pool(fonte)


@pytest.fixture
def large_fonte(fonte, fonte_pool) -> URL:
    """A Fonte with more data than fit into all buffers between it and a reader."""
    many = "SELECT moment, 1, 1, 1 FROM generate_series('2000-01-01Z', '2001-03-01Z'::timestamptz, '1 minute') moment"
    with fonte_pool.begin() as connection:
        connection.execute(text(f"INSERT INTO data {many}"))
    fonte_pool.dispose()
    return fonte


@pytest.fixture
def alvo(make_database, monkeypatch) -> URL:
    """An empty Alvo, named by ALVO_DATABASE_URL."""
    url = make_database()
    monkeypatch.setenv("ALVO_DATABASE_URL", url.render_as_string(hide_password=False))
    return url


@pytest.fixture
def undisturbed(make_database, shared_connector):
    """Alvo's values after the ten days of RANGE, each run alone."""
    return values_of_days_alone(make_database(), shared_connector, RANGE)


@pytest.fixture
def alvo_pool(alvo, make_pool):
    return make_pool(alvo)


@pytest.fixture(scope="session")
def shared_connector(make_database, seeded_template) -> Iterator[str]:
    """A connector over the ten default days, for tests that only read."""
    with connector_over(make_database(seeded_template)) as base_url:
        yield base_url


@pytest.fixture
def connector(fonte) -> Iterator[str]:
    """A connector over the Fonte that only this test uses."""
    with connector_over(fonte) as base_url:
        yield base_url


@pytest.fixture
def fonte_api(shared_connector, monkeypatch) -> str:
    """The shared connector, named by FONTE_API_URL."""
    monkeypatch.setenv("FONTE_API_URL", shared_connector)
    return shared_connector


@pytest.fixture
def serve(monkeypatch):
    """Make a function that serves a connector and names it in FONTE_API_URL."""
    with ExitStack() as stack:

        def start(connector):
            server = stack.enter_context(answering(lambda: [connector.answer(server.requests[-1])]))
            monkeypatch.setenv("FONTE_API_URL", server.url)
            return connector

        yield start


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    """Hide the machine's settings from the test, and turn off the client's retries."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(client, "PATIENCE_S", 0.0)


@pytest.fixture
def pauses_s(monkeypatch) -> list[float]:
    """The pauses of the client before its retries; only they move its clock."""
    pauses: list[float] = []
    monkeypatch.setattr(client, "PATIENCE_S", 60.0)
    monkeypatch.setattr(client.Client, "pause", lambda self, pause_s: pauses.append(pause_s))
    monkeypatch.setattr(client, "monotonic", lambda: 1000.0 + sum(pauses))
    return pauses


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the scripts' folder, for an embedded server that only this test uses."""
    copy = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    return copy


@pytest.fixture
def run_command(folder) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Make a function that runs a command in that folder, in a new process."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**bare(folder), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def refused_port() -> Iterator[int]:
    """A loopback port that refuses connections; it stays bound, so that no process can listen on it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
