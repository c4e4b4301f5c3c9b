import math
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from alvo import load as loading
from alvo.load import Report, replace_period
from fonte_alvo import engine

START = datetime(2024, 5, 20, tzinfo=UTC)
DAY = timedelta(days=1)
END = START + DAY
WINDOWS = np.datetime64("2024-05-20", "us") + np.arange(144) * np.timedelta64(600_000_000, "us")


def values(pool):
    """What a connection of its own reads: {(timestamp, name): value}."""
    with pool.connect() as connection:
        rows = connection.execute(text("SELECT timestamp, name, value FROM data JOIN signal ON signal.id = signal_id"))
        return {(timestamp, name): value for timestamp, name, value in rows}


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
    assert values(alvo_pool) == expected(signals)
    assert load(alvo_pool, **signals) == Report(written=0, unchanged=288, removed=0)
    assert values(alvo_pool) == expected(signals)


def test_an_unchanged_row_is_not_even_touched(alvo_pool):
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


def test_stale_rows_go_and_other_signals_and_days_stay(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144), wind_speed_mean=np.ones(144))
    replace_period(
        alvo_pool, END, END + timedelta(days=1), WINDOWS + np.timedelta64(1, "D"), {"power_mean": np.ones(144)}
    )
    assert load(alvo_pool, last=140, power_mean=np.r_[np.full(100, 1.0), np.full(40, 2.0)]) == Report(40, 100, 4)
    held = values(alvo_pool)
    assert sum(name == "wind_speed_mean" for _, name in held) == 144
    assert sum(name == "power_mean" and moment >= END for moment, name in held) == 144
    assert sum(name == "power_mean" and moment < END for moment, name in held) == 140


def test_what_is_not_finite_gives_no_row_and_takes_the_old_one_away(alvo_pool):
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
def test_any_sequence_of_loads_leaves_what_the_last_one_gave(alvo_pool, days):
    held = values(alvo_pool) if days and _tables_exist(alvo_pool) else {}
    for day in days:
        column = np.array([math.nan if value is None else value for value in day])
        before, wanted = held, expected({"v_mean": np.r_[column, np.full(138, math.nan)]})
        report = load(alvo_pool, last=6, v_mean=column)
        held = values(alvo_pool)
        assert held == wanted
        unchanged = sum(before.get(key) == value for key, value in wanted.items())
        assert report == Report(len(wanted) - unchanged, unchanged, len(before.keys() - wanted.keys()))


def _tables_exist(pool):
    with pool.connect() as connection:
        return connection.scalar(text("SELECT to_regclass('data') IS NOT NULL"))


def test_every_double_is_stored_unchanged(alvo_pool):
    column = np.array([0.1, 5e-324, 1.7976931348623157e308, -1 / 3, 1e22, 123456789.12345679])
    load(alvo_pool, last=6, v_mean=column)
    assert [value for _, value in sorted(values(alvo_pool).items())] == column.tolist()


def test_two_loads_of_one_day_at_once_end_with_one_whole_day(alvo, make_pool):
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
    held = values(pools[0])
    assert len(set(held.values())) == 1
    assert len(held) == 144 - next(iter(held.values()))


def test_a_load_of_the_same_day_waits_and_one_of_another_day_does_not(alvo, make_pool, monkeypatch):
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
        # The site's local day shares hours with the UTC day that is held; any period may share one alone.
        for shift in (timedelta(), timedelta(hours=3), timedelta(hours=-3), timedelta(hours=-23)):
            with pytest.raises(DBAPIError, match="lock timeout"):
                replace_period(second, START + shift, END + shift, WINDOWS[:0], {"power_mean": np.ones(0)})


def test_a_load_waits_for_no_day_but_its_own(alvo, make_pool, monkeypatch):
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


def test_where_this_machine_is_does_not_move_a_load(alvo_pool, monkeypatch):
    monkeypatch.setenv("TZ", "America/Sao_Paulo")
    time.tzset()
    try:
        assert load(alvo_pool, power_mean=np.ones(144)) == Report(144, 0, 0)
    finally:
        monkeypatch.undo()
        time.tzset()


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
def test_what_was_loaded_is_recorded_and_found_only_where_it_is_what_is_asked(alvo_pool, records, asked, found):
    assert recorded(alvo_pool, **asked) == ABSENT
    load_recorded(alvo_pool, *records)
    assert recorded(alvo_pool, **asked) == found


def test_a_period_that_is_not_over_is_recorded_as_incomplete(alvo_pool):
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
        (lambda pool: delete(pool, "DELETE FROM data"), ABSENT),
        (
            lambda pool: delete(pool, "DELETE FROM data USING signal WHERE id = signal_id AND name = 'power_std'"),
            LOADED,
        ),
    ],
    ids=["overlap", "another variable", "the day after", "no record", "all rows gone", "some rows gone"],
)
def test_a_record_never_outlives_its_rows(alvo_pool, change, found):
    load_recorded(alvo_pool, record())
    change(alvo_pool)
    assert recorded(alvo_pool) == found


def delete(pool, statement):
    with pool.begin() as connection:
        connection.execute(text(statement))


def test_a_variable_without_samples_is_loaded_too(alvo_pool):
    load_recorded(alvo_pool, record(samples=0), held=0)
    assert recorded(alvo_pool) == INCOMPLETE


def test_forgetting_takes_every_record_that_overlaps(alvo_pool):
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


def test_what_was_written_is_what_alvo_counts(alvo_pool):
    load(alvo_pool, last=1, other_mean=[1.0])
    delete(alvo_pool, TRIGGER)
    assert load(alvo_pool, power_mean=np.ones(144)) == (24, 0, 0)
    assert load(alvo_pool, power_mean=np.ones(144)) == (0, 24, 0)
    assert load(alvo_pool, power_mean=np.full(144, 2.0)) == (24, 0, 0)


def test_a_table_with_more_columns_than_ours_is_loaded_again_and_again(alvo_pool):
    load(alvo_pool, last=1, other_mean=[1.0])
    delete(alvo_pool, "ALTER TABLE data ADD loaded_at timestamptz NOT NULL DEFAULT now(), ADD id serial")
    assert load(alvo_pool, power_mean=np.ones(144)) == (144, 0, 0)
    assert load(alvo_pool, power_mean=np.full(144, 2.0)) == (144, 0, 0)


def test_tables_of_an_earlier_version_get_what_they_lack(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144))
    delete(alvo_pool, "DROP TABLE load; DROP INDEX data_by_time")
    assert recorded(alvo_pool) == ABSENT
    load_recorded(alvo_pool, record())
    assert recorded(alvo_pool) == LOADED
    with alvo_pool.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('data_by_time')")) == "data_by_time"


def test_queries_by_time_alone_have_an_index_that_costs_next_to_nothing(alvo_pool):
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
            seen.append(frozenset(values(reader).values()))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(1, 20):
        load(writer, power_mean=np.full(144, float(number)))
    stop.set()
    thread.join()
    assert all(len(distinct) == 1 for distinct in seen)


def test_a_load_that_fails_leaves_the_old_day(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144))
    before = values(alvo_pool)
    misaligned = WINDOWS + np.timedelta64(1, "s")
    with pytest.raises(DBAPIError, match="data_on_window"):
        replace_period(
            alvo_pool,
            START,
            END + timedelta(seconds=1),
            misaligned,
            {"power_mean": np.zeros(144), "new_mean": np.zeros(144)},
        )
    assert values(alvo_pool) == before
    with alvo_pool.connect() as connection:
        assert connection.scalars(text("SELECT name FROM signal")).all() == ["power_mean"]


@pytest.mark.parametrize("statement", ["COPY incoming", "INSERT INTO data"])
def test_a_connection_killed_in_the_middle_leaves_the_old_day(alvo, make_pool, administrator, statement, monkeypatch):
    from alvo import load as module

    pool = make_pool(alvo)
    load(pool, power_mean=np.ones(144))
    before = values(pool)

    def kill():
        with administrator.connect() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :d"), {"d": alvo.database}
            )

    original = module.copy.copy_in

    def copy_in(*arguments):
        if statement == "COPY incoming":
            kill()
        original(*arguments)
        kill()

    monkeypatch.setattr(module.copy, "copy_in", copy_in)
    with pytest.raises(Exception, match="terminating connection|closed"):
        load(pool, power_mean=np.zeros(144))
    monkeypatch.undo()
    assert values(make_pool(alvo)) == before
    assert load(make_pool(alvo), power_mean=np.zeros(144)) == Report(144, 0, 0)


def test_the_tables_hold_exactly_the_columns_of_the_brief_and_their_checks(alvo_pool):
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


def test_a_load_takes_few_statements(alvo_pool):
    load(alvo_pool, power_mean=np.ones(144))
    statements = []
    event.listen(alvo_pool, "before_cursor_execute", lambda *arguments: statements.append(arguments[2].split()[0]))
    load(alvo_pool, power_mean=np.zeros(144))
    assert statements == ["SELECT", "SELECT", "SELECT", "CREATE", "WITH", "WITH"]


def plan(connection, statement, parameters):
    return "\n".join(connection.execute(text(f"EXPLAIN {statement}"), parameters).scalars())


def test_a_day_and_a_period_of_a_signal_are_ranges_of_the_primary_key(alvo_pool):
    """With a year of eight signals, so that reading the whole table would be dear."""
    with alvo_pool.begin() as connection:
        loading.schema.create_absent(connection)
        connection.execute(text("INSERT INTO signal (name) SELECT 's' || number FROM generate_series(1, 8) AS number"))
        connection.execute(
            text("""
                INSERT INTO data SELECT moment, id, 1 FROM signal,
                    generate_series('2023-01-01Z', '2023-12-31 23:50Z'::timestamptz, '10 minutes') AS moment
            """)
        )
        connection.execute(text("ANALYZE data"))
        connection.execute(text("CREATE TEMP TABLE incoming (LIKE data)"))
        day = {"start": datetime(2023, 5, 20, tzinfo=UTC), "end": datetime(2023, 5, 21, tzinfo=UTC)}
        replaced = plan(connection, loading._REPLACE.text, day | {"signal_ids": [1, 2, 3, 4]})
        looked_up = plan(connection, loading._SIGNALS.text, day | {"names": ["s1", "s2"]})
        read = plan(
            connection,
            "SELECT timestamp, value FROM data WHERE signal_id = 3 AND timestamp >= :start AND timestamp < :end",
            day,
        )
    for found in (replaced, looked_up, read):
        assert "data_pkey" in found
        assert "Seq Scan on data" not in found


def test_the_foreign_key_stays_on_and_validated(alvo_pool):
    load(alvo_pool, power_mean=np.arange(144.0))
    with alvo_pool.connect() as connection:
        constraint = text("SELECT convalidated FROM pg_constraint WHERE conrelid = 'data'::regclass AND contype = 'f'")
        assert connection.execute(constraint).scalars().all() == [True]
        assert connection.scalar(
            text("SELECT bool_and(tgenabled = 'O') FROM pg_trigger WHERE tgrelid = 'data'::regclass")
        )
