"""Every operation of a day fails, in every way: Alvo holds the old day or the new one, whole, and no exit code lies.

The faults are enumerated, not imagined: the first operation fails, then the second, until a run ends before the fault
strikes. `--faults all` takes every kind, faults that last, and all pairs; a plain run takes each operation once.
"""

import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import NamedTuple

import httpx
import pytest
from sqlalchemy import text

import etl
from alvo import schema
from postgres import engine
from tests.conftest import connector_over, external
from tests.faults import NETWORK, HttpLink, PostgresLink, Script, proxied

DAY = "2024-05-20"
OLD_DAY, NO_TABLES = "old day", "no tables"
# The connections of etl.py itself, and those of the connector, which has one in its pool or has to connect.
COMMAND, POOLED, CONNECTING = "etl.py", "connector, pooled", "connector, connecting"
BACKEND = ("terminate before", "terminate after")
RUNS = 3
PATIENCE_S = 10
OLD_VALUES = [
    "CREATE SCHEMA old",
    "CREATE TABLE old.signal AS SELECT * FROM signal WHERE name <> 'power_std'",
    "INSERT INTO old.signal VALUES (100, 'power_count'), (101, 'ambient_temperature_mean')",
    """CREATE TABLE old.data AS
        SELECT timestamp, signal_id, value + (extract(hour FROM timestamp) >= 20)::integer AS value
        FROM data JOIN old.signal ON signal.id = signal_id WHERE extract(hour FROM timestamp) >= 4""",
    """INSERT INTO old.data SELECT timestamp + days * '1 day'::interval, signal_id, value
        FROM old.data, (VALUES (-1), (1)) AS other (days)""",
    """INSERT INTO old.data SELECT DISTINCT timestamp, signal.id, 1
        FROM data, old.signal WHERE signal.id >= 100""",
]
engine_create = engine.create


class Plan(NamedTuple):
    """What is enumerated: faults of these kinds, in turn, at every operation of a side, from a state of Alvo."""

    side: str
    start: str
    kinds: tuple[str, ...]
    lasting: bool = False
    pairs: bool = False

    def __str__(self):
        mode = "pairs of " * self.pairs + "lasting " * self.lasting
        return f"{self.side}, {self.start}: {mode}{', '.join(self.kinds)}"


STARTS = [(COMMAND, OLD_DAY), (COMMAND, NO_TABLES), (POOLED, OLD_DAY), (CONNECTING, OLD_DAY)]
SAMPLE = [Plan(*start, (*NETWORK, *BACKEND)) for start in STARTS]
ALL = [
    *(Plan(*start, (kind,), lasting) for start in STARTS for kind in (*NETWORK, *BACKEND) for lasting in (False, True)),
    *(Plan(*start, NETWORK, pairs=True) for start in STARTS),
]


def pytest_generate_tests(metafunc):
    if "plan" in metafunc.fixturenames:
        plans = ALL if metafunc.config.getoption("--faults") == "all" else SAMPLE
        metafunc.parametrize("plan", plans, ids=map(str, plans))


class World:
    """Fonte, its connector and Alvo, with a proxy before each, and the day as it was and as it has to become."""

    def __init__(self, stack, fonte, alvo):
        self.pool = engine.create(alvo, "test")
        stack.callback(self.pool.dispose)
        self.command, self.connector = Script(), Script()
        self.fonte_proxy = stack.enter_context(
            proxied(partial(PostgresLink, "Fonte", self.connector), fonte.host, fonte.port)
        )
        behind = fonte.set(host="127.0.0.1", port=self.fonte_proxy.port)
        self.base_url = httpx.URL(stack.enter_context(connector_over(behind)))
        http_proxy = stack.enter_context(
            proxied(partial(HttpLink, "connector", self.command), self.base_url.host, self.base_url.port)
        )
        alvo_proxy = stack.enter_context(proxied(partial(PostgresLink, "Alvo", self.command), alvo.host, alvo.port))
        self.environment = external(
            f"http://127.0.0.1:{http_proxy.port}", alvo.set(host="127.0.0.1", port=alvo_proxy.port)
        )
        self.fonte_pool = engine.create(fonte, "test")
        stack.callback(self.fonte_pool.dispose)
        self.command.actions["terminate"] = partial(terminate, self.pool)
        self.connector.actions["terminate"] = partial(terminate, self.fonte_pool)
        self.old, self.new = {}, {}
        self._make_old_day()

    def _make_old_day(self):
        """An older day that lacks values and a signal, holds others and stale ones; and what no run may touch."""
        assert self.run() == 0
        with self.pool.begin() as connection:
            for statement in OLD_VALUES:
                connection.execute(text(statement))
        for start in (NO_TABLES, OLD_DAY):
            self.prepare(start)
            self.old[start] = self.held()
            assert self.run() == 0
            self.new[start] = self.held()
        old, new = set(self.old[OLD_DAY]), set(self.new[OLD_DAY])
        assert set(self.new[NO_TABLES]) < new
        assert all(map(len, (old & new, old - new, new - old)))

    def prepare(self, start):
        with self.pool.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            connection.execute(text("DROP TABLE IF EXISTS data, signal"))
            if start == OLD_DAY:
                schema.metadata.create_all(connection)
                connection.execute(text("INSERT INTO signal OVERRIDING SYSTEM VALUE TABLE old.signal"))
                connection.execute(text("INSERT INTO data TABLE old.data"))
                connection.execute(text("SELECT setval(pg_get_serial_sequence('signal', 'id'), 200)"))

    def prepare_connector(self, side):
        """Let the connector have a connection in its pool, or find that those are gone."""
        httpx.get(f"{self.base_url}/health").raise_for_status()
        patiently(self.fonte_pool, "application_name = 'fonte connector' AND state <> 'idle'")
        if side == CONNECTING:
            self.fonte_proxy.cut()

    def run(self):
        """Run the day in this process; gives its exit code. Its engines are disposed of, as at a process's end."""
        made = []

        def create(*arguments, **options):
            made.append(engine_create(*arguments, **options))
            return made[-1]

        with pytest.MonkeyPatch.context() as patch:
            for name in ("FONTE_API_URL", "ALVO_DATABASE_URL"):
                patch.setenv(name, self.environment[name])
            patch.setattr(engine, "create", create)
            try:
                return etl.main([DAY])
            finally:
                for pool in made:
                    pool.dispose()

    def held(self):
        """What Alvo holds; None where there are no tables."""
        with self.pool.connect() as connection:
            if connection.scalar(text("SELECT to_regclass('data')")) is None:
                return None
            query = "SELECT timestamp, name, value FROM data JOIN signal ON signal.id = signal_id ORDER BY 1, 2"
            return connection.execute(text(query)).all()


def terminate(pool, backend):
    with pool.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})


def patiently(pool, condition):
    """How many connections to this database meet a condition, once they have had time not to."""
    query = text(f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {condition}")
    until = time.monotonic() + PATIENCE_S
    with pool.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while (found := connection.scalar(query)) and time.monotonic() < until:
            pass
    return found


@pytest.fixture(scope="module")
def world(make_database, seeded_template):
    with ExitStack() as stack:
        yield World(stack, make_database(seeded_template), make_database())


@pytest.fixture(scope="module")
def tally(request):
    """Counts what was injected, and tells it at the end."""
    counted = Counter()
    yield counted
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    reporter.ensure_newline()
    for what, number in sorted(counted.items()):
        reporter.write_line(f"faults: {number:6,} {what}")


def suffer(world, capfd, plan, faults):
    """Run the day with these faults, again where it fails; gives what struck, and what was wrong."""
    script = world.command if plan.side == COMMAND else world.connector
    old, new = world.old[plan.start], world.new[plan.start]
    world.prepare(plan.start)
    if plan.side != COMMAND:
        world.prepare_connector(plan.side)
    script.begin(faults, plan.lasting)
    wrong = []
    for _ in range(RUNS if plan.pairs else 1):
        earlier = len(script.struck)
        capfd.readouterr()
        code = world.run()
        wrong += judged(code, capfd.readouterr().err, world.held(), old, new, script.struck[earlier:])
        if code == 0:
            break
    script.heal()
    if left := patiently(world.pool, "application_name = 'etl.py'"):
        wrong.append(f"{left} connections stay behind")
    if world.run() != 0 or world.held() != new or capfd.readouterr().err:
        wrong.append("the next run is not right")
    return script.struck, wrong


def judged(code, said, held, old, new, struck):
    """What is wrong with a run's exit code, with what it said, and with what Alvo holds after it."""
    wrong = []
    if held not in (old, new):
        wrong.append("Alvo holds neither the old day nor the new one")
    if code == 0 and held != new:
        wrong.append("exit code 0 without the new day")
    last = struck[-1] if struck else ""
    if code not in {0, 4 if " Alvo " in last else 3 if last else 0}:
        wrong.append(f"exit code {code}")
    if code != 0 and held == new != old and not (" after " in last and last.endswith(" COMMIT")):
        wrong.append(f"exit code {code} with the new day")
    if said.count("\n") != (code != 0) or not said.startswith("etl.py: " * (code != 0)) or "already closed" in said:
        wrong.append(f"it said {said!r}")
    return wrong


def kind_at(plan, *numbers):
    """The kind whose turn it is, at an operation, or after an earlier one."""
    return plan.kinds[sum(numbers) % len(plan.kinds)]


def enumerated(plan, suffered):
    """Suffer case after case, until none strikes any more."""
    for first in count(1):
        faults = {first: kind_at(plan, first)}
        if plan.pairs:
            seconds = count(first + 1)
            while suffered(faults | {(second := next(seconds)): kind_at(plan, first, second)}) == 2:
                pass
        if suffered(faults) == 0:
            return


def test_no_fault_leaves_half_a_day_or_a_wrong_exit_code(world, tally, capfd, plan):
    all_wrong = []

    def suffered(faults):
        struck, wrong = suffer(world, capfd, plan, faults)
        all_wrong.extend((struck, what) for what in wrong)
        tally["cases"] += 1
        tally.update(" ".join(fault.split()[:2]) for fault in struck)
        return len(struck)

    enumerated(plan, suffered)
    assert all_wrong == []


@pytest.mark.parametrize("label", ["COPY incoming (timestamp, signal_id, val", "CopyData", "CopyDone"])
def test_a_backend_that_ends_within_a_copy_is_told_on_one_line(world, capfd, label):
    world.prepare(OLD_DAY)
    world.command.begin({})
    assert world.run() == 0
    number = world.command.operations.index(f"Alvo {label}") + 1
    for when in ("before", "after"):
        struck, wrong = suffer(world, capfd, Plan(COMMAND, OLD_DAY, ()), {number: f"terminate {when}"})
        assert (len(struck), wrong) == (1, [])
