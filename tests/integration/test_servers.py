"""Other servers: Debian's PostgreSQL 15, and PgBouncer in transaction mode."""

import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import URL, create_engine, text
from support.project import RANGE, alvo_values, wait_until

from fonte_alvo import engine, guard

pytestmark = pytest.mark.servers

BINARIES = Path("/usr/lib/postgresql/15/bin")
# PgBouncer would otherwise refuse libpq's `options` and psycopg2's float digits.
POOLER = """
[databases]
* = host=127.0.0.1 port={port} user={user} password='{password}'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
ignore_startup_parameters = options, extra_float_digits
"""


@contextmanager
def running(command, url):
    process = subprocess.Popen([*guard.run_as_owner(), *command], env={}, stderr=subprocess.DEVNULL)

    def answers():
        assert process.poll() is None
        try:
            psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)).close()
        except psycopg2.OperationalError:
            return False
        return True

    try:
        wait_until(answers)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def postgresql_15(tmp_path, free_port):
    subprocess.run([*guard.run_as_owner(), BINARIES / "initdb", "-D", tmp_path / "data", "-U", "postgres"], check=True)
    settings = ["-c", f"port={free_port}", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    url = URL.create("postgresql+psycopg2", "postgres", None, "127.0.0.1", free_port, "postgres")
    with running([BINARIES / "postgres", "-D", tmp_path / "data", *settings], url) as url:
        pool = create_engine(url, isolation_level="AUTOCOMMIT")
        with pool.connect() as connection:
            for name in ("fonte", "alvo"):
                connection.execute(text(f"CREATE DATABASE {name}"))
        pool.dispose()
        yield url.set(database="fonte"), url.set(database="alvo")


@pytest.fixture
def pgbouncer(tmp_path, free_port, server, make_database):
    file = tmp_path / "pgbouncer.ini"
    file.write_text(POOLER.format(port=server.port, user=server.username, password=server.password, own_port=free_port))
    databases = [make_database().database for _ in ("fonte", "alvo")]
    url = URL.create("postgresql+psycopg2", "anyone", None, "127.0.0.1", free_port, databases[0])
    with running(["/usr/sbin/pgbouncer", "-q", file], url) as url:
        yield url, url.set(database=databases[1])


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.parametrize("kind", ["postgresql_15", "pgbouncer"])
def test_days_go_from_fonte_to_alvo(request, run_command, tmp_path, undisturbed, kind):
    fonte, alvo = request.getfixturevalue(kind)
    for database in (fonte, alvo):
        pool = create_engine(database)
        with pool.begin() as connection:
            connection.execute(text(f"ALTER DATABASE {database.database} SET timezone = 'America/Sao_Paulo'"))
        pool.dispose()
    names = {"FONTE_DATABASE_URL": fonte, "ALVO_DATABASE_URL": alvo}
    environment = {name: url.render_as_string(hide_password=False) for name, url in names.items()}
    naive = tmp_path / "naive.csv"
    naive.write_text("timestamp,power\n2023-01-01 00:00,5\n2023-01-01 00:01,6\n")
    for arguments, said in (
        (["seed.py"], "14,400"),
        (["seed.py", "--csv", str(naive), "--csv-timezone", "UTC"], ""),
        (["-m", "alvo.schema"], "Alvo has the tables"),
        (["etl.py", *RANGE], "5,712 values written"),
        (["etl.py", *RANGE], "0 values written, 5,712 unchanged"),
        (["etl.py", *RANGE, "--resume"], "nothing to do"),
    ):
        run = run_command(*arguments, **environment)
        assert (run.returncode, run.stderr) == (0, "")
        assert said in run.stdout
    assert alvo_values(alvo) == undisturbed
    pool = engine.create(fonte, "test")
    with pool.begin() as connection:
        stored = text("SELECT to_char(min(timestamp) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') FROM data")
        assert connection.scalar(stored) == "2023-01-01 00:00"
        limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone")
        set_here = [connection.scalar(text(f"SELECT current_setting('{name}')")) for name in limits]
        assert set_here == ["2min", "15s", "1min", "UTC"]
    pool.dispose()
