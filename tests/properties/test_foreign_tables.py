"""Fonte's and Alvo's tables as others made them: any numeric types, time zones, columns and database settings."""

import csv
import io
import math
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from support import reference
from support.project import alvo_api, alvo_values, connector_over

import etl
import seed
from alvo import __main__ as alvo_main
from alvo import load, screen
from alvo import schema as alvo_schema
from alvo.aggregation import STATISTICS
from fonte import client
from fonte.client import FonteError
from fonte_alvo import engine
from orchestration import day, days

DAY = date(2024, 5, 20)
MIDNIGHT = datetime(2024, 5, 20, tzinfo=UTC)
NAMES = ["wind_speed", "power", "ambient_temperature"]
FLOATS = {
    "real": st.floats(width=32, allow_subnormal=False),
    "double precision": st.floats(allow_subnormal=False),
    "numeric": st.decimals(-1000, 1000, places=5),
    "numeric(12,3)": st.decimals(-1000, 1000, places=3),
}
INTEGERS = {
    "smallint": st.integers(-(2**15), 2**15 - 1),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "bigint": st.integers(-(2**63), 2**63 - 1),
}
NUMBERS = {**FLOATS, **INTEGERS}
TIMES = [f"timestamp{precision} {zone} time zone" for precision in ("", "(0)", "(3)") for zone in ("with", "without")]
DATABASES = {
    "ours": ("UTF8", {}),
    "German dates": ("UTF8", {"timezone": "America/Sao_Paulo", "datestyle": "German"}),
    "LATIN1": ("LATIN1", {"timezone": "Asia/Kathmandu", "datestyle": "SQL, MDY", "extra_float_digits": "-15"}),
    "SQL_ASCII": ("SQL_ASCII", {"timezone": "Pacific/Chatham", "intervalstyle": "iso_8601"}),
}


@st.composite
def tables(draw):
    """The type of the timestamp, those of the variables, and rows: seconds since midnight to values."""
    kinds = {name: draw(st.sampled_from(sorted(NUMBERS))) for name in NAMES}
    values = {name: st.none() | NUMBERS[kind] for name, kind in kinds.items()}
    offsets = st.sampled_from([0, 60, 120, 599, 600, 3600, 43_200, 86_399]) | st.integers(-7200, 93_600)
    return (
        draw(st.sampled_from(TIMES)),
        kinds,
        draw(st.dictionaries(offsets, st.fixed_dictionaries(values), max_size=12)),
    )


@pytest.fixture(scope="module", params=DATABASES, ids=DATABASES)
def foreign(request, administrator, server):
    """A database with foreign settings, and a connector over it."""
    encoding, session = DATABASES[request.param]
    name = f"foreign_{encoding.lower()}_{abs(hash(request.param))}"
    with administrator.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
        locale = "LOCALE 'C' LOCALE_PROVIDER libc" if encoding != "UTF8" else ""
        connection.execute(text(f"CREATE DATABASE {name} ENCODING '{encoding}' {locale} TEMPLATE template0"))
        for setting, value in session.items():
            connection.execute(text(f"ALTER DATABASE {name} SET {setting} = '{value}'"))
    url = server.set(database=name)
    owner = create_engine(url, connect_args={"client_encoding": "utf8"})
    with connector_over(url) as base_url:
        yield owner, base_url
    owner.dispose()


def create(owner, time, kinds, rows):
    columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    table = f"CREATE TABLE data (id serial, timestamp {time}, {columns}, note text DEFAULT 'é')"
    with owner.begin() as connection:
        connection.execute(text("SET LOCAL timezone = 'UTC'"))
        connection.execute(text(f"DROP TABLE IF EXISTS data; {table}"))
        for offset, values in rows.items():
            names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
            query = f"INSERT INTO data (timestamp, {names}) VALUES (:moment, {marks})"
            connection.execute(text(query), {"moment": MIDNIGHT + timedelta(seconds=offset), **values})


def doubles(rows):
    """The day's rows in Python: moment to floats, NaN for NULL."""
    inside = {MIDNIGHT + timedelta(seconds=offset): rows[offset] for offset in sorted(rows) if 0 <= offset < 86_400}
    return {moment: [float("nan" if row[n] is None else row[n]) for n in NAMES] for moment, row in inside.items()}


def in_arrow(timestamps, columns):
    moments = (moment.replace(tzinfo=UTC) for moment in timestamps.tolist())
    rows = zip(*(columns[name].tolist() for name in NAMES), strict=True)
    return {moment: list(row) for moment, row in zip(moments, rows, strict=True)}


def in_csv(answer):
    rows = csv.DictReader(io.StringIO(answer.text))
    return {datetime.fromisoformat(row["timestamp"]): [float(row[name] or "nan") for name in NAMES] for row in rows}


def finite(rows):
    return {moment: [value if math.isfinite(value) else None for value in values] for moment, values in rows.items()}


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables())
def test_alvo_holds_the_exact_statistics_of_any_table(table, foreign, alvo_pool):
    time, kinds, rows = table
    owner, base_url = foreign
    create(owner, time, kinds, rows)
    truth = doubles(rows)
    bounds = {"start_timestamp": "2024-05-20", "end_timestamp": "2024-05-21"}
    with client.connect(base_url) as fonte:
        arrow = in_arrow(*client.fetch(base_url, MIDNIGHT, MIDNIGHT + timedelta(days=1), NAMES, fonte))
        read_csv = in_csv(fonte.get("data", params={**bounds, "format": "csv"}))
        records = fonte.get("data", params={**bounds, "format": "json"}).json()
        json = {datetime.fromisoformat(record["timestamp"]): [record[name] for name in NAMES] for record in records}
        assert all(record["timestamp"].endswith("Z") for record in records)
        assert list(arrow) == list(read_csv) == list(json) == list(truth)
        for moment, row in truth.items():
            np.testing.assert_array_equal((arrow[moment], read_csv[moment]), (row, row))
        assert json == finite(truth)

        with alvo_pool.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS data, signal, load"))
        (asked,) = days.between(DAY, DAY, ZoneInfo("UTC"))
        if not any(value is not None for values in json.values() for value in values):
            with pytest.raises(day.EmptyPeriod):
                day.run(fonte, alvo_pool, asked, NAMES)
            assert alvo_values(alvo_pool) is None
            return
        outcome = day.run(fonte, alvo_pool, asked, NAMES)
    assert alvo_values(alvo_pool) == statistics_of(truth)
    assert all(samples <= outcome.expected for samples in outcome.samples.values())


def statistics_of(rows):
    windows = defaultdict(list)
    for moment, values in rows.items():
        for name, value in zip(NAMES, values, strict=True):
            if math.isfinite(value):
                windows[moment.replace(minute=moment.minute // 10 * 10, second=0), name].append(value)
    held = {}
    for (window, name), samples in windows.items():
        exact = {"mean": reference.mean(samples), "min": min(samples), "max": max(samples)}
        exact |= {"std": reference.std(samples)} if len(samples) > 1 else {}
        doubles_ = {f"{name}_{statistic}": reference.as_double(value) for statistic, value in exact.items()}
        held |= {(window, signal): value for signal, value in doubles_.items() if math.isfinite(value)}
    return held


BROKEN = {
    "text": ("ALTER TABLE data ALTER power TYPE text USING 'calm'", "its column power (text) cannot be read as float8"),
    "numeric": ("ALTER TABLE data ALTER power TYPE numeric USING '1e400'", "its column power (numeric) cannot be read"),
    "whole numeric": (
        "ALTER TABLE data ALTER power TYPE numeric USING '-1e400'",
        'cannot be read as float8: "-10000000000000000000..." is out of range for type double precision',
    ),
    "longest numeric": (
        "ALTER TABLE data ALTER power TYPE numeric USING '1e131071' + 0.25::numeric(999, 999)",
        'cannot be read as float8: "10000000000000000000...25000000000000000000..." is out of range for type double',
    ),
    "boolean": ("ALTER TABLE data ALTER power TYPE boolean USING true", "its column power (boolean) cannot be read"),
    "timestamp": (
        "ALTER TABLE data DROP CONSTRAINT data_timestamp_has_four_digit_year, ALTER timestamp TYPE text",
        "its column timestamp (text) cannot be read",
    ),
    "absent column": (
        "ALTER TABLE data DROP power",
        "no column power; as its owner: ALTER TABLE data ADD COLUMN power float8",
    ),
    "absent time": (
        "ALTER TABLE data DROP timestamp",
        "no column timestamp; as its owner: ALTER TABLE data ADD COLUMN timestamp timestamptz",
    ),
    "the brief's spelling": (
        "ALTER TABLE data RENAME ambient_temperature TO ambient_temprature",
        "as its owner: ALTER TABLE data RENAME COLUMN ambient_temprature TO ambient_temperature",
    ),
    "Alvo's table": (
        "ALTER TABLE data DROP power, DROP wind_speed, ADD signal_id integer",
        "its table data is Alvo's: correct FONTE_DATABASE_URL",
    ),
    "absent table": ("DROP TABLE data", "it has no table data, which `python seed.py` makes"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_an_unreadable_table_is_an_error_that_names_the_cause(fonte, make_pool, alvo, damage):
    statement, said = BROKEN[damage]
    with make_pool(fonte).begin() as connection:
        connection.execute(text(statement))
    with connector_over(fonte) as base_url, client.connect(base_url) as http:
        for form in ("json", "csv", "arrow"):
            answer = httpx.get(f"{base_url}/data?end_timestamp=2024-05-21&format={form}")
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, None)
            assert answer.json()["detail"].startswith("Fonte's database is not set up: ")
            assert said in answer.json()["detail"]
        pool = make_pool(alvo)
        (asked,) = days.between(DAY, DAY, ZoneInfo("UTC"))
        with pytest.raises(FonteError) as failure:
            day.run(http, pool, asked, NAMES)
        assert said in str(failure.value)
        assert alvo_values(pool) is None
        if "absent" in damage:
            assert httpx.get(f"{base_url}/health").json()["detail"].startswith("Fonte's database is not set up")


def test_samples_microseconds_apart_are_loaded(fonte_api, alvo_pool):
    (asked,) = days.between(date(2024, 5, 20), date(2024, 5, 20), ZoneInfo("UTC"))
    timestamps = np.datetime64("2024-05-20", "us") + np.array([0, 20, 40], "timedelta64[us]")
    with client.connect(fonte_api) as http:
        outcome = day.run(http, alvo_pool, asked, ["power"], held=(timestamps, {"power": np.ones(3)}, 0.0))
    assert outcome.report.written == 4


@pytest.mark.parametrize(
    ("steps_s", "expected_s"),
    [
        ([], 60),
        ([60] * 9, 60),
        ([1] * 100, 1),
        ([600] * 5, 600),
        ([60] * 5 + [1] * 3, 60),
        ([59.4, 60.4, 60.2, 59.9], 60),
        ([0.1] * 20, 0.1),
        ([1.4] * 20, 1.4),
        ([2.5] * 20 + [5.0] * 9, 2.5),
        ([60, 120], 60),
        ([10_200, 7_440, 300, 5_000], 300),
        ([600], 600),
        # A dozen steps show an interval beyond a window.
        ([600.5], 60),
        ([43_200], 60),
        ([3600] * 11, 60),
        ([3600] * 12, 3600),
        # The step of a tenth of all counts; that of fewer is jitter.
        ([2.5, *(2.5 * gap for gap in range(1, 20))], 2.5),
        # The median counts from a hundred steps on, where it is near a usual interval as that.
        ([35 + number / 2 for number in range(99)], 36),
        ([35 + number / 2 for number in range(100)], 60),
        ([560 + 0.6 * number for number in range(100)], 589.5),
    ],
)
def test_the_sampling_interval_is_the_most_frequent_step(steps_s, expected_s):
    moments = np.rint(np.cumsum([0, *steps_s]) * 1_000_000)
    timestamps = np.datetime64("2024-05-20", "us") + moments.astype("int64").astype("timedelta64[us]")
    assert day.sampling_interval(timestamps[: len(steps_s) + 1]) == timedelta(seconds=expected_s)


USUAL_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600]


def interval_of(seconds):
    """The interval that a day shows whose samples are at these seconds."""
    return day.sampling_interval(np.datetime64("2024-05-20", "us") + np.rint(seconds * 1e6).astype("timedelta64[us]"))


@settings(deadline=None)
@given(
    usual_s=st.sampled_from(USUAL_S),
    jitter=st.floats(0, 1 / 3),
    gap=st.floats(0, 0.1),
    gap_start=st.floats(0, 1),
    random_seed=st.integers(0, 99),
)
# Just over half of the steps are shorter than a second, and are not rounded.
@example(usual_s=1, jitter=0.25, gap=0.0625, gap_start=0.0, random_seed=47)
def test_neither_jitter_nor_a_gap_changes_the_interval(usual_s, jitter, gap, gap_start, random_seed):
    grid_s = np.arange(0, 86_400, usual_s)
    kept = (grid_s < gap_start * 86_400) | (grid_s >= (gap_start + gap) * 86_400)
    seconds = grid_s + np.random.default_rng(random_seed).uniform(0, jitter * usual_s, len(grid_s))
    assert interval_of(seconds[kept]) == timedelta(seconds=usual_s)


@pytest.mark.parametrize(("true_s", "deviation_s"), [(65, 2), (68, 1.5), (62, 1), (33, 2), (11, 0.8), (55, 2)])
def test_a_logger_that_waits_between_samples_has_an_interval_that_is_not_usual(true_s, deviation_s):
    steps = np.random.default_rng(1).normal(true_s, deviation_s, int(86_400 / true_s))
    assert abs(interval_of(np.cumsum(steps)).total_seconds() / true_s - 1) < 0.02


@settings(deadline=None)
@given(interval_s=st.sampled_from([0.1, 1.25, *USUAL_S[:8], 7]), random_seed=st.integers(0, 99))
def test_missing_samples_do_not_change_the_interval_even_if_they_are_most(interval_s, random_seed):
    grid_s = np.arange(0, 86_400, interval_s)
    kept = np.random.default_rng(random_seed).random(len(grid_s)) < 0.4
    assert interval_of(grid_s[kept]) == timedelta(seconds=interval_s)


@pytest.mark.parametrize("unusual_s", [0.1, 3, 20, 240, 360, 720])
def test_an_unusual_interval_with_jitter_is_taken_to_within_a_tenth(unusual_s):
    grid_s = np.arange(0, 86_400, unusual_s)
    seconds = grid_s + np.random.default_rng(1).uniform(0, unusual_s / 3, len(grid_s))
    assert abs(interval_of(seconds).total_seconds() / unusual_s - 1) < 0.1


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ("1 second", ["86,400 of 86,400 samples (100.0%), 144 windows", "one sample every 1 s"]),
        ("10 minutes", ["144 of 144 samples (100.0%), 144 windows", "one sample every 600 s"]),
        ("1 minute", ["1,440 of 1,440 samples (100.0%), 144 windows"]),
    ],
)
def test_coverage_counts_samples_against_the_interval_of_the_day(make_database, make_pool, alvo, interval, said):
    url = make_database()
    series = f"generate_series('2024-05-20Z'::timestamptz, '2024-05-20 23:59:59Z', '{interval}') AS moment"
    with make_pool(url).begin() as connection:
        columns = "moment AS timestamp, 7 AS wind_speed, 100 AS power, 3 AS ambient_temperature"
        connection.execute(text(f"CREATE TABLE data AS SELECT {columns} FROM {series}"))
    with connector_over(url) as base_url, client.connect(base_url) as fonte:
        (asked,) = days.between(DAY, DAY, ZoneInfo("UTC"))
        outcome = day.run(fonte, make_pool(alvo), asked, ["power"])
    summary = day.summary(asked, outcome)
    assert all(words in summary for words in said)
    assert ("one sample every" in summary) == (len(said) > 1)


def test_implausible_values_are_counted_and_kept(connector, fonte_pool, alvo, make_pool):
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET wind_speed = -999 WHERE timestamp < '2024-05-20 01:00Z'"))
        connection.execute(text("UPDATE data SET power = 9999 WHERE timestamp = '2024-05-20 12:00Z'"))
    pool = make_pool(alvo)
    with client.connect(connector) as fonte:
        (asked,) = days.between(DAY, DAY, ZoneInfo("UTC"))
        outcome = day.run(fonte, pool, asked, ["wind_speed", "power"])
    assert outcome.implausible == {"wind_speed": 60, "power": 1}
    for report in (day.summary(asked, outcome), day.line(asked, outcome)):
        assert "wind_speed: 60 implausible values" in report
        assert "power: 1 implausible value" in report
    assert alvo_values(pool)[MIDNIGHT, "wind_speed_min"] == -999


def test_settings_that_a_pooler_drops_are_set_in_each_transaction(alvo):
    """PgBouncer in transaction mode drops a session's settings before the next transaction."""
    pool, asked = engine.create(alvo, "test"), ("TimeZone", "lock_timeout", "statement_timeout")
    for _ in range(2):
        with pool.begin() as connection:
            shown = {name: connection.scalar(text(f"SHOW {name}")) for name in asked}
        assert shown == {"TimeZone": "UTC", "lock_timeout": "15s", "statement_timeout": "2min"}
        with pool.connect() as connection:
            connection.connection.driver_connection.autocommit = True
            cursor = connection.connection.cursor()
            cursor.execute("DISCARD ALL")
            connection.connection.driver_connection.autocommit = False
    pool.dispose()


EXTRA_COLUMNS = {
    "an id with a default": "id serial PRIMARY KEY, timestamp timestamptz UNIQUE",
    "an identity": "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, timestamp timestamptz NOT NULL UNIQUE",
    "a moment with a default": "created_at timestamptz NOT NULL DEFAULT now(), timestamp timestamptz PRIMARY KEY",
    "a note that may be absent": "note text, timestamp timestamp PRIMARY KEY",
    "a generated column": "day date GENERATED ALWAYS AS (timestamp::date) STORED, timestamp timestamp PRIMARY KEY",
}
REFUSING_COLUMNS = {
    "an id without a default": ("id integer PRIMARY KEY, timestamp timestamptz UNIQUE", "its column id needs a value"),
    "a moment without a default": (
        'timestamp timestamptz PRIMARY KEY, "Created at" timestamptz NOT NULL',
        'its column "Created at" needs a value in each row, and has no default; as its owner: ALTER TABLE data ALTER '
        '"Created at" SET DEFAULT ...',
    ),
    "no key": (
        "id serial PRIMARY KEY, timestamp timestamptz",
        "its column timestamp is no key; as its owner: ALTER TABLE data ADD UNIQUE (timestamp)",
    ),
    "a deferrable key": (
        "timestamp timestamptz UNIQUE DEFERRABLE",
        "its column timestamp is no key; as its owner: ALTER TABLE data ADD UNIQUE (timestamp)",
    ),
}


@pytest.fixture
def fonte_of(make_database, make_pool, monkeypatch):
    """Make a Fonte whose table has these columns and the variables; seed.py and an admin may fill it."""

    def make(columns, variables="wind_speed real, power numeric, ambient_temperature double precision"):
        url = make_database()
        with make_pool(url).begin() as connection:
            connection.execute(text(f"CREATE TABLE data ({columns}, {variables})"))
        monkeypatch.setenv("FONTE_DATABASE_URL", url.render_as_string(hide_password=False))
        monkeypatch.setenv("FONTE_ADMIN_DATABASE_URL", url.render_as_string(hide_password=False))
        monkeypatch.setenv("FONTE_ADMIN_TOKEN", "token-of-the-tests")
        return url

    return make


@pytest.mark.parametrize("columns", EXTRA_COLUMNS.values(), ids=EXTRA_COLUMNS)
def test_a_table_with_extra_columns_is_filled_and_filled_again(fonte_of, capsys, columns):
    url = fonte_of(columns)
    assert [seed.main(["--days", "1"]) for _ in range(2)] == [0, 0]
    first, second = (line for line in capsys.readouterr().out.splitlines() if "inserted" in line)
    assert first.startswith("1,440 rows inserted, 0 were there already")
    assert second.startswith("0 rows inserted, 1,440 were there already")
    with connector_over(url) as base_url:
        admin = {"Authorization": "Bearer token-of-the-tests"}
        assert httpx.post(f"{base_url}/data/randomize", headers=admin).json()["rows"] == 14400
        assert len(httpx.get(f"{base_url}/data?end_timestamp=2024-05-21").json()) == 1440


@pytest.mark.parametrize(("columns", "said"), REFUSING_COLUMNS.values(), ids=REFUSING_COLUMNS)
def test_a_column_that_prevents_seeding_is_named_on_one_line(fonte_of, make_pool, capsys, columns, said):
    url = fonte_of(columns)
    assert seed.main(["--days", "1"]) == 3
    printed = capsys.readouterr()
    assert printed.err.startswith(f"seed.py: Fonte takes no rows: {said}")
    assert printed.err.count("\n") == 1
    with connector_over(url) as base_url:
        admin = {"Authorization": "Bearer token-of-the-tests"}
        answer = httpx.post(f"{base_url}/data/randomize", headers=admin)
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, None)
        assert answer.json()["detail"].startswith(f"Fonte takes no rows: {said}")


@pytest.mark.parametrize(
    ("name", "kind", "mended"),
    [
        ("wind_speed", "text", "float8"),
        ("power", "character varying(9)", "float8"),
        ("timestamp", "date", "timestamptz"),
        ("timestamp", "text", "timestamptz"),
    ],
)
def test_a_column_of_another_kind_of_type_is_named_with_the_statement_that_mends_it(
    fonte_of, make_pool, capsys, name, kind, mended
):
    kinds = {"timestamp": "timestamptz", "wind_speed": "real", "power": "numeric", "ambient_temperature": "float8"}
    timestamp, *variables = (f"{each} {kind if each == name else its}" for each, its in kinds.items())
    url = fonte_of(f"{timestamp} PRIMARY KEY", ", ".join(variables))
    zone = "SET timezone = 'UTC'; " * (name == "timestamp")
    mend = f"{zone}ALTER TABLE data ALTER {name} TYPE {mended} USING {name}::{mended}"
    assert seed.main(["--days", "1"]) == 3
    said = f"seed.py: Fonte takes no rows: its column {name} is of type {kind}; as its owner: {mend}\n"
    assert capsys.readouterr().err == said
    with make_pool(url).begin() as connection:
        connection.execute(text(mend))
    assert seed.main(["--days", "1"]) == 0


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_is_refused_as_a_view(fonte_of, make_pool, capsys, kind):
    url = fonte_of("timestamp timestamptz PRIMARY KEY")
    with make_pool(url).begin() as connection:
        connection.execute(text(f"ALTER TABLE data RENAME TO scada; CREATE {kind} data AS SELECT * FROM scada"))
    assert seed.main(["--days", "1"]) == 3
    said = "seed.py: Fonte takes no rows: data is a view: write to the table that it reads\n"
    assert capsys.readouterr().err == said


def test_an_index_that_failed_to_build_is_no_key(fonte_of, make_pool, capsys):
    url = fonte_of("timestamp timestamptz")
    with make_pool(url).connect() as connection:
        connection.execute(text("INSERT INTO data VALUES ('2024-05-20'), ('2024-05-20')"))
        connection.commit()
        connection.execute(text("COMMIT"))
        with pytest.raises(DBAPIError, match="could not create unique index"):
            connection.execute(text("CREATE UNIQUE INDEX CONCURRENTLY ON data (timestamp)"))
    assert seed.main(["--days", "1"]) == 3
    assert "its column timestamp is no key" in capsys.readouterr().err


def test_seed_names_the_spelling_of_the_brief_too(fonte_of, capsys):
    fonte_of("timestamp timestamptz PRIMARY KEY", "wind_speed float8, power float8, ambient_temprature float8")
    assert seed.main(["--days", "1"]) == 3
    assert "ALTER TABLE data RENAME COLUMN ambient_temprature TO ambient_temperature" in capsys.readouterr().err


def alvo_with(pool, signal_columns="", data_columns="", key="PRIMARY KEY (signal_id, timestamp)"):
    data = "timestamp timestamptz, signal_id integer REFERENCES signal, value double precision"
    with pool.begin() as connection:
        connection.execute(text(f"CREATE TABLE signal (id serial PRIMARY KEY, name text UNIQUE {signal_columns})"))
        connection.execute(text(f"CREATE TABLE data ({data} {data_columns}, {key})"))


@pytest.mark.parametrize(
    ("signal_columns", "data_columns", "key"),
    [
        (", created_at timestamptz NOT NULL DEFAULT now()", "", "PRIMARY KEY (signal_id, timestamp)"),
        ("", ", id serial PRIMARY KEY, created_at timestamptz DEFAULT now()", "UNIQUE (signal_id, timestamp)"),
        (", unit text", ", note text", "UNIQUE (timestamp, signal_id)"),
    ],
)
def test_an_alvo_with_extra_columns_is_loaded_and_loaded_again(connector, alvo_pool, signal_columns, data_columns, key):
    alvo_with(alvo_pool, signal_columns, data_columns, key)
    with client.connect(connector) as fonte:
        (asked,) = days.between(DAY, DAY, ZoneInfo("UTC"))
        assert [day.run(fonte, alvo_pool, asked, ["power"]).report.written for _ in range(2)] == [576, 0]


def test_extra_columns_with_names_of_the_other_tables_change_no_answer(connector, alvo, alvo_pool):
    times = "period_start timestamptz, period_end timestamptz"
    alvo_with(
        alvo_pool,
        ", timestamp timestamptz DEFAULT 'infinity', value float8 DEFAULT 0, signal_id integer DEFAULT 0",
        f", id serial, name text DEFAULT 'x', signal text, variable text, statistics text, samples integer, {times}",
    )
    (first, second) = days.between(DAY, DAY + timedelta(days=1), ZoneInfo("UTC"))
    names = [f"power_{statistic}" for statistic in STATISTICS]
    with client.connect(connector) as fonte, alvo_api(alvo) as base_url:
        written = [day.run(fonte, alvo_pool, each, ["power"]).report.written for each in (first, second, second)]
        with alvo_pool.begin() as connection:
            assert load.delete_unused_signals(connection) == 0
            ids = screen.signal_ids(connection).values()
            assert screen.neighbours(connection, ids, first.end, second.end)[0] == first.end - timedelta(minutes=10)
        records = httpx.get(f"{base_url}/data").json()
    assert written == [576, 576, 0]
    periods = [(each.start, each.end) for each in (first, second)]
    assert load.recorded(alvo_pool, periods, ["power"], STATISTICS) == [(True, False)] * 2
    values = {(datetime.fromisoformat(each["timestamp"]), each["signal"]): each["value"] for each in records}
    assert values == alvo_values(alvo_pool)
    window_starts, signals, _ = screen.values(alvo_pool, first.start, second.end, names)
    assert (len(window_starts), sorted(signals)) == (288, sorted(names))


@pytest.mark.parametrize(
    ("foreign", "said"),
    [
        ("CREATE TABLE data (timestamp timestamptz, power float8)", "its table data has no column signal_id"),
        ("CREATE TABLE load (id integer, kg float8)", "its table load has no column period_start"),
        ("CREATE TABLE signal (name text)", "its table signal has no column id"),
    ],
)
@pytest.mark.parametrize("make", [lambda: etl.main(["2024-05-20"]), alvo_schema.main, lambda: alvo_main.main([])])
def test_a_table_of_the_same_name_that_is_not_alvos_is_named_and_nothing_is_made(
    connector, alvo_pool, monkeypatch, capsys, make, foreign, said
):
    tables = text("SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1")
    with alvo_pool.begin() as connection:
        connection.execute(text(foreign))
        before = connection.execute(tables).all()
    monkeypatch.setenv("FONTE_API_URL", connector)
    assert make() == 4
    assert f"Alvo failed: {said}, so it is not Alvo's: correct ALVO_DATABASE_URL\n" in capsys.readouterr().err
    with alvo_pool.begin() as connection:
        assert connection.execute(tables).all() == before


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"signal_columns": ", unit text NOT NULL"}, 'null value in column "unit" of relation "signal"'),
        ({"data_columns": ", created_at date NOT NULL"}, 'null value in column "created_at" of relation "data"'),
        (
            {"data_columns": ", id serial", "key": "PRIMARY KEY (id)"},
            "signal_id and timestamp are no key of data; as its owner: ALTER TABLE data ADD UNIQUE (signal_id, ",
        ),
    ],
)
def test_a_column_of_alvo_that_prevents_a_load_is_named_on_one_line(
    connector, alvo_pool, monkeypatch, capsys, columns, said
):
    alvo_with(alvo_pool, **columns)
    monkeypatch.setenv("FONTE_API_URL", connector)
    exit_codes = [etl.main(["2024-05-20"]), etl.main(["2024-05-20", "--statistics", "mean"])]
    assert exit_codes[-1] == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("etl.py: Alvo failed: ")
    assert said in line
    remedy = "; it holds the old day or the new one, whole: check ALVO_DATABASE_URL and run again"
    assert line.endswith(remedy) or "as its owner" in line
