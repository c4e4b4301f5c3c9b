"""Time and memory of seed.py --csv beside PostgreSQL's COPY of the same file into the same table."""

import os
import sys

import pytest
from sqlalchemy import text
from support.project import SCRIPTS

from fonte import schema
from fonte_alvo import engine

ROWS = int(os.environ.get("ROWS", 10_000_000))


@pytest.fixture(scope="module")
def file(make_database, tmp_path_factory):
    """A file with a row per minute, ROWS in all."""
    path = tmp_path_factory.mktemp("files") / "minutes.csv"
    query = f"""
        SELECT to_char('2000-01-01'::timestamp + n * interval '1 minute', 'YYYY-MM-DD HH24:MI') AS timestamp,
            round((12 + 10 * sin(n / 97.0))::numeric, 2) AS wind_speed,
            round((900 + 900 * sin(n / 97.0))::numeric, 1) AS power,
            round((n % 400 / 10.0)::numeric, 1) AS ambient_temperature
        FROM generate_series(1, {ROWS}) AS n
    """
    with engine.create(make_database(), "benchmark").connect() as connection, path.open("wb") as stream:
        connection.connection.cursor().copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)", stream)
    return path


@pytest.mark.parametrize("candidate", ["seed.py --csv", "floor: COPY"])
def test_load_of_a_file(benchmark, make_database, file, candidate):
    """Time the whole command, or the COPY of this process from connect to commit."""
    benchmark.group = f"{ROWS:,} rows of a file"
    benchmark.name = candidate
    url = make_database()
    environment = os.environ | {"FONTE_DATABASE_URL": url.render_as_string(hide_password=False)}
    peaks = []

    def seed():
        line = [sys.executable, str(SCRIPTS / "seed.py"), "--csv", str(file)]
        process = os.posix_spawn(sys.executable, line, environment)
        _, status, usage = os.wait4(process, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss // 1024)

    def copy():
        pool = engine.create(url, "benchmark", time_limit_s=3600)
        with pool.begin() as connection, file.open("rb") as stream:
            schema.create_absent(connection)
            connection.connection.cursor().copy_expert("COPY data FROM STDIN (FORMAT csv, HEADER)", stream)
        pool.dispose()

    benchmark.pedantic(seed if candidate.startswith("seed") else copy, rounds=1)
    if peaks:
        benchmark.extra_info["peak memory in MiB"] = max(peaks)
    with engine.create(url, "benchmark").connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM data")) == ROWS
