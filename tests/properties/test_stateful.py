"""After any sequence of events in Fonte, the connector and Alvo, Alvo holds the same as a model in plain Python.

Both databases are real PostgreSQL, the connector is called over HTTP, and the command runs in this process.
"""

import io
import math
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import combinations, pairwise, permutations, takewhile
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from sqlalchemy import Engine, event, text
from sqlalchemy.dialects.postgresql import insert
from support import reference
from support.faulty import answering, http
from support.project import alvo_values, connector_over

import etl
from alvo import load, schema
from alvo.aggregation import ALL_STATISTICS, aggregate
from alvo.load import Report
from fonte import arrow, client
from fonte import schema as fonte_schema
from fonte.client import FonteError
from fonte_alvo import engine
from orchestration import day
from orchestration.day import Day, EmptyPeriod, run

DAYS = [date(2024, 5, 20), date(2024, 5, 21), date(2024, 5, 22)]
COLUMNS = ["wind_speed", "power", "ambient_temperature"]
WINDOW = timedelta(minutes=10)
FAILED, LOST, EMPTY = 3, 4, 5

choices = st.sampled_from([None, "--resume", "--incomplete"])
# The days per request, and the days loaded at once.
numbers_of_days = st.tuples(st.integers(1, 3), st.integers(1, 3))
values = st.floats(-1000, 1000) | st.sampled_from(
    [None, math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, 5e-324, 1e16]
)
rows = st.fixed_dictionaries(dict.fromkeys(COLUMNS, values))
# Few windows, so that rows share them: around midnight in both zones, and at noon.
moments = st.builds(
    lambda day, at, minute: datetime.combine(day, time(*at), UTC) + timedelta(minutes=minute),
    st.sampled_from(DAYS),
    st.sampled_from([(0, 0), (2, 50), (3, 0), (12, 0), (23, 50)]),
    st.integers(0, 9),
)


class Job(NamedTuple):
    """The arguments of the command: the days from first to last in a time zone."""

    first: date
    last: date
    zone: str
    columns: list[str]
    statistics: list[str]

    def periods(self):
        for ordinal in range(self.first.toordinal(), self.last.toordinal() + 1):
            midnights = [
                datetime.combine(date.fromordinal(day), time(), ZoneInfo(self.zone)) for day in (ordinal, ordinal + 1)
            ]
            yield tuple(midnight.astimezone(UTC) for midnight in midnights)

    def arguments(self):
        dates = [str(self.first)] if self.first == self.last else [str(self.first), str(self.last)]
        return [*dates, "--timezone", self.zone, "--columns", *self.columns, "--statistics", *self.statistics]


def jobs(*, one_day=False):
    def some_of(names):
        return st.lists(st.sampled_from(names), min_size=1, unique=True)

    days = [(day, day) for day in DAYS] + [(DAYS[0], DAYS[1]), (DAYS[1], DAYS[2]), (DAYS[0], DAYS[2])] * (not one_day)
    zones = st.sampled_from(["UTC", "America/Sao_Paulo"])
    asked = st.tuples(st.sampled_from(days), zones, some_of(COLUMNS), some_of(ALL_STATISTICS))
    return asked.map(lambda job: Job(*job[0], *job[1:]))


@cache
def statistics_of(window: tuple[float, ...]) -> dict[str, float]:
    """The statistics of a window: exact, except std, which may be one ulp off."""
    timestamps = np.datetime64(0, "us") + np.arange(len(window)) * np.timedelta64(60_000_000, "us")
    _, computed = aggregate(timestamps, {"v": np.array(window)}, statistics=ALL_STATISTICS)
    std = computed["v_std"][0].item()
    mean = reference.as_double(reference.mean(list(window)))
    exact = {"mean": mean, "min": min(window), "max": max(window), "count": float(len(window))}
    if len(window) > 1:
        assert reference.error_ulp(std, reference.std(list(window))) <= 1
        exact["std"] = std
    return {name: value for name, value in exact.items() if math.isfinite(value)}


def inside(held, period, columns=COLUMNS):
    """The values of these columns in a period."""
    start, end = period
    names = {f"{column}_{statistic}" for column in columns for statistic in ALL_STATISTICS}
    return {key: value for key, value in held.items() if start <= key[0] < end and key[1] in names}


class World(NamedTuple):
    """The connector and the databases, which all examples share; each example empties them first."""

    connector: str
    fonte: Engine
    writer: Engine
    reader: Engine
    administrator: Engine

    def held(self):
        return alvo_values(self.reader) or {}

    def records(self):
        """The rows of the table load: (start, end, variable) to statistics, samples and expected samples."""
        with self.reader.connect() as connection:
            if connection.scalar(text("SELECT to_regclass('load')")) is None:
                return {}
            columns = "period_start, period_end, variable, statistics, samples, expected"
            rows = connection.execute(text(f"SELECT {columns} FROM load")).all()
        return {tuple(row[:3]): (frozenset(row[3]), *row[4:]) for row in rows}


@pytest.fixture
def world(make_database, make_pool, administrator, alvo, monkeypatch) -> Iterator[World]:
    fonte = make_database()
    with connector_over(fonte) as connector:
        monkeypatch.setenv("FONTE_API_URL", connector)
        yield World(connector, make_pool(fonte), make_pool(alvo), make_pool(alvo), administrator)


class Machine(RuleBasedStateMachine):
    """The model: Fonte's rows by moment, Alvo's values by window and signal."""

    def __init__(self, world: World):
        super().__init__()
        self.world = world
        self.fonte: dict[datetime, dict[str, float | None]] = {}
        self.alvo: dict[tuple[datetime, str], float] = {}
        self.records: dict[tuple[datetime, datetime, str], tuple[frozenset[str], int, int]] = {}

    @initialize(tables_exist=st.booleans(), first=st.dictionaries(moments, rows, min_size=5, max_size=20))
    def begin(self, tables_exist, first):
        with self.world.fonte.begin() as connection:
            fonte_schema.create_absent(connection)
            connection.execute(text("TRUNCATE data"))
        with self.world.writer.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS data, signal, load"))
            if tables_exist:
                schema.create_absent(connection)
        self.rows_arrive_or_are_corrected(first)

    @invariant()
    def alvo_equals_the_model(self):
        assert self.world.held() == self.alvo
        assert self.world.records() == self.records

    # The model of a run.

    def carried(self, held, period, columns, statistics):
        """Alvo's values after a run of a period, and the report; None if Fonte has no finite sample."""
        windows = defaultdict(list)
        for moment in sorted(self.fonte):
            for column in columns if period[0] <= moment < period[1] else []:
                value = self.fonte[moment][column]
                if value is not None and math.isfinite(value):
                    windows[moment.replace(minute=moment.minute // 10 * 10), column].append(value)
        if not windows:
            return None
        wanted = {
            (window, f"{column}_{name}"): value
            for (window, column), samples in windows.items()
            for name, value in statistics_of(tuple(samples)).items()
            if name in statistics
        }
        before = inside(held, period, columns)
        unchanged = sum(before.get(key) == value for key, value in wanted.items())
        report = Report(len(wanted) - unchanged, unchanged, len(before.keys() - wanted.keys()))
        return {key: value for key, value in held.items() if key not in before} | wanted, report

    def recorded(self, records, period, columns, statistics):
        """The records after a run of a period."""
        start, end = period
        moments = sorted(moment for moment in self.fonte if start <= moment < end)
        steps = Counter(later - earlier for earlier, later in pairwise(moments))
        interval = min(steps, key=lambda step: (-steps[step], step), default=timedelta(minutes=1))
        if len(moments) <= 12 and interval > timedelta(minutes=10):
            interval = timedelta(minutes=1)
        values = {column: [self.fonte[moment][column] for moment in moments] for column in columns}
        samples = {c: sum(v is not None and math.isfinite(v) for v in held) for c, held in values.items()}
        expected = max((end - start) // interval, *samples.values())
        kept = {
            key: record
            for key, record in records.items()
            if not (key[0] < end and key[1] > start and key[2] in columns)
        }
        return kept | {(start, end, column): (frozenset(statistics), samples[column], expected) for column in columns}

    def days_to_run(self, job, choice):
        """The days of a job that still run with --resume or --incomplete."""

        def loaded(period, column):
            names, samples, _ = self.records.get((*period, column), (frozenset(), 0, 0))
            return names >= {*job.statistics} and (samples == 0 or bool(inside(self.alvo, period, [column])))

        def incomplete(period, column):
            _, samples, expected = self.records.get((*period, column), ((), 0, 0))
            return samples < expected

        if choice == "--resume":
            return [each for each in job.periods() if not all(loaded(each, column) for column in job.columns)]
        if choice == "--incomplete":
            return [each for each in job.periods() if any(incomplete(each, column) for column in job.columns)]
        return list(job.periods())

    def after(self, state, job, periods):
        """The values and records after these days of a job, the exit code, and the sum of the reports."""
        (held, records), reports, code = state, [Report(0, 0, 0)], 0
        for period in periods:
            if (result := self.carried(held, period, job.columns, job.statistics)) is None:
                code = EMPTY
            else:
                held, records = result[0], self.recorded(records, period, job.columns, job.statistics)
                reports.append(result[1])
        return (held, records), code, Report(*map(sum, zip(*reports, strict=True)))

    def run_in_the_model(self, job, choice=None):
        """Run a job in the model; return the exit code and the sum of the reports."""
        state, code, report = self.after((self.alvo, self.records), job, self.days_to_run(job, choice))
        self.alvo, self.records = state
        return code, report

    def options(self, numbers, choice):
        per_request, at_once = map(str, numbers)
        return ["--days-per-request", per_request, "--days-at-once", at_once, *filter(None, [choice])]

    def run(self, job, *options):
        """Run the command; return its exit code and the changes that it reports."""
        with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
            code = etl.main([*job.arguments(), *options])
        said = errors.getvalue().splitlines()
        assert bool(said) == (code != 0)
        assert all(line.startswith("etl.py: ") for line in said)
        reports = re.findall(r"([\d,]+) values? written, ([\d,]+) unchanged, ([\d,]+) removed", output.getvalue())
        return code, Report(*(int(number.replace(",", "")) for number in reports[-1])) if reports else Report(0, 0, 0)

    # Events in Fonte.

    @rule(new=st.dictionaries(moments, rows, min_size=1, max_size=8))
    def rows_arrive_or_are_corrected(self, new):
        upsert = insert(fonte_schema.data)
        upsert = upsert.on_conflict_do_update(
            index_elements=["timestamp"], set_={name: upsert.excluded[name] for name in COLUMNS}
        )
        with self.world.fonte.begin() as connection:
            connection.execute(upsert, [{"timestamp": moment} | row for moment, row in new.items()])
        self.fonte |= new

    @precondition(lambda self: self.fonte)
    @rule(data=st.data(), values=rows)
    def a_row_is_corrected(self, data, values):
        self.rows_arrive_or_are_corrected({data.draw(st.sampled_from(sorted(self.fonte))): values})

    @precondition(lambda self: self.fonte)
    @rule(data=st.data())
    def rows_are_deleted(self, data):
        self._delete(data.draw(st.sets(st.sampled_from(sorted(self.fonte)), min_size=1)))

    @rule(day=st.sampled_from(DAYS))
    def a_day_is_deleted(self, day):
        self._delete({moment for moment in self.fonte if moment.date() == day})

    def _delete(self, gone):
        with self.world.fonte.begin() as connection:
            connection.execute(text("DELETE FROM data WHERE timestamp = ANY(:gone)"), {"gone": list(gone)})
        self.fonte = {moment: row for moment, row in self.fonte.items() if moment not in gone}

    # Runs, and events in Alvo and on the way.

    @rule(job=jobs(), numbers=numbers_of_days, choice=choices)
    def days_are_run(self, job, numbers, choice):
        options = self.options(numbers, choice)
        assert self.run(job, *options) == self.run_in_the_model(job, choice)

    @rule(job=jobs(one_day=True))
    def a_day_is_run_twice(self, job):
        code, first = self.run(job)
        assert (code, first) == self.run_in_the_model(job)
        assert self.run(job) == (code, Report(0, first.written + first.unchanged, 0))

    @rule(job=jobs(), numbers=numbers_of_days, choice=choices, operation=st.integers(0, 30))
    def a_run_loses_its_connection(self, job, numbers, choice, operation):
        """Whenever the connection is lost, every day and its record are wholly old or wholly new."""
        before, periods = (self.alvo, self.records), self.days_to_run(job, choice)
        done = [
            [each for each in periods if each in some]
            for n in range(len(periods) + 1)
            for some in combinations(periods, n)
        ]
        states = [self.after(before, job, some)[0] for some in done]

        def whole():
            held = self.world.held()
            assert any(held == values for values, _ in states)
            return held

        options = self.options(numbers, choice)
        with self._losing_the_connection_at(operation, whole) as lost:
            code, _ = self.run(job, *options)
        held = self.world.held(), self.world.records()
        assert held in states
        if code == 0 or not lost:
            assert held == states[-1]
        self.alvo, self.records = held
        assert code in ((0, EMPTY, LOST) if lost else (0, EMPTY))

    @rule(job=jobs(), numbers=numbers_of_days, bad_day=st.sampled_from(DAYS))
    def a_run_meets_a_day_that_cannot_be_fetched(self, job, numbers, bad_day):
        """All days before it are loaded, even those of the same request, and none after it."""
        noon, periods = datetime.combine(bad_day, time(12), UTC), list(job.periods())
        before = list(takewhile(lambda period: not period[0] <= noon < period[1], periods))

        def fetch(base_url, start, end, *others):
            if start <= noon < end:
                raise FonteError("it fails")
            return client.fetch(base_url, start, end, *others)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(day, "fetch", fetch)
            code, report = self.run(job, *self.options(numbers, None))
        state, expected, wanted = self.after((self.alvo, self.records), job, before)
        # A failure matters more than an empty day before it.
        assert (code, report) == (expected if before == periods else FAILED, wanted)
        assert (self.world.held(), self.world.records()) == state
        self.alvo, self.records = state

    @rule(bounds=st.lists(moments, min_size=2, max_size=2, unique=True).map(sorted))
    def a_period_of_alvo_is_deleted(self, bounds):
        """Delete as the route DELETE /data does."""
        start, end = bounds
        with self.world.writer.begin() as connection:
            if connection.scalar(text("SELECT to_regclass('data')")) is None:
                return
            query = text("DELETE FROM data WHERE timestamp >= :start AND timestamp < :end")
            connection.execute(query, {"start": start, "end": end})
            load.forget(connection, start, end)
        self.alvo = {key: value for key, value in self.alvo.items() if not start <= key[0] < end}
        self.records = {key: record for key, record in self.records.items() if not (key[0] < end and key[1] > start)}

    @contextmanager
    def _losing_the_connection_at(self, operation, look):
        """Call look and terminate the connection's server process at the operation of this number."""
        lost: list[int] = []
        counted = iter(range(10_000))
        create, copy_in = engine.create, load.copy.copy_in

        def perhaps_lose(connection, *_):
            if next(counted) == operation:
                look()
                lost.append(connection.connection.driver_connection.info.backend_pid)
                with self.world.administrator.connect() as administration:
                    administration.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": lost[0]})

        def create_watched(*arguments: Any, **options: Any) -> Engine:
            pool = create(*arguments, **options)
            for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
                event.listen(pool, name, perhaps_lose)
            return pool

        def copy_in_watched(connection, *arguments):
            perhaps_lose(connection)
            taken = copy_in(connection, *arguments)
            perhaps_lose(connection)
            return taken

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "create", create_watched)
            patch.setattr(load.copy, "copy_in", copy_in_watched)
            yield lost

    @rule(
        job=jobs(one_day=True),
        cut=st.floats(0, 1, exclude_max=True),
        times=st.sampled_from([1, 4, 5]),
        announced=st.booleans(),
    )
    def an_answer_is_cut(self, job, cut, times, announced):
        """A cut that HTTP reports is retried; any other cut answer is refused."""
        (period,) = job.periods()
        bounds = {"start_timestamp": period[0].isoformat(), "end_timestamp": period[1].isoformat()}
        body = httpx.get(
            f"{self.world.connector}/data",
            params=bounds | {"columns": job.columns},
            headers={"Accept": arrow.MEDIA_TYPE},
        ).content
        part = body[: int(cut * len(body))]
        broken = http(body=part, content_type=arrow.MEDIA_TYPE, length=len(body) if announced else len(part))
        result = self.carried(self.alvo, period, job.columns, job.statistics)
        with (
            answering(*[broken] * times, http(body=body, content_type=arrow.MEDIA_TYPE)) as server,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(client, "PATIENCE_S", 60.0)
            patch.setattr(client.Client, "pause", lambda self, pause_s: False)
            if announced and result:
                self.alvo, report = result
                self.records = self.recorded(self.records, period, job.columns, job.statistics)
                assert self._carry(job, server.url).report == report
            else:
                with pytest.raises((FonteError, EmptyPeriod)):
                    self._carry(job, server.url)

    def _carry(self, job, url=None):
        (period,) = job.periods()
        with client.connect(url or self.world.connector) as fonte:
            return run(fonte, self.world.writer, Day(job.first, job.zone, *period), job.columns, job.statistics)

    @rule(job=jobs(one_day=True), others=st.data())
    def two_days_are_run_at_once(self, job, others):
        """The days may be equal or overlap; the result equals running them one after the other, in some order."""
        pair = [job, others.draw(st.just(job) | jobs(one_day=True))]
        outcomes, seen = self._at_once(pair)
        serial = []
        for order in permutations(range(2)):
            states, reports = [(self.alvo, self.records)], {}
            for number in order:
                state, code, report = self.after(states[-1], pair[number], pair[number].periods())
                states.append(state)
                reports[number] = None if code == EMPTY else report
            serial.append((states, [reports[0], reports[1]]))
        held = self.world.held(), self.world.records()
        assert any(held == states[-1] and outcomes == reports for states, reports in serial)
        assert all(any(snapshot == values for states, _ in serial for values, _ in states) for snapshot in seen)
        self.alvo, self.records = held

    def _at_once(self, pair):
        """Run two jobs and read meanwhile; return their reports, None for an empty day, and all that was read."""
        results = [self.carried({}, next(job.periods()), job.columns, job.statistics) for job in pair]
        # The run of an empty day never reaches the barrier.
        barrier = threading.Barrier(max(1, 2 - results.count(None)), timeout=60)

        def replace_together(*arguments):
            barrier.wait()
            return load.replace_period(*arguments)

        def carry(job):
            try:
                return self._carry(job).report
            except EmptyPeriod:
                return None

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as threads:
            patch.setattr(day, "replace_period", replace_together)
            running = [threads.submit(carry, job) for job in pair]
            seen = []
            while not all(future.done() for future in running):
                seen.append(self.world.held())
            return [future.result() for future in running], seen


def test_alvo_equals_the_model_after_any_sequence_of_events(world):
    examples = max(1, settings.default.max_examples // 10)
    run_machine(lambda: Machine(world), settings=settings(max_examples=examples))
