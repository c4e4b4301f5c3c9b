"""Fonte's table and the command seed.py that fills it."""

import re
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from support.project import bare, interrupt, wait_until

import etl
import seed
from fonte import local, schema, seeding, synthetic

START = date(2024, 5, 20)


@pytest.fixture
def empty_fonte(make_database, monkeypatch):
    url = make_database()
    monkeypatch.setenv("FONTE_DATABASE_URL", url.render_as_string(hide_password=False))
    return url


@pytest.fixture
def rows(empty_fonte, make_pool):
    pool = make_pool(empty_fonte)

    def read(statement="SELECT * FROM data ORDER BY timestamp"):
        with pool.connect() as connection:
            return connection.execute(text(statement)).all()

    return read


@settings(max_examples=settings.default.max_examples // 5)
@given(profile=st.sampled_from(sorted(seeding.PROFILES)), seed=st.integers(0, 2**32), split=st.integers(1, 3))
def test_days_seeded_separately_equal_days_seeded_together(profile, seed, split):
    make = seeding.PROFILES[profile]
    together = make(START, 4, seed)
    first, rest = make(START, split, seed), make(START + timedelta(days=split), 4 - split, seed)
    for name, values in together.items():
        np.testing.assert_array_equal(values, np.hstack([first[name], rest[name]]))


def test_another_seed_or_another_day_gives_other_values():
    for make in seeding.PROFILES.values():
        columns = [make(START, 1, 1), make(START, 1, 2), make(START + timedelta(days=1), 1, 1)]
        for name in columns[0]:
            assert len({column[name].tobytes() for column in columns}) == 3


def test_turbine_wind_is_weibull_and_autocorrelated():
    wind = synthetic.turbine(START, 400, 1)["wind_speed"]
    # A Weibull distribution with shape 2 has mean 0.886 and median 0.833 scales. Consecutive minutes differ little.
    assert np.mean(wind) / synthetic.WEIBULL_SCALE_M_S == pytest.approx(0.886, abs=0.03)
    assert np.median(wind) / synthetic.WEIBULL_SCALE_M_S == pytest.approx(0.833, abs=0.03)
    assert np.corrcoef(wind[:-1], wind[1:])[0, 1] > 0.98
    assert wind.min() >= 0


def test_turbine_power_follows_the_curve_and_temperature_the_time_of_day():
    columns = synthetic.turbine(date(2023, 5, 20), 100, 1)
    wind, power = columns["wind_speed"], columns["power"]
    assert set(power[wind < 2.5]) == {-5.0}
    assert (power[(wind >= 13) & (wind <= 25)] >= 1900).all()
    assert set(power[wind > 25]) <= {-5.0}
    hourly = columns["ambient_temperature"].reshape(100, 24, 60).mean(axis=(0, 2))
    assert 15 <= int(np.argmax(hourly)) <= 19
    assert 3 <= int(np.argmin(hourly)) <= 7


def test_uniform_values_fill_their_ranges():
    columns = synthetic.uniform(START, 10, 1)
    for name, (low, high) in {"wind_speed": (0, 25), "power": (0, 1900), "ambient_temperature": (-10, 40)}.items():
        assert low <= columns[name].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < columns[name].max() < high


def test_the_default_is_ten_days_which_the_summary_reports(rows, capsys):
    assert seed.main([]) == 0
    assert capsys.readouterr().out == (
        "14,400 rows inserted, 0 were there already: 0 had missing values filled, 0 that differ keep their values\n"
        "Fonte holds 14,400 rows from 2024-05-20 00:00 UTC to 2024-05-29 23:59 UTC\n"
    )
    expected = synthetic.turbine(START, 10, seeding.RANDOM_SEED)
    held = rows()
    for number, name in enumerate(expected, start=1):
        np.testing.assert_array_equal(np.array([row[number] for row in held], float), expected[name])
    without = rows("SELECT timestamp::date, count(*) FROM data WHERE power IS NULL GROUP BY 1")
    assert without == [(date(2024, 5, 28), 123)]
    assert rows("SELECT count(*) FROM data WHERE power = 'NaN' OR wind_speed IS NULL") == [(0,)]


def test_existing_rows_keep_their_values(rows, capsys):
    seed.main(["--days", "2"])
    before = rows()
    assert seed.main(["--days", "3", "--profile", "uniform", "--random-seed", "7"]) == 0
    summary = "1,440 rows inserted, 2,880 were there already: 0 had missing values filled, 2,880 that differ keep their"
    assert summary in capsys.readouterr().out
    after = rows()
    assert after[:2880] == before
    assert [row[2] for row in after[2880:]] == synthetic.uniform(date(2024, 5, 22), 1, 7)["power"].tolist()


def test_once_seeds_only_where_the_table_is_absent(rows, capsys):
    assert seed.main(["--once"]) == 0
    assert "14,400 rows inserted" in capsys.readouterr().out
    assert seed.main(["--once", "--days", "20"]) == 0
    assert capsys.readouterr().out == "Fonte has its table: nothing was written\n"
    assert rows("SELECT count(*) FROM data") == [(14400,)]


def test_a_long_period_is_seeded_in_parts(rows):
    assert seed.main(["--days", "61", "--start", "2023-01-01"]) == 0
    assert rows("SELECT count(*), min(timestamp)::date, max(timestamp)::date FROM data") == [
        (61 * 1440, date(2023, 1, 1), date(2023, 3, 2))
    ]
    # Rows that lie in another order take a reader of a long period three times as long.
    order = "SELECT timestamp, lag(timestamp) OVER (ORDER BY ctid) AS before FROM data"
    assert rows(f"SELECT count(*) FROM ({order}) AS placed WHERE timestamp < before") == [(0,)]


MINUTES = {"2024-01-01 00:00": (1.0, None), "2024-01-01 00:01": (2.0, 20.0), "2024-01-01 00:02": (None, None)}


def offered(values):
    """The columns of rows {timestamp: (wind_speed, power)}."""
    columns = {"timestamp": np.array(list(values), "datetime64[us]")}
    for place, name in enumerate(("wind_speed", "power")):
        columns[name] = np.array([row[place] for row in values.values()], float)
    return columns


@pytest.mark.parametrize(
    ("second", "replace", "expected", "counts"),
    [
        # The merged rows; the changed rows; the counts of inserted, present, filled and differing rows.
        ({"2024-01-01 00:03": (3.0, 30.0)}, False, {"2024-01-01 00:03": (3.0, 30.0)}, (1, 0, 0, 0)),
        ({"2024-01-01 00:00": (None, 10.0)}, False, {"2024-01-01 00:00": (1.0, 10.0)}, (0, 1, 1, 0)),
        ({"2024-01-01 00:01": (2.0, 20.0)}, False, {}, (0, 1, 0, 0)),
        ({"2024-01-01 00:01": (None, None)}, False, {}, (0, 1, 0, 0)),
        ({"2024-01-01 00:01": (2.0, 21.0)}, False, {}, (0, 1, 0, 1)),
        ({"2024-01-01 00:00": (9.0, 10.0)}, False, {"2024-01-01 00:00": (1.0, 10.0)}, (0, 1, 1, 1)),
        ({"2024-01-01 00:01": (2.0, 21.0)}, True, {"2024-01-01 00:01": (2.0, 21.0)}, (0, 1, 0, 1)),
        ({"2024-01-01 00:01": (None, 21.0)}, True, {"2024-01-01 00:01": (2.0, 21.0)}, (0, 1, 0, 1)),
        ({"2024-01-01 00:00": (9.0, 10.0)}, True, {"2024-01-01 00:00": (9.0, 10.0)}, (0, 1, 1, 1)),
        (MINUTES, False, {}, (0, 3, 0, 0)),
        (MINUTES, True, {}, (0, 3, 0, 0)),
    ],
)
def test_a_null_is_filled_and_a_value_changes_only_with_replace(
    rows, empty_fonte, make_pool, second, replace, expected, counts
):
    with make_pool(empty_fonte).begin() as connection:
        schema.create_absent(connection)
        assert seeding.merge(connection, [offered(MINUTES)]) == (3, 0, 0, 0)
        assert seeding.merge(connection, [offered(second)], replace=replace) == counts
    held = rows("SELECT to_char(timestamp, 'YYYY-MM-DD HH24:MI'), wind_speed, power FROM data ORDER BY timestamp")
    assert {moment: values for moment, *values in map(tuple, held)} == {
        moment: list(values) for moment, values in {**MINUTES, **expected}.items()
    }


@pytest.mark.parametrize("kind", ["float8", "real", "numeric", "integer"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_held_nan_is_filled_like_a_null(rows, empty_fonte, make_pool, kind, replace):
    """NaN is no sample. An integer has none."""
    none = "NULL" if kind == "integer" else "'NaN'"
    with make_pool(empty_fonte).begin() as connection:
        schema.create_absent(connection)
        connection.execute(text(f"ALTER TABLE data ALTER wind_speed TYPE {kind}"))
        connection.execute(
            text(f"INSERT INTO data VALUES ('2024-01-01 00:00Z', {none}), ('2024-01-01 00:01Z', {none})")
        )
        second = {"2024-01-01 00:00": (1.0, None), "2024-01-01 00:01": (None, None)}
        assert seeding.merge(connection, [offered(second)], replace=replace) == (0, 2, 1, 0)
    assert rows("SELECT count(*) FROM data WHERE wind_speed = 1") == [(1,)]


RETURNS_NULL = """
    CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER skip BEFORE {0} ON data FOR EACH ROW EXECUTE FUNCTION skip();
"""


@pytest.mark.parametrize(
    ("statement", "moment"),
    [
        ("CREATE TABLE child () INHERITS (data); INSERT INTO child VALUES ('2024-01-01 00:00Z')", "00:00:00"),
        (RETURNS_NULL.format("INSERT"), "00:00:00"),
        ("INSERT INTO data VALUES ('2024-01-01 00:00Z');" + RETURNS_NULL.format("UPDATE"), "00:00:00"),
        ("ALTER TABLE data ALTER timestamp TYPE timestamptz(0)", "00:00:00.400000"),
    ],
)
def test_a_table_that_does_not_keep_the_rows_is_refused(rows, empty_fonte, make_pool, statement, moment):
    pool = make_pool(empty_fonte)
    with pool.begin() as connection:
        schema.create_absent(connection)
        connection.exec_driver_sql(statement)
    before = rows()
    said = rf"did not keep the row of 2024-01-01 {moment}\+00:00 as sent: look for a trigger, a child table or a type"
    with pytest.raises(seeding.UnfitTable, match=said), pool.begin() as connection:
        seeding.merge(connection, [offered({f"2024-01-01 {moment}": (1.0, 2.0)})])
    assert rows() == before


def test_a_trigger_that_keeps_the_rows_prevents_nothing(rows, empty_fonte, make_pool):
    with make_pool(empty_fonte).begin() as connection:
        schema.create_absent(connection)
        connection.exec_driver_sql(RETURNS_NULL.format("INSERT").replace("RETURN NULL", "RETURN NEW"))
        assert seeding.merge(connection, [offered(MINUTES), offered(MINUTES)]) == (3, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("timestamp", "time without time zone"), ("timestamp", "date"), ("power", "money"), ("wind_speed", "oid")],
)
def test_a_type_that_holds_no_timestamp_or_number_is_refused(empty_fonte, make_pool, name, kind):
    kinds = {"timestamp": "timestamptz", "wind_speed": "real", "power": "real", "ambient_temperature": "real"}
    columns = ", ".join(f"{each} {its}" for each, its in {**kinds, name: kind}.items())
    using = f"{name}::timestamptz" if kind == "date" else "..."
    with make_pool(empty_fonte).begin() as connection:
        connection.execute(text(f"CREATE TABLE data ({columns}, UNIQUE (timestamp))"))
        said = schema.obstacle_to_rows(connection)
    assert said.startswith(f"its column {name} is of type {kind}; as its owner: ")
    assert f"ALTER TABLE data ALTER {name} TYPE " in said
    assert said.endswith(f" USING {using}")


def test_rows_of_one_timestamp_are_merged_unless_they_contradict(rows, empty_fonte, make_pool):
    first, again = {"2024-01-01 00:00": (1.0, None)}, {"2024-01-01 00:00": (None, 5.0)}
    pool = make_pool(empty_fonte)
    with pool.begin() as connection:
        schema.create_absent(connection)
        assert seeding.merge(connection, [offered(first), offered(again), offered(again)]) == (1, 0, 0, 0)
    assert rows("SELECT wind_speed, power FROM data") == [(1.0, 5.0)]
    other = {"2024-01-01 00:00": (None, 6.0)}
    with pytest.raises(seeding.Contradiction, match="a.csv: two rows for 2024-01-01 00:00"), pool.begin() as connection:
        seeding.merge(connection, [offered(again), offered(other)], "a.csv", replace=True)
    assert rows("SELECT wind_speed, power FROM data") == [(1.0, 5.0)]


def test_a_long_seed_of_an_existing_table_blocks_no_other_writer(rows, empty_fonte, make_pool):
    pool = make_pool(empty_fonte)
    with pool.begin() as connection:
        assert schema.create_absent(connection)
    with pool.begin() as long, pool.begin() as other:
        assert not schema.create_absent(long)
        other.execute(text("SET LOCAL lock_timeout = '1s'"))
        assert not schema.create_absent(other)


def test_of_two_first_seeds_the_second_finds_the_table_of_the_first(rows, empty_fonte, make_pool):
    pool, created = make_pool(empty_fonte), []

    def create():
        with pool.begin() as connection:
            created.append(schema.create_absent(connection))

    waiting = "SELECT count(*) = 1 FROM pg_locks JOIN pg_database ON pg_database.oid = database WHERE NOT granted"
    with pool.begin() as first:
        assert schema.create_absent(first)
        second = threading.Thread(target=create)
        second.start()
        wait_until(lambda: rows(f"{waiting} AND datname = current_database()") == [(True,)])
    second.join()
    assert created == [False]


def test_a_table_of_the_user_named_incoming_stays_as_it_is(rows, empty_fonte, make_pool, administrator):
    with administrator.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {empty_fonte.database} SET search_path = public, pg_temp"))
    with make_pool(empty_fonte).begin() as connection:
        connection.execute(text("CREATE TABLE incoming AS SELECT 'theirs' AS note"))
    assert seed.main(["--days", "1"]) == 0
    assert rows("SELECT count(*) FROM data") == [(1440,)]
    assert rows("SELECT note FROM incoming") == [("theirs",)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--days", "0"], "argument --days: 0 from 2024-05-20 on: expected 1 to "),
        (["--days", "ten"], "argument --days: invalid int value: 'ten'"),
        (["--start", "20.05.2024"], "'20.05.2024' is not a date: expected YYYY-MM-DD"),
        (["--random-seed", "-1"], "argument --random-seed: -1: expected 0 or more"),
        (["--profile", "storm"], "'storm'"),
        (["--start", "9999-12-30", "--days", "2"], "expected 1 to 1;"),
        (["--start", "9999-12-31"], "argument --start: 9999-12-31: expected 9999-12-30 or earlier;"),
        (["--missing", "-999"], "argument --missing: belongs to --csv FILE"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, said, capsys, empty_fonte):
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(seed.main(arguments))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_printed_period_is_utc_in_any_time_zone_of_the_server(administrator, empty_fonte, capsys):
    with administrator.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {empty_fonte.database} SET timezone = 'America/Sao_Paulo'"))
    assert seed.main(["--days", "1"]) == 0
    assert "from 2024-05-20 00:00 UTC to 2024-05-20 23:59 UTC" in capsys.readouterr().out
    assert seed.main(["--start", "0001-01-01", "--days", "1"]) == 0
    assert seed.main(["--start", "9999-12-30", "--days", "1"]) == 0


def test_an_unreachable_database_is_exit_code_3_without_the_password(monkeypatch, capsys, refused_port):
    monkeypatch.setenv("FONTE_DATABASE_URL", f"postgresql://u:secret@127.0.0.1:{refused_port}/x")
    assert seed.main([]) == 3
    error = capsys.readouterr().err
    assert "refused" in error
    assert "secret" not in error
    assert error.count("\n") == 1


def test_the_table_refuses_an_infinite_timestamp(rows, empty_fonte, make_pool):
    seed.main(["--days", "1"])
    with make_pool(empty_fonte).begin() as connection, pytest.raises(DBAPIError, match="check constraint"):
        connection.execute(text("INSERT INTO data (timestamp) VALUES ('infinity')"))


def test_a_long_seed_shows_progress_on_a_terminal_only(rows, capsys, monkeypatch):
    seed.main(["--days", "61"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    seed.main(["--days", "61"])
    error = capsys.readouterr().err
    assert "60/61" in error
    assert "61/61" in error


class Minutes:
    """Replaces Event: each wait advances the clock by a minute; after so many minutes it is set."""

    def __init__(self, clock, minutes):
        self.clock, self.minutes = clock, minutes

    def wait(self, timeout):
        assert 0 < timeout <= 60
        self.clock.moment += timedelta(minutes=1)
        self.minutes -= 1
        return self.minutes < 0


@pytest.fixture
def clock(monkeypatch):
    """The current time for seeding, which a test can set."""

    class Clock(datetime):
        moment = datetime(2026, 3, 9, 12, 30, 17, tzinfo=UTC)

        @classmethod
        def now(cls, zone=None):
            return cls.moment.astimezone(zone)

    monkeypatch.setattr(seeding, "datetime", Clock)
    return Clock


@pytest.mark.parametrize(
    ("last", "first_written"),
    [
        (None, datetime(2026, 2, 27, 12, 30, tzinfo=UTC)),
        (datetime(2024, 5, 29, 23, 59, tzinfo=UTC), datetime(2026, 2, 27, 12, 30, tzinfo=UTC)),
        (datetime(2026, 3, 9, 12, 10, tzinfo=UTC), datetime(2026, 3, 9, 12, 11, tzinfo=UTC)),
        (datetime(2026, 3, 9, 12, 30, tzinfo=UTC), datetime(2026, 3, 9, 12, 31, tzinfo=UTC)),
    ],
)
def test_a_live_turbine_fills_to_now_and_then_adds_each_minute(
    rows, empty_fonte, make_pool, clock, last, first_written
):
    pool = make_pool(empty_fonte)
    with pool.begin() as connection:
        schema.create_absent(connection)
        if last:
            connection.execute(text("INSERT INTO data (timestamp) VALUES (:last)"), {"last": last})
    written = sum(merged.inserted for merged in seeding.live(pool, "turbine", 7, Minutes(clock, 2)))
    end = datetime(2026, 3, 9, 12, 33, tzinfo=UTC)
    held = {timestamp: values for timestamp, *values in map(tuple, rows()) if timestamp != last}
    assert len(held) == written == (end - first_written) // timedelta(minutes=1)
    days = (end.date() - first_written.date()).days + 1
    minutes, columns = synthetic.minutes(first_written.date(), days), synthetic.turbine(first_written.date(), days, 7)
    made = dict(zip(minutes.tolist(), zip(*(values.tolist() for values in columns.values()), strict=True), strict=True))
    assert held == {
        moment.replace(tzinfo=UTC): list(values)
        for moment, values in made.items()
        if first_written <= moment.replace(tzinfo=UTC) < end
    }


def test_a_live_turbine_fills_a_table_whose_timestamps_have_no_zone(empty_fonte, make_pool, clock, rows):
    pool = make_pool(empty_fonte)
    with pool.begin() as connection:
        schema.create_absent(connection)
        connection.execute(text("ALTER TABLE data DROP CONSTRAINT data_timestamp_has_four_digit_year"))
        connection.execute(text("ALTER TABLE data ALTER timestamp TYPE timestamp"))
        connection.execute(text("INSERT INTO data (timestamp) VALUES ('2026-03-09 12:10')"))
    assert [merged.inserted for merged in seeding.live(pool, "turbine", 7, Minutes(clock, 1))] == [20, 1]


def test_seed_live_writes_only_live_minutes(rows, monkeypatch, clock):
    monkeypatch.setattr(seed, "Event", lambda: Minutes(clock, 1))
    assert seed.main(["--live"]) == 0
    assert rows("SELECT count(*), min(timestamp)::date FROM data") == [(14402, date(2026, 2, 27))]


def test_seed_live_reports_its_rows_until_it_is_interrupted(rows, empty_fonte, folder):
    environment = {**bare(folder), "FONTE_DATABASE_URL": empty_fonte.render_as_string(hide_password=False)}
    line = [sys.executable, "seed.py", "--live"]
    with subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as live:
        assert live.stdout.readline().startswith(b"14,401 rows inserted, 0 were there already")
        assert live.stdout.readline().startswith(b"Fonte holds 14,401 rows from ")
        interrupt(live)
        assert live.wait(timeout=60) == 130
    assert len(rows()) == 14401


def test_a_live_connector_keeps_the_embedded_fonte_filled_to_now(tmp_path, monkeypatch, alvo, capsys):
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path / "home"))
    with local.base_url(live=True) as base_url:
        period = httpx.get(f"{base_url}/period").json()
        monkeypatch.setenv("FONTE_API_URL", base_url)
        for word, days_ago in (("today", 0), ("yesterday", 1)):
            for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
                assert etl.main([word, "--timezone", zone]) == 0
                day = datetime.now(ZoneInfo(zone)).date() - timedelta(days=days_ago)
                assert capsys.readouterr().out.startswith(f"{day} {zone}")
    first, last = (datetime.fromisoformat(period[f"{end}_timestamp"]) for end in ("first", "last"))
    assert last - first == timedelta(days=10)
    assert datetime.now(UTC) - last < timedelta(minutes=2)
    assert period["rows"] == 14401


def test_a_live_turbine_that_stops_is_reported_on_one_line(tmp_path, monkeypatch, capsys):
    def breaking(*_):
        yield "the first minutes"
        raise DBAPIError("INSERT", {}, Exception("the disk is full"))

    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(seeding, "live", breaking)
    said = []
    with local.base_url(live=True):
        wait_until(lambda: said.append(capsys.readouterr().err) or any(said))
    assert "".join(said) == "fonte: no minute is written any more: the disk is full\n"


@pytest.mark.parametrize("name", ["ALLOWED_ORIGINS", "ALLOWED_HOSTS", "ADMIN_TOKEN"])
def test_a_setting_that_stops_a_connector_is_named_before_it_starts(monkeypatch, alvo, fonte, capsys, name):
    """Its own process would report it; here its thread ends, and the client would only find nobody there."""
    for variable in ("DATABASE_URL", "ADMIN_DATABASE_URL"):
        monkeypatch.setenv(f"FONTE_{variable}", fonte.render_as_string(hide_password=False))
    monkeypatch.setenv(f"FONTE_{name}", "!?")
    assert etl.main(["2024-05-20"]) == 2
    assert re.fullmatch(rf"etl\.py: FONTE_{name} .*: expected .*\n", capsys.readouterr().err)


def test_an_interrupted_command_does_not_wait_for_a_query_of_its_connector(fonte, alvo, fonte_pool, folder):
    """Otherwise the lock, or the time limit for locks, would end it."""
    urls = {"FONTE_DATABASE_URL": fonte, "ALVO_DATABASE_URL": alvo}
    shown = {name: url.render_as_string(hide_password=False) for name, url in urls.items()}
    line = [sys.executable, "etl.py", "2024-05-20"]
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'data'::regclass")
    with fonte_pool.begin() as connection:
        connection.execute(text("LOCK TABLE data"))
        process = subprocess.Popen(line, cwd=folder, env=bare(folder) | shown, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: connection.scalar(waiting) == 1)
        interrupt(process)
        _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "etl.py: interrupted; nothing is left half done\n")
