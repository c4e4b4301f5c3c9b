"""Every operation of a day fails in every way: Alvo holds the whole old or new day, and the exit code is right.

The tests enumerate the faults: the first operation fails, then the second, until a run ends before the fault strikes.
`--faults all` takes every kind, lasting faults and all pairs; by default each operation fails once.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import NamedTuple

import httpx
import psutil
import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from support.faults import HANG, NETWORK, HttpLink, PostgresLink, Script, proxied
from support.fixtures import INJECTED
from support.project import SCRIPTS, connector_over, external

import etl
from alvo import schema
from fonte import client
from fonte_alvo import embedded, engine

DAY = "2024-05-20"
OLD_DAY, NO_TABLES = "old day", "no tables"
# The side with the fault: etl.py, the connector with a pooled connection, or the connector while it connects.
COMMAND, POOLED, CONNECTING = "etl.py", "connector, pooled", "connector, connecting"
TERMINATE = ("terminate before", "terminate after")
KILL_RUN = ("kill-run before", "kill-run after")
# These take the whole server down, so they use a separate one. Only root can give it a full disk.
DISK = ("fill-disk before",) if os.geteuid() == 0 else ()
CRASH = ("kill-backend before", "kill-backend after", "limit-files before", *DISK)
DISK_MIB = 160
RUNS = 3
HANG_S = 1.0
PATIENCE_S = 20
OLD_VALUES = [
    "CREATE SCHEMA old",
    "CREATE TABLE old.signal AS SELECT * FROM signal WHERE name <> 'power_std'",
    "INSERT INTO old.signal VALUES (100, 'power_count'), (101, 'ambient_temperature_mean')",
    """CREATE TABLE old.data AS
        SELECT timestamp, signal_id, value + (extract(hour FROM timestamp) >= 20)::integer AS value
        FROM data JOIN old.signal ON signal.id = signal_id WHERE extract(hour FROM timestamp) >= 4""",
    """INSERT INTO old.data SELECT timestamp + days * '1 day'::interval, signal_id, value
        FROM old.data, (VALUES (-1), (1)) AS other (days) WHERE signal_id = 1""",
    "INSERT INTO old.data SELECT DISTINCT timestamp, signal.id, 1 FROM data, old.signal WHERE signal.id >= 100",
]
HELD = """
    SELECT md5(string_agg(concat_ws(' ', timestamp, name, value), ',' ORDER BY timestamp, name))
    FROM data JOIN signal ON signal.id = signal_id
"""
engine_create = engine.create


class Plan(NamedTuple):
    """Faults of these kinds, in turn, at every operation of a side; start is the state of Alvo before the run."""

    side: str
    start: str
    kinds: tuple[str, ...]
    lasting: bool = False
    pairs: bool = False

    def __str__(self):
        mode = "pairs of " * self.pairs + "lasting " * self.lasting
        return f"{self.side}, {self.start}: {mode}{', '.join(self.kinds)}"


STARTS = [(COMMAND, OLD_DAY), (COMMAND, NO_TABLES), (POOLED, OLD_DAY), (CONNECTING, OLD_DAY)]
SAMPLE = [Plan(*start, (*NETWORK, *TERMINATE)) for start in STARTS]
ALL = [
    *(Plan(*start, (k,), lasting) for start in STARTS for k in (*NETWORK, *TERMINATE) for lasting in (False, True)),
    *(Plan(*start, (kind,)) for start in STARTS for kind in HANG),
    *(Plan(*start, (kind,)) for start in STARTS[:2] for kind in (*KILL_RUN, *CRASH)),
    *(Plan(*start, NETWORK, pairs=True) for start in STARTS),
]
# SQLAlchemy 2.0 rolls back a connection that was lost in its first queries, and reports that failure instead.
CAUSE_IS_SHOWN = not sqlalchemy.__version__.startswith("2.0.")


def pytest_generate_tests(metafunc):
    if "plan" in metafunc.fixturenames:
        plans = ALL if metafunc.config.getoption("--faults") == "all" else SAMPLE
        metafunc.parametrize("plan", plans, ids=map(str, plans))


class World:
    """Fonte, its connector and Alvo, each behind a proxy, and fingerprints of the old day and of the new one."""

    def __init__(self, stack, fonte, alvo):
        self.command, self.connector = Script(), Script()
        self.alvo_pool, self.fonte_pool = (engine.create(url, "test") for url in (alvo, fonte))
        for pool in (self.alvo_pool, self.fonte_pool):
            stack.callback(pool.dispose)
        link = partial(PostgresLink, "Fonte", self.connector)
        self.fonte_proxy = stack.enter_context(proxied(link, fonte.host, fonte.port))
        behind = fonte.set(host="127.0.0.1", port=self.fonte_proxy.port)
        self.base_url = httpx.URL(stack.enter_context(connector_over(behind)))
        link = partial(HttpLink, "connector", self.command)
        http_proxy = stack.enter_context(proxied(link, self.base_url.host, self.base_url.port))
        link = partial(PostgresLink, "Alvo", self.command)
        alvo_proxy = stack.enter_context(proxied(link, alvo.host, alvo.port))
        behind = alvo.set(host="127.0.0.1", port=alvo_proxy.port)
        self.proxies = http_proxy, alvo_proxy
        self.environment = external(f"http://127.0.0.1:{http_proxy.port}", behind)
        self.command.actions |= {
            "terminate": partial(terminate, self.alvo_pool),
            "kill-run": lambda backend: self.process.kill(),
        }
        self.connector.actions |= {"terminate": partial(terminate, self.fonte_pool)}
        self._make_old_day()

    def _make_old_day(self):
        """Make an old day with missing, different and stale values, and values that no run may touch."""
        assert self.run() == 0
        with self.alvo_pool.begin() as connection:
            for statement in OLD_VALUES:
                connection.execute(text(statement))
        self.old, self.new = {}, {}
        for start in (NO_TABLES, OLD_DAY):
            self.prepare(start)
            self.old[start] = self.held()
            assert self.run() == 0
            self.new[start] = self.held()

    def prepare(self, start):
        with self.alvo_pool.begin() as connection:
            if start == NO_TABLES:
                connection.execute(text("DROP TABLE IF EXISTS data, signal"))
                return
            if self.lacks_tables(connection):
                schema.metadata.create_all(connection)
            connection.execute(text("TRUNCATE data, signal"))
            connection.execute(text("INSERT INTO signal OVERRIDING SYSTEM VALUE TABLE old.signal"))
            connection.execute(text("INSERT INTO data TABLE old.data"))
            connection.execute(text("SELECT setval(pg_get_serial_sequence('signal', 'id'), 200)"))

    def prepare_connector(self, side):
        """Fill the connector's pool, and break its connections if the connector has to connect."""
        for _ in range(RUNS):
            httpx.get(f"{self.base_url}/health").raise_for_status()
        patiently(self.fonte_pool, "application_name = 'fonte connector' AND state <> 'idle'")
        if side == CONNECTING:
            self.fonte_proxy.cut()

    def run(self):
        """Run the day in this process and return its exit code; dispose of its engines, as a process's end does."""
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

    def run_apart(self):
        """Run the day in another process, which may be killed."""
        with subprocess.Popen([sys.executable, "etl.py", DAY], cwd=SCRIPTS, env=self.environment) as self.process:
            return self.process.wait()

    def held(self):
        """A fingerprint of all values in Alvo; None without tables."""
        with self.alvo_pool.begin() as connection:
            return None if self.lacks_tables(connection) else connection.scalar(text(HELD))

    def lacks_tables(self, connection):
        return connection.scalar(text("SELECT to_regclass('data') IS NULL"))


def terminate(pool, backend):
    with pool.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})


def patiently(pool, condition):
    """The number of connections to this database that still meet a condition after a while."""
    query = text(f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {condition}")
    until = time.monotonic() + PATIENCE_S
    with pool.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while (found := connection.scalar(query)) and time.monotonic() < until:
            pass
    return found


class CrashingWorld(World):
    """A world whose Alvo has a separate server and a small disk; both may fail."""

    def __init__(self, stack, fonte, folder):
        super().__init__(stack, fonte, embedded.url("alvo", folder / "embedded"))
        self.ballast = folder / "ballast"
        self.backend = None
        self.command.actions |= {
            "kill-backend": self.kill_backend,
            "limit-files": self.limit_files,
            "fill-disk": self.fill_disk,
        }

    def kill_backend(self, backend):
        self.backend = backend
        os.kill(backend, signal.SIGKILL)

    def limit_files(self, backend):
        """Make every further write of the backend fail: tables, and the log of a COMMIT."""
        self.backend = backend
        _, hard = resource.prlimit(backend, resource.RLIMIT_FSIZE)
        resource.prlimit(backend, resource.RLIMIT_FSIZE, (0, hard))

    def fill_disk(self, backend):
        self.backend = backend
        with self.ballast.open("wb") as file:
            try:
                while True:
                    os.write(file.fileno(), bytes(2**16))
            except OSError:
                pass

    def recover(self):
        """Free the disk, and wait until a server whose backend crashed serves again."""
        self.ballast.unlink(missing_ok=True)
        until = time.monotonic() + PATIENCE_S
        # When the parent has noticed the crash, a new connection waits for the recovery.
        while self.backend and psutil.pid_exists(self.backend):
            assert time.monotonic() < until
        self.alvo_pool.dispose()
        while True:
            try:
                return self.held()
            except DBAPIError:
                assert time.monotonic() < until


@pytest.fixture(scope="module")
def world(make_database, seeded_template):
    with ExitStack() as stack:
        yield World(stack, make_database(seeded_template), make_database())


@contextmanager
def small_disk(folder):
    """A small file system if the tests run as root, else the folder itself."""
    if not DISK:
        yield folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def crashing_world(make_database, seeded_template, tmp_path_factory):
    with ExitStack() as stack:
        folder = stack.enter_context(small_disk(tmp_path_factory.mktemp("disk")))
        yield CrashingWorld(stack, make_database(seeded_template), folder)


def suffer(world, capfd, plan, faults):
    """Run the day with these faults, several times for pairs; return the faults that struck, and all complaints."""
    script = world.command if plan.side == COMMAND else world.connector
    world.prepare(plan.start)
    if plan.side != COMMAND:
        world.prepare_connector(plan.side)
    run = world.run_apart if plan.kinds[0] in KILL_RUN else world.run
    script.begin(faults, plan.lasting)
    wrong, code, before, new = [], None, world.old[plan.start], world.new[plan.start]
    for _ in range(RUNS if plan.pairs else 1):
        earlier = len(script.struck)
        capfd.readouterr()
        code = run()
        if plan.side == COMMAND:
            for proxy in world.proxies:
                proxy.settle()
        said = capfd.readouterr().err
        if plan.kinds[0] in CRASH and script.struck:
            world.recover()
        held = world.held()
        wrong += judged(code, said, before, held, new, script.struck[earlier:])
        before = held
        if code == 0:
            break
    script.heal()
    if left := patiently(world.alvo_pool, "application_name = 'etl.py'"):
        wrong.append(f"{left} connections stay behind")
    if code != 0 and (world.run() != 0 or world.held() != new or capfd.readouterr().err):
        wrong.append("the next run is not right")
    return script.struck, wrong


def judged(code, said, before, held, new, struck):
    """The complaints about a run's exit code, its error output and Alvo's values after it."""
    effect, when, _, server, *operation = struck[-1].split() if struck else ["nothing", "", "", ""]
    failure = -signal.SIGKILL if effect == "kill-run" else 4 if server == "Alvo" else 3
    lines = int(code in (3, 4))
    committed = operation == ["COMMIT"] and (when == "after" or effect == "kill-run")
    certain = f"{effect} {when}" not in CRASH and effect != "kill-run"
    wrong = {
        f"exit code {code}": code not in ({0, failure} if struck else {0}),
        "Alvo holds neither the old day nor the new one": held not in (before, new),
        "the new day is missing": (code == 0 or committed) and held != new,
        f"exit code {code} with the new day": certain and code != 0 and held == new != before and not committed,
        f"it printed {said!r}": said.count("\n") != lines or not said.startswith("etl.py: " * lines),
        f"it hides the cause: {said}": "already closed" in said and CAUSE_IS_SHOWN,
    }
    return [complaint for complaint, applies in wrong.items() if applies]


def kind_at(plan, *numbers):
    """The kind of fault at an operation, or at a pair of operations: the kinds take turns."""
    return plan.kinds[sum(numbers) % len(plan.kinds)]


def enumerated(plan, suffered):
    """Run case after case until no fault strikes any more."""
    for first in count(1):
        faults = {first: kind_at(plan, first)}
        if plan.pairs:
            seconds = count(first + 1)
            while suffered(faults | {(second := next(seconds)): kind_at(plan, first, second)}) == 2:
                pass
        if suffered(faults) == 0:
            return


def test_no_fault_leaves_half_a_day_or_a_wrong_exit_code(request, capfd, monkeypatch, plan):
    tally = request.config.stash[INJECTED]
    all_wrong = []
    world = request.getfixturevalue("crashing_world" if plan.kinds[0] in CRASH else "world")
    if plan.kinds[0] in HANG:
        monkeypatch.setattr(client, "READ_TIMEOUT_S", HANG_S)
        monkeypatch.setattr(engine, "CONNECT_TIMEOUT_S", 2)
        # The client's deadline has to work without the server's.
        monkeypatch.setattr(engine, "GRACE_S", HANG_S - engine.TIME_LIMIT_S)

    def suffered(faults):
        struck, wrong = suffer(world, capfd, plan, faults)
        all_wrong.extend((struck, complaint) for complaint in wrong)
        tally["cases"] += 1
        tally.update(" ".join(fault.split()[:2]) for fault in struck)
        return len(struck)

    enumerated(plan, suffered)
    assert all_wrong == []


@pytest.mark.parametrize("label", ["COPY pg_temp.incoming (timestamp, signal", "CopyData", "CopyDone"])
def test_a_backend_that_ends_within_a_copy_is_reported_on_one_line(world, capfd, label):
    world.prepare(OLD_DAY)
    world.command.begin({})
    assert world.run() == 0
    number = world.command.operations.index(f"Alvo {label}") + 1
    for kind in TERMINATE:
        struck, wrong = suffer(world, capfd, Plan(COMMAND, OLD_DAY, (kind,)), {number: kind})
        assert (len(struck), wrong) == (1, [])
