"""Loads: the rows and records that Alvo holds after them, also after concurrent and failed ones."""

import math
import re
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from support.project import alvo_values, fill_year, machine_in, plans, terminate

from alvo import load as loading
from alvo.load import Report, replace_period
from fonte_alvo import engine

START = datetime(2024, 5, 20, tzinfo=UTC)
DAY = timedelta(days=1)
END = START + DAY
WINDOWS = np.datetime64("2024-05-20", "us") + np.arange(144) * np.timedelta64(600_000_000, "us")


def load(pool, first=0, last=144, **signals):
    return replace_period(
        pool, START, END, WINDOWS[first:last], {name: np.asarray(v, float) for name, v in signals.items()}
    )


def expected(signals):
    return {
        (moment.replace(tzinfo=UTC), name): value
        for name, column in signals.items()
        for moment, value in zip(WINDOWS.tolist(), column, strict=True)
        if math.isfinite(value)
    }


def test_a_day_is_loaded_and_a_rerun_changes_nothing(alvo_pool):
    signals = {"power_mean": np.arange(144.0), "power_std": np.full(144, 0.1)}
    assert load(alvo_pool, **signals) == Report(written=288, unchanged=0, removed=0)
    assert alvo_values(alvo_pool) == expected(signals)
    assert load(alvo_pool, **signals) == Report(written=0, unchanged=288, removed=0)
    assert alvo_values(alvo_pool) == expected(signals)


def test_an_unchanged_row_is_not_rewritten(alvo_pool):
    load(alvo_pool, power_mean=np.arange(144.0))
    query = text("SELECT timestamp, ctid::text, xmin::text, xmax::text FROM data ORDER BY 1")
    with alvo_pool.connect() as connection:
        before = connection.execute(query).all()
    changed = np.arange(144.0)
    changed[7] = -1
    assert load(alvo_pool, power_mean=changed) == Report(1, 143, 0)
    with alvo_pool.connect() as connection:
        after = connection.execute(query).all()
    assert [i for i in range(144) if before[i] != after[i]] == [7]


def test_stale_rows_are_removed_and_other_signals_and_days_stay(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144), wind_speed_mean=np.ones(144))
    replace_period(
        alvo_pool, END, END + timedelta(days=1), WINDOWS + np.timedelta64(1, "D"), {"power_mean": np.ones(144)}
    )
    assert load(alvo_pool, last=140, power_mean=np.r_[np.full(100, 1.0), np.full(40, 2.0)]) == Report(40, 100, 4)
    held = alvo_values(alvo_pool)
    assert sum(name == "wind_speed_mean" for _, name in held) == 144
    assert sum(name == "power_mean" and moment >= END for moment, name in held) == 144
    assert sum(name == "power_mean" and moment < END for moment, name in held) == 140


def test_a_value_that_is_not_finite_removes_the_old_row(alvo_pool):
    load(alvo_pool, power_std=np.ones(144))
    values_now = np.ones(144)
    values_now[:3] = math.nan, math.inf, -math.inf
    assert load(alvo_pool, power_std=values_now) == Report(0, 141, 3)
    assert load(alvo_pool, power_std=np.full(144, math.nan)) == Report(0, 0, 141)


@pytest.mark.parametrize("moment", [START - timedelta(minutes=10), END])
def test_a_window_outside_the_period_is_refused(alvo_pool, moment):
    windows = np.array([moment.replace(tzinfo=None)], dtype="datetime64[us]")
    with pytest.raises(ValueError, match="outside the period"):
        replace_period(alvo_pool, START, END, windows, {"power_mean": np.ones(1)})


@settings(max_examples=settings.default.max_examples // 3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    days=st.lists(
        st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=6, max_size=6), max_size=5
    )
)
@example(days=[[0.1, 5e-324, 1.7976931348623157e308, -1 / 3, 1e22, 123456789.12345679]])
def test_after_any_sequence_of_loads_alvo_holds_the_last_one(alvo_pool, days):
    held = alvo_values(alvo_pool) or {}
    for day in days:
        column = np.array([math.nan if value is None else value for value in day])
        before, wanted = held, expected({"v_mean": np.r_[column, np.full(138, math.nan)]})
        report = load(alvo_pool, last=6, v_mean=column)
        held = alvo_values(alvo_pool)
        assert held == wanted
        unchanged = sum(before.get(key) == value for key, value in wanted.items())
        assert report == Report(len(wanted) - unchanged, unchanged, len(before.keys() - wanted.keys()))


def test_concurrent_loads_of_a_day_end_with_one_whole_day(alvo, make_pool):
    pools = [make_pool(alvo), make_pool(alvo)]
    barrier = threading.Barrier(2)
    failures = []

    def run(number):
        try:
            for _ in range(10):
                barrier.wait()
                load(pools[number], power_mean=np.full(144 - number, float(number)), last=144 - number)
        except Exception as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    held = alvo_values(pools[0])
    assert len(set(held.values())) == 1
    assert len(held) == 144 - next(iter(held.values()))


def test_a_load_waits_for_a_load_that_shares_its_day(alvo, make_pool, monkeypatch):
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.05)
    first, second = make_pool(alvo), make_pool(alvo)
    load(first, power_mean=np.ones(144))
    with first.begin() as holder:
        holder.execute(
            text("SELECT pg_advisory_xact_lock(hashtext('alvo.load'), :day)"), {"day": int(START.timestamp()) // 86400}
        )
        replace_period(
            second, END, END + timedelta(days=1), WINDOWS + np.timedelta64(1, "D"), {"power_mean": np.ones(144)}
        )
        # A local day shares hours with the locked UTC day; these periods share some or all of it.
        for shift in (timedelta(), timedelta(hours=3), timedelta(hours=-3), timedelta(hours=-23)):
            with pytest.raises(DBAPIError, match="lock timeout"):
                replace_period(second, START + shift, END + shift, WINDOWS[:0], {"power_mean": np.ones(0)})


def test_a_load_waits_for_no_other_day(alvo, make_pool, monkeypatch):
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.05)
    first, second = make_pool(alvo), make_pool(alvo)
    load(first, power_mean=np.ones(144))
    with first.begin() as holder:
        for day in (int(START.timestamp()) // 86400 - 1, int(END.timestamp()) // 86400):
            holder.execute(text("SELECT pg_advisory_xact_lock(hashtext('alvo.load'), :day)"), {"day": day})
        assert load(second, power_mean=np.ones(144)) == Report(0, 144, 0)


def test_loads_of_a_day_before_1970_wait_for_each_other_too(alvo, make_pool, monkeypatch):
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.05)
    first, second = make_pool(alvo), make_pool(alvo)
    start, end = datetime(1969, 12, 30, 12, tzinfo=UTC), datetime(1969, 12, 31, 12, tzinfo=UTC)
    with first.begin() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(hashtext('alvo.load'), -2)"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            replace_period(second, start, end, WINDOWS[:0], {"power_mean": np.ones(0)})


def test_the_time_zone_of_the_machine_does_not_shift_a_load(alvo_pool):
    with machine_in("America/Sao_Paulo"):
        assert load(alvo_pool, power_mean=np.ones(144)) == Report(144, 0, 0)


def record(variable="power", statistics=("mean", "std"), samples=1440, expected=1440):
    return loading.Record(variable, statistics, samples, expected)


def load_recorded(pool, *records, start=START, end=END, held=1):
    """Load a period with a value of every signal that the records name, and with these records."""
    starts = np.array([np.datetime64(start.replace(tzinfo=None), "us")])
    signals = {f"{each.variable}_{s}": np.full(1, 1.0 if held else np.nan) for each in records for s in each.statistics}
    replace_period(pool, start, end, starts, signals, records)


def recorded(pool, variables=("power",), statistics=("mean", "std"), start=START, end=END):
    return tuple(loading.recorded(pool, [(start, end)], variables, statistics)[0])


LOADED, INCOMPLETE, ABSENT = (True, False), (True, True), (False, False)


@pytest.mark.parametrize(
    ("records", "asked", "found"),
    [
        ([record()], {}, LOADED),
        ([record(statistics=("mean",))], {}, ABSENT),
        ([record()], {"statistics": ("mean",)}, LOADED),
        ([record()], {"variables": ("power", "wind_speed")}, ABSENT),
        ([record(), record("wind_speed")], {"variables": ("power", "wind_speed")}, LOADED),
        ([record(samples=1439)], {}, INCOMPLETE),
        ([record(), record("wind_speed", samples=7)], {"variables": ("power", "wind_speed")}, INCOMPLETE),
        ([record("power_factor")], {}, ABSENT),
        ([record()], {"end": END + timedelta(hours=3)}, ABSENT),
        ([record()], {"start": START + timedelta(hours=3), "end": END + timedelta(hours=3)}, ABSENT),
    ],
)
def test_a_record_is_found_only_for_its_period_variables_and_statistics(alvo_pool, records, asked, found):
    assert recorded(alvo_pool, **asked) == ABSENT
    load_recorded(alvo_pool, *records)
    assert recorded(alvo_pool, **asked) == found


def test_an_unfinished_period_is_recorded_as_incomplete(alvo_pool):
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    load_recorded(alvo_pool, record(), start=today, end=today + DAY)
    assert recorded(alvo_pool, start=today, end=today + DAY) == (False, True)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda pool: load_recorded(pool, record(), start=START + DAY / 2, end=END + DAY / 2), ABSENT),
        (lambda pool: load_recorded(pool, record("wind_speed"), start=START + DAY / 2, end=END + DAY / 2), LOADED),
        (lambda pool: load_recorded(pool, record(), start=END, end=END + DAY), LOADED),
        (lambda pool: load(pool, power_mean=np.ones(144)), ABSENT),
        (lambda pool: execute(pool, "DELETE FROM data"), ABSENT),
        (
            lambda pool: execute(pool, "DELETE FROM data USING signal WHERE id = signal_id AND name = 'power_std'"),
            LOADED,
        ),
    ],
    ids=["overlap", "another variable", "the day after", "no record", "all rows gone", "some rows gone"],
)
def test_a_record_never_outlives_its_rows(alvo_pool, change, found):
    load_recorded(alvo_pool, record())
    change(alvo_pool)
    assert recorded(alvo_pool) == found


def execute(pool, statement):
    with pool.begin() as connection:
        connection.execute(text(statement))


def test_a_variable_without_samples_is_recorded_as_loaded(alvo_pool):
    load_recorded(alvo_pool, record(samples=0), held=0)
    assert recorded(alvo_pool) == INCOMPLETE


def test_periods_are_counted_once_whatever_their_variables(alvo_pool):
    load_recorded(alvo_pool, record(), record("wind_speed"))
    load_recorded(alvo_pool, record(), start=END, end=END + DAY)
    assert loading.recorded_periods(alvo_pool) == 2
    execute(alvo_pool, "DELETE FROM load")
    assert loading.recorded_periods(alvo_pool) == 0


def test_forget_removes_every_overlapping_record(alvo_pool):
    load_recorded(alvo_pool, record(), record("wind_speed"))
    with alvo_pool.begin() as connection:
        loading.forget(connection, END, END + DAY)
    assert recorded(alvo_pool) == LOADED
    with alvo_pool.begin() as connection:
        loading.forget(connection, "-infinity", START + DAY / 24)
    assert recorded(alvo_pool) == recorded(alvo_pool, ["wind_speed"]) == ABSENT


TRIGGER = """
    CREATE FUNCTION drop_some() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF extract(minute FROM NEW.timestamp) = 0 THEN RETURN NEW; END IF; RETURN NULL; END $$;
    CREATE TRIGGER drops BEFORE INSERT OR UPDATE ON data FOR EACH ROW EXECUTE FUNCTION drop_some()
"""


def test_the_report_counts_the_rows_that_alvo_wrote(alvo_pool):
    load(alvo_pool, last=1, other_mean=[1.0])
    execute(alvo_pool, TRIGGER)
    assert load(alvo_pool, power_mean=np.ones(144)) == (24, 0, 0)
    assert load(alvo_pool, power_mean=np.ones(144)) == (0, 24, 0)
    assert load(alvo_pool, power_mean=np.full(144, 2.0)) == (24, 0, 0)


def test_tables_of_an_earlier_version_are_completed(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144))
    execute(alvo_pool, "DROP TABLE load; DROP INDEX data_by_time")
    assert recorded(alvo_pool) == ABSENT
    load_recorded(alvo_pool, record())
    assert recorded(alvo_pool) == LOADED
    with alvo_pool.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('data_by_time')")) == "data_by_time"


def foreign(pool, **types):
    """Make tables that this project did not make, with other types of some columns."""
    types = {"timestamp": "timestamptz", "signal_id": "integer", "value": "float8", "id": "integer"} | types
    key = "PRIMARY KEY (signal_id, timestamp)"
    execute(pool, "CREATE DOMAIN speed AS float8 CHECK (VALUE >= 0); CREATE DOMAIN counted AS bigint")
    execute(pool, "CREATE TABLE signal (id {id} GENERATED BY DEFAULT AS IDENTITY, name text UNIQUE)".format(**types))
    columns = ", ".join(f"{name} {types[name]} NOT NULL" for name in ("signal_id", "value", "timestamp"))
    execute(pool, f"CREATE TABLE data ({columns}, note text, {key}); ALTER TABLE data DROP note")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("timestamp", "timestamptz(0)"),
        ("timestamp", "timestamp"),
        ("value", "speed"),
        ("id", "bigint"),
        ("id", "smallint"),
    ],
)
def test_tables_of_other_types_that_hold_the_same_values_are_loaded(alvo_pool, column, kind):
    foreign(alvo_pool, **{column: kind})
    for value in (1.5, 1.5, 0.1):
        load(alvo_pool, power_mean=np.full(144, value))
        with alvo_pool.connect() as connection:
            held = text("SELECT timestamp::timestamptz, 'power_mean', value FROM data ORDER BY 1")
            rows = connection.execute(held).all()
        assert {(moment, name): v for moment, name, v in rows} == expected({"power_mean": np.full(144, value)})


# PostgreSQL has no cast from the other types.
MENDED = {
    "value": ("bigint", "integer", "smallint", "numeric", "numeric(9,2)", "real", "counted", "text"),
    "signal_id": ("bigint", "smallint", "numeric", "text"),
    "timestamp": ("date", "text"),
}
REFUSED = {
    "value": (*MENDED["value"], "money", "boolean", "float8[]"),
    "signal_id": MENDED["signal_id"],
    "timestamp": (*MENDED["timestamp"], "bigint", "time"),
}
EXPECTED = {"timestamp": "timestamp with time zone", "signal_id": "integer", "value": "double precision"}


@pytest.mark.parametrize(("column", "kind"), [(column, kind) for column, kinds in REFUSED.items() for kind in kinds])
def test_a_column_of_another_type_is_refused_with_the_statement_that_mends_it(alvo_pool, column, kind):
    foreign(alvo_pool, **{column: kind})
    base = {"counted": "bigint"}.get(kind, kind)
    with alvo_pool.connect() as connection:
        named = connection.scalar(text(f"SELECT format_type('{base}'::regtype, NULL)"))
    zone = "SET timezone = 'UTC'; " * (column == "timestamp")
    mend = f"{zone}ALTER TABLE data ALTER {column} TYPE {EXPECTED[column]} USING {column}::{EXPECTED[column]}"
    said = f"Alvo failed: its column data.{column} is {named}, not {EXPECTED[column]}; as its owner: {mend}"
    with pytest.raises(engine.DatabaseError, match=f"^{re.escape(said)}$"):
        load_recorded(alvo_pool, record())
    with alvo_pool.connect() as connection:
        assert connection.execute(text("SELECT name FROM signal UNION ALL SELECT value::text FROM data")).all() == []
        assert connection.scalar(text("SELECT to_regclass('load')")) is None
    if kind in MENDED[column]:
        execute(alvo_pool, mend)
        assert load(alvo_pool, power_mean=np.full(144, 0.1)) == Report(144, 0, 0)


@pytest.mark.parametrize("key", ["", ", UNIQUE (turbine, name)", ", EXCLUDE (name WITH =)"])
def test_signals_whose_names_may_repeat_are_refused(alvo_pool, key):
    """Two loads at once would each make the signal, and another turbine's values could be overwritten."""
    execute(alvo_pool, f"CREATE TABLE signal (id serial PRIMARY KEY, name text, turbine text DEFAULT 'T1'{key})")
    execute(alvo_pool, "INSERT INTO signal (name, turbine) VALUES ('power_mean', 'T2')")
    mend = "ALTER TABLE signal ADD UNIQUE (name)"
    with pytest.raises(
        engine.DatabaseError, match=f"^{re.escape(f'Alvo failed: name is no key of signal; as its owner: {mend}')}$"
    ):
        load(alvo_pool, power_mean=np.ones(144))
    execute(alvo_pool, mend)
    assert load(alvo_pool, power_mean=np.ones(144)) == Report(144, 0, 0)


@pytest.mark.parametrize("kind", ["text", "varchar(40)", "char(40)"])
def test_a_name_of_another_type_of_text_is_found_again(alvo_pool, kind):
    execute(alvo_pool, f"CREATE TABLE signal (id serial PRIMARY KEY, name {kind} UNIQUE)")
    assert [load(alvo_pool, power_mean=np.ones(144)).written for _ in range(2)] == [144, 0]


def test_a_view_of_signals_is_taken_as_it_is(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144))
    execute(alvo_pool, "ALTER TABLE signal RENAME TO kept; CREATE VIEW signal AS SELECT id, name FROM kept")
    assert load(alvo_pool, power_mean=np.zeros(144), power_max=np.ones(144)) == Report(288, 0, 0)


def test_a_table_load_of_somebody_else_is_named(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144))
    execute(alvo_pool, "DROP TABLE load; CREATE TABLE load AS SELECT 'theirs' AS note")
    said = "Alvo failed: its table load has no column period_start, so it is not Alvo's: correct ALVO_DATABASE_URL"
    with pytest.raises(engine.DatabaseError, match=f"^{re.escape(said)}$"):
        load(alvo_pool, power_mean=np.zeros(144))


def test_the_types_cost_no_extra_statement(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144))
    statements = []
    event.listen(alvo_pool, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    load(alvo_pool, power_mean=np.ones(144))
    assert sum("pg_attribute" in each for each in statements) == 1
    assert len(statements) == 6


def test_a_table_of_the_user_named_incoming_stays_as_it_is(alvo, alvo_pool, administrator):
    with administrator.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {alvo.database} SET search_path = public, pg_temp"))
    execute(alvo_pool, "CREATE TABLE incoming AS SELECT 'theirs' AS note")
    assert [load(alvo_pool, power_mean=np.ones(144)).written for _ in range(2)] == [144, 0]
    with alvo_pool.connect() as connection:
        assert connection.scalar(text("SELECT note FROM incoming")) == "theirs"


def test_a_brin_index_serves_queries_by_time_alone(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144))
    with alvo_pool.connect() as connection:
        defined = connection.scalar(text("SELECT indexdef FROM pg_indexes WHERE indexname = 'data_by_time'"))
    assert defined.endswith('ON public.data USING brin ("timestamp")')


def test_a_reader_never_sees_half_a_day(alvo, make_pool):
    writer, reader = make_pool(alvo), make_pool(alvo)
    load(writer, power_mean=np.zeros(144))
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append(frozenset(alvo_values(reader).values()))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(1, 20):
        load(writer, power_mean=np.full(144, float(number)))
    stop.set()
    thread.join()
    assert all(len(distinct) == 1 for distinct in seen)


def test_a_load_that_fails_leaves_the_old_day(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144))
    before = alvo_values(alvo_pool)
    misaligned = WINDOWS + np.timedelta64(1, "s")
    with pytest.raises(DBAPIError, match="data_on_window"):
        replace_period(
            alvo_pool,
            START,
            END + timedelta(seconds=1),
            misaligned,
            {"power_mean": np.zeros(144), "new_mean": np.zeros(144)},
        )
    assert alvo_values(alvo_pool) == before
    with alvo_pool.connect() as connection:
        assert connection.scalars(text("SELECT name FROM signal")).all() == ["power_mean"]


@pytest.mark.parametrize("statement", ["COPY incoming", "INSERT INTO data"])
def test_a_connection_killed_during_a_load_leaves_the_old_day(alvo, make_pool, administrator, statement, monkeypatch):
    pool = make_pool(alvo)
    load(pool, power_mean=np.ones(144))
    before = alvo_values(pool)

    original = loading.copy.copy_in

    def copy_in(*arguments):
        with administrator.connect() as connection:
            if statement == "COPY incoming":
                terminate(connection, alvo.database)
            original(*arguments)
            terminate(connection, alvo.database)

    monkeypatch.setattr(loading.copy, "copy_in", copy_in)
    with pytest.raises(Exception, match="terminating connection|closed"):
        load(pool, power_mean=np.zeros(144))
    monkeypatch.undo()
    assert alvo_values(make_pool(alvo)) == before
    assert load(make_pool(alvo), power_mean=np.zeros(144)) == Report(144, 0, 0)


def test_the_tables_have_exactly_the_columns_and_checks_of_the_brief(alvo_pool):
    load(alvo_pool, last=1, power_mean=[1.0])
    with alvo_pool.connect() as connection:
        columns = connection.execute(
            text("""SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns
                WHERE table_schema = 'public' ORDER BY table_name, ordinal_position""")
        ).all()
        assert columns == [
            ("data", "timestamp", "timestamp with time zone", "NO"),
            ("data", "signal_id", "integer", "NO"),
            ("data", "value", "double precision", "NO"),
            ("load", "period_start", "timestamp with time zone", "NO"),
            ("load", "period_end", "timestamp with time zone", "NO"),
            ("load", "variable", "text", "NO"),
            ("load", "statistics", "ARRAY", "NO"),
            ("load", "samples", "integer", "NO"),
            ("load", "expected", "integer", "NO"),
            ("load", "finished_at", "timestamp with time zone", "NO"),
            ("signal", "id", "integer", "NO"),
            ("signal", "name", "text", "NO"),
        ]
    for row in (
        "'2024-05-20 00:01Z', 1, 1",
        "'2024-05-20 00:10Z', 1, 'NaN'",
        "'2024-05-20 00:10Z', 99, 1",
        "'2024-05-20 00:00Z', 1, 1",
    ):
        with alvo_pool.begin() as connection, pytest.raises(DBAPIError, match="constraint"):
            connection.execute(text(f"INSERT INTO data VALUES ({row})"))


def test_a_load_reads_its_day_through_the_primary_key(alvo_pool):
    with alvo_pool.begin() as connection:
        fill_year(connection)
    found = plans(alvo_pool)
    start = datetime(2023, 5, 20, tzinfo=UTC)
    signals = {f"s{number}": np.zeros(144) for number in range(1, 5)}
    report = replace_period(alvo_pool, start, start + DAY, WINDOWS - np.timedelta64(366, "D"), signals)
    assert report == Report(4 * 144, 0, 0)
    assert len(found) == 2
    for plan in found:
        assert "data_pkey" in plan
        assert "Seq Scan on data" not in plan


def test_the_foreign_key_stays_on_and_validated(alvo_pool):
    load(alvo_pool, power_mean=np.arange(144.0))
    with alvo_pool.connect() as connection:
        constraint = text("SELECT convalidated FROM pg_constraint WHERE conrelid = 'data'::regclass AND contype = 'f'")
        assert connection.execute(constraint).scalars().all() == [True]
        assert connection.scalar(
            text("SELECT bool_and(tgenabled = 'O') FROM pg_trigger WHERE tgrelid = 'data'::regclass")
        )
