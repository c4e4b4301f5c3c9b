"""Fetch, load and the whole command beside other implementations, over real servers in the same run."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from sqlalchemy import insert, text

pytest.importorskip("adbc_driver_postgresql", reason="the benchmarks need pip install '.[test,bench]'")
import adbc_driver_postgresql.dbapi
import naive_etl
import pandas
from psycopg2.extras import execute_values
from support.project import SCRIPTS

from alvo import schema
from alvo.aggregation import aggregate
from alvo.load import replace_period
from fonte import client, seeding
from fonte import schema as fonte_schema
from fonte_alvo import engine
from orchestration.day import Day, run

FOLDER = Path(__file__).parent
START = datetime(2023, 1, 1, tzinfo=UTC)
COLUMNS = ["wind_speed", "power"]
SIZES = {"a day": timedelta(days=1), "a year": timedelta(days=365)}
size = pytest.mark.parametrize("size", SIZES)


def libpq(url):
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def filled(url, fill):
    """Create Fonte's table, fill it, and let the server settle."""
    pool = engine.create(url, "benchmark")
    with pool.begin() as connection:
        fonte_schema.create_absent(connection)
        fill(connection)
    with pool.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE data"))
    pool.dispose()
    return url


def minutes(start, days):
    """Make a function that fills Fonte with days of 1-minute samples."""
    return lambda connection: seeding.fill_synthetic(connection, start, start + timedelta(days=days), "turbine", 1)


def seconds(start, days):
    """Make a function that fills Fonte with days at 1 Hz."""
    moments = f"generate_series('{start}'::timestamptz, '{start + timedelta(days=days, seconds=-1)}', '1 second')"
    query = f"SELECT moment, 8 + random(), 900 + random(), 15 FROM {moments} AS moment"
    return lambda connection: connection.execute(text(f"INSERT INTO data {query}"))


@pytest.fixture(scope="module")
def fonte(make_database):
    """A Fonte that holds the year."""
    return filled(make_database(), minutes(START, 365))


@pytest.fixture(scope="module")
def alvo(make_database):
    url = make_database()
    pool = engine.create(url, "benchmark")
    schema.metadata.create_all(pool)
    yield pool
    pool.dispose()


@contextmanager
def served(app, fonte, port):
    where = ["--app-dir", str(FOLDER), "--port", str(port)]
    command = [sys.executable, "-m", "uvicorn", app, *where, "--log-level", "error"]
    environment = os.environ | {"FONTE_DATABASE_URL": fonte.render_as_string(hide_password=False)}
    with subprocess.Popen(command, cwd=SCRIPTS, env=environment) as process:
        base_url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    httpx.get(f"{base_url}/docs")
                    break
                except httpx.TransportError:
                    assert process.poll() is None
            yield base_url
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def connectors(fonte):
    with served("fonte.connector:app", fonte, 18081) as ours, served("naive_connector:app", fonte, 18082) as naive:
        yield ours, naive


def with_adbc(fonte, start, end):
    with adbc_driver_postgresql.dbapi.connect(libpq(fonte)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT timestamp, wind_speed, power FROM data WHERE timestamp >= $1 AND timestamp < $2 ORDER BY 1",
            [start, end],
        )
        return [column.to_numpy() for column in cursor.fetch_arrow_table().columns]


@size
@pytest.mark.parametrize(
    "candidate", ["fonte-alvo", "fonte-alvo, new connection", "adbc, no HTTP", "list of dicts, pandas"]
)
def test_fetch(benchmark, connectors, fonte, size, candidate):
    ours, naive = connectors
    start, end = START, START + SIZES[size]
    benchmark.group = f"fetch of {size}: wire to arrays"
    benchmark.name = candidate
    with client.connect(ours) as http:
        fetches = {
            "fonte-alvo": lambda: client.fetch(ours, start, end, COLUMNS, http),
            "fonte-alvo, new connection": lambda: client.fetch(ours, start, end, COLUMNS),
            "adbc, no HTTP": lambda: with_adbc(fonte, start, end),
            "list of dicts, pandas": lambda: naive_etl.fetch(naive, start, end),
        }
        benchmark.pedantic(fetches[candidate], rounds=50 if size == "a day" else 5, warmup_rounds=1)


def serving(base_url):
    """The process that serves this URL."""
    port = str(httpx.URL(base_url).port)
    return next(process for process in psutil.process_iter(["cmdline"]) if port in (process.info["cmdline"] or []))


def cpu_s(processes):
    """The processor time of processes and of their children that have ended."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def postgres():
    return [process for process in psutil.process_iter(["name"]) if process.info["name"] == "postgres"]


def serving_memory_mib(base_url):
    process = serving(base_url)
    peak = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    return round(int(peak.split()[1]) / 1024, 1)


@size
@pytest.mark.parametrize("form", ["json", "csv", "arrow"])
def test_first_byte(benchmark, connectors, size, form):
    benchmark.group = f"first byte of {size}"
    benchmark.name = form
    parameters = {"start_timestamp": START.isoformat(), "end_timestamp": (START + SIZES[size]).isoformat()}

    def first_byte():
        with httpx.stream("GET", f"{connectors[0]}/data", params={**parameters, "format": form}) as answer:
            pieces = answer.iter_raw()
            next(pieces)

    benchmark.pedantic(first_byte, rounds=20, warmup_rounds=1)
    with httpx.stream("GET", f"{connectors[0]}/data", params={**parameters, "format": form}) as answer:
        for _ in answer.iter_raw():
            pass
    benchmark.extra_info["server's peak memory so far in MiB"] = serving_memory_mib(connectors[0])


@pytest.mark.parametrize("readers", [0, 20])
def test_health_beside_readers_of_a_year(benchmark, connectors, readers):
    benchmark.group = "GET /health"
    benchmark.name = f"beside {readers} readers of a year each"
    stop = threading.Event()

    def read():
        with client.connect(connectors[0]) as http:
            while not stop.is_set():
                client.fetch(connectors[0], START, START + SIZES["a year"], COLUMNS, http)

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    seconds = []
    with httpx.Client(base_url=connectors[0], timeout=60) as http:

        def health():
            began = time.perf_counter()
            http.get("/health").raise_for_status()
            seconds.append(time.perf_counter() - began)

        benchmark.pedantic(health, rounds=200, warmup_rounds=5)
    stop.set()
    for thread in threads:
        thread.join()
    benchmark.extra_info["p99 in ms"] = round(1000 * float(np.quantile(seconds, 0.99)), 1)


@pytest.fixture(scope="module")
def year(connectors):
    timestamps, samples = client.fetch(connectors[0], START, START + SIZES["a year"], COLUMNS)
    return aggregate(timestamps, samples)


def rows_of(alvo, year):
    """The rows that every candidate loads: timestamps, the signals' ids, values."""
    window_starts, signals = year
    with alvo.begin() as connection:
        connection.execute(text("TRUNCATE data, signal RESTART IDENTITY"))
        connection.execute(insert(schema.signal), [{"name": name} for name in signals])
    ids = np.repeat(np.arange(1, len(signals) + 1, dtype=np.int32), len(window_starts))
    frame = {
        "timestamp": np.tile(window_starts, len(signals)),
        "signal_id": ids,
        "value": np.concatenate(list(signals.values())),
    }
    frame = pandas.DataFrame(frame)
    frame["timestamp"] = frame["timestamp"].dt.tz_localize("UTC")
    return frame


def with_replace_period(alvo, year, frame):
    return lambda: replace_period(alvo, START, START + SIZES["a year"], *year)


def with_to_sql(alvo, year, frame):
    return lambda: frame.to_sql("data", alvo, if_exists="append", index=False)


def with_insertmanyvalues(alvo, year, frame):
    def load():
        with alvo.begin() as connection:
            connection.execute(insert(schema.data), frame.to_dict("records"))

    return load


def with_execute_values(alvo, year, frame):
    def load():
        with alvo.begin() as connection:
            rows = list(frame.itertuples(index=False, name=None))
            execute_values(connection.connection.cursor(), "INSERT INTO data VALUES %s", rows, page_size=10_000)

    return load


def with_adbc_ingest(alvo, year, frame):
    def load():
        with (
            adbc_driver_postgresql.dbapi.connect(libpq(alvo.url.set(query={}))) as connection,
            connection.cursor() as cursor,
        ):
            cursor.adbc_ingest("data", frame_as_table(frame), mode="append")
            connection.commit()

    return load


def frame_as_table(frame):
    import pyarrow

    return pyarrow.Table.from_pandas(frame, preserve_index=False)


def with_insert_select(alvo, year, frame):
    with alvo.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS staged"))
    frame.to_sql("staged", alvo, index=False)

    def load():
        with alvo.begin() as connection:
            connection.execute(text("INSERT INTO data SELECT timestamp, signal_id, value FROM staged"))

    return load


LOADS = {
    "fonte-alvo": with_replace_period,
    "fonte-alvo, unchanged rerun": with_replace_period,
    "adbc ingest": with_adbc_ingest,
    "execute_values": with_execute_values,
    "insertmanyvalues": with_insertmanyvalues,
    "to_sql": with_to_sql,
    "floor: INSERT..SELECT inside the server": with_insert_select,
}


@pytest.mark.parametrize("candidate", LOADS)
def test_load_of_a_year(benchmark, alvo, year, candidate):
    benchmark.group = "load of a year: 420,480 values"
    benchmark.name = candidate
    load = LOADS[candidate](alvo, year, rows_of(alvo, year))

    def empty():
        with alvo.begin() as connection:
            connection.execute(text("TRUNCATE data"))

    if "rerun" in candidate:
        load()
    benchmark.pedantic(load, setup=None if "rerun" in candidate else empty, rounds=3)


INSERT_SELECT = """
    WITH statistics AS (
        SELECT date_bin('10 minutes', timestamp, 'epoch') AS timestamp,
            avg(wind_speed) AS a, min(wind_speed) AS b, max(wind_speed) AS c, stddev_samp(wind_speed) AS d,
            avg(power) AS e, min(power) AS f, max(power) AS g, stddev_samp(power) AS h
        FROM fonte_data WHERE timestamp >= :start AND timestamp < :end GROUP BY 1
    ), deleted AS (DELETE FROM data WHERE timestamp >= :start AND timestamp < :end)
    INSERT INTO data SELECT timestamp, signal_id, value FROM statistics, LATERAL (
        VALUES (1, a), (2, b), (3, c), (4, d), (5, e), (6, f), (7, g), (8, h)) AS signals (signal_id, value)
    ON CONFLICT (signal_id, timestamp) DO UPDATE SET value = excluded.value
"""


@pytest.mark.parametrize("candidate", ["fonte-alvo", "floor: INSERT..SELECT inside one server"])
def test_warm_day(benchmark, connectors, fonte, alvo, year, candidate):
    """Time from request to commit of days that Alvo does not hold yet, over open connections."""
    benchmark.group = "a warm day: API to commit"
    benchmark.name = candidate
    rows_of(alvo, year)
    with alvo.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS fonte_data"))
        connection.execute(text("CREATE TABLE fonte_data (LIKE data)"))
        connection.execute(text("DROP TABLE fonte_data"))
        fonte_schema.data.to_metadata(schema.sa.MetaData(), name="fonte_data").create(connection)
        seeding.copy.copy_in(
            connection,
            "fonte_data",
            {
                "timestamp": seeding.synthetic.minutes(START.date(), 365),
                **seeding.synthetic.turbine(START.date(), 365, 1),
            },
        )
    days = iter(range(1, 365))
    with client.connect(connectors[0]) as http:

        def day():
            start = START + timedelta(days=next(days))
            end = start + timedelta(days=1)
            if candidate == "fonte-alvo":
                run(http, alvo, Day(start.date(), "UTC", start, end), COLUMNS)
            else:
                with alvo.begin() as connection:
                    connection.execute(text(INSERT_SELECT), {"start": start, "end": end})

        benchmark.pedantic(day, rounds=100, warmup_rounds=5)


@pytest.mark.parametrize("candidate", ["fonte-alvo", "naive script", "floor: import of the libraries"])
def test_command_for_a_day(benchmark, connectors, alvo, candidate):
    benchmark.group = "the whole command, a day"
    benchmark.name = candidate
    command, environment = prepared(candidate, connectors, alvo, "2023-03-01")

    def run():
        subprocess.run(command, cwd=SCRIPTS, env=environment, check=True, stdout=subprocess.DEVNULL)

    benchmark.pedantic(run, rounds=9, warmup_rounds=1)
    run_measured(benchmark, command, environment)


@pytest.mark.parametrize("candidate", ["fonte-alvo", "fonte-alvo, a day to a request", "naive script"])
def test_command_for_a_year(benchmark, connectors, alvo, year, candidate):
    benchmark.group = "the whole command, a year"
    benchmark.name = candidate
    rows_of(alvo, year)
    command = prepared(candidate, connectors, alvo, "2023-01-01", "2023-12-31")
    benchmark.pedantic(lambda: run_measured(benchmark, *command), rounds=1)


LONG_START = datetime(2015, 1, 1, tzinfo=UTC)
LONG = {"ten years": (minutes, 3653), "a month at 1 Hz": (seconds, 31)}


@pytest.fixture(scope="module")
def long_connector(request, make_database):
    """A connector over more than a year, or over seconds."""
    fill, days = LONG[request.param]
    with served("fonte.connector:app", filled(make_database(), fill(LONG_START, days)), 18083) as base_url:
        yield base_url


@pytest.mark.parametrize("long_connector", LONG, indirect=True)
@pytest.mark.parametrize("candidate", ["fonte-alvo", "fonte-alvo, a day to a request"])
def test_command_for_a_long_range(benchmark, request, long_connector, make_database, candidate):
    kind = request.node.callspec.params["long_connector"]
    benchmark.group = f"the whole command, {kind}"
    benchmark.name = candidate
    pool = engine.create(make_database(), "benchmark")
    last = LONG_START + timedelta(days=LONG[kind][1] - 1)
    command = prepared(candidate, [long_connector], pool, str(LONG_START.date()), str(last.date()))
    pool.dispose()
    benchmark.pedantic(lambda: run_measured(benchmark, *command), rounds=1)


def prepared(candidate, connectors, alvo, *dates):
    """The command of a candidate, and its environment."""
    arguments = {
        "fonte-alvo": ["etl.py", *dates],
        "fonte-alvo, a day to a request": ["etl.py", *dates, "--days-per-request", "1"],
        "naive script": [str(FOLDER / "naive_etl.py"), *dates],
        "floor: import of the libraries": ["-c", "import httpx, sqlalchemy, psycopg2, numpy"],
    }[candidate]
    return [sys.executable, *arguments], os.environ | {
        "FONTE_API_URL": connectors[candidate == "naive script"],
        "ALVO_DATABASE_URL": alvo.url.render_as_string(hide_password=False),
    }


# Through a small process: a child's peak memory includes its parent's.
MEASURED = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
    "usage = resource.getrusage(resource.RUSAGE_CHILDREN);"
    "print(usage.ru_maxrss, usage.ru_utime + usage.ru_stime)"
)


def run_measured(benchmark, command, environment):
    """Run a command once; record its peak memory and the processor time of all processes."""
    others = {"PostgreSQL": postgres(), "the connector": [serving(environment["FONTE_API_URL"])]}
    before = {name: cpu_s(processes) for name, processes in others.items()}
    measured = [sys.executable, "-c", MEASURED, *command]
    run = subprocess.run(measured, cwd=SCRIPTS, env=environment, check=True, capture_output=True, text=True)
    peak_kib, used_s = map(float, run.stdout.split()[-2:])
    benchmark.extra_info["peak memory in MiB"] = round(peak_kib / 1024, 1)
    benchmark.extra_info["CPU of the command in s"] = round(used_s, 2)
    for name, processes in others.items():
        used_s = cpu_s(process for process in processes if process.is_running()) - before[name]
        benchmark.extra_info[f"CPU of {name} in s"] = round(used_s, 2)
