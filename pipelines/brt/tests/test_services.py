"""The whole pipeline as processes on a faster clock: it starts, runs, survives the kill of each part, and stops."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import httpx
import psutil
import pytest

from brt import capture, services
from tests.conftest import PROJECT, expected_positions

SERVICES = ("stand-in", "prefect", "flows", "postgres")
CAPTURE_EVERY_S, LOAD_EVERY_S = 12, 30
# A busy machine may take a while.
PATIENCE_S = 600
QUERY = """
import json, sys
from brt import pipeline
with pipeline.database() as pool, pool.connect() as connection:
    print(json.dumps([list(row) for row in connection.exec_driver_sql(sys.argv[1])]))
"""


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def run(world, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT, env=world.environment, capture_output=True, text=True, check=False
    )


def step(world, name):
    """Run a step of the command; returns its output."""
    done = run(world, "-m", "brt", name)
    assert done.returncode == 0, done.stderr
    return done.stdout


def query(world, statement):
    """Query the database in another process, so that the tests do not keep the server running."""
    done = run(world, "-c", QUERY, statement)
    assert done.returncode == 0, done.stderr
    return [tuple(row) for row in json.loads(done.stdout)]


def eventually(is_so):
    """Wait until the value is true, and return it."""
    until = time.monotonic() + PATIENCE_S
    while not (found := is_so()):
        assert time.monotonic() < until, is_so
        time.sleep(0.5)
    return found


def captures(world):
    """The records of all files by the time of their capture: {captured_at: [record]}."""
    found = {}
    for file in capture.files(world.folder / "captures"):
        for record in csv.DictReader(file.read_text().splitlines()):
            found.setdefault(record["captured_at"], []).append(record)
    return found


def left(world):
    """The processes of the pipeline, those of its database included."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time", "environ", "status"]):
        marked = (process.info["environ"] or {}).get(services.MARK, "").startswith(str(world.folder))
        if marked or str(world.folder) in " ".join(process.info["cmdline"] or ()):
            found += [process] * (process.info["status"] != psutil.STATUS_ZOMBIE)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brt") / "state"
    ports = free_ports(3)
    given = {
        "BRT_FOLDER": str(folder),
        "BRT_CAPTURE_EVERY_S": str(CAPTURE_EVERY_S),
        "BRT_LOAD_EVERY_S": str(LOAD_EVERY_S),
        "BRT_PREFECT_PORT": str(ports[0]),
        "BRT_STAND_IN_PORT": str(ports[1]),
        "BRT_POSTGRES_PORT": str(ports[2]),
    }
    unset = ("BRT_API_URL", "BRT_DATABASE_URL", "PREFECT_API_URL")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | given
    world = SimpleNamespace(folder=folder, environment=environment, api=f"http://127.0.0.1:{ports[0]}/api")
    yield world
    step(world, "stop")


@pytest.fixture
def started(world):
    """The pipeline with all services running."""
    world.said = step(world, "start")
    return world


def completed(world, flow):
    """The completed scheduled runs of a flow."""
    asked = {
        "flows": {"name": {"any_": [flow]}},
        "flow_runs": {"state": {"name": {"any_": ["Completed"]}}},
        "limit": 200,
    }
    runs = httpx.post(f"{world.api}/flow_runs/filter", json=asked, timeout=60, trust_env=False)
    return [each for each in runs.json() if each["auto_scheduled"]] if runs.status_code == 200 else []


def test_scheduled_runs_fire(started):
    """Prefect 3.8 with SQLAlchemy 2.1 showed both deployments as ready, and never ran one."""
    assert "http://127.0.0.1:" in started.said
    assert eventually(lambda: len(completed(started, "capture")) >= 2)
    assert eventually(lambda: len(completed(started, "load")) >= 1)


def test_the_replayed_captures_arrive_in_the_view(started):
    eventually(lambda: len(captures(started)) >= 10)
    tenth = sorted(captures(started))[9]
    eventually(
        lambda: (
            query(started, f"SELECT count(*) FROM brt_raw WHERE captured_at >= '{tenth}'") > [(0,)]
            and query(started, "SELECT count(*) FROM posicao_onibus") == [(453,)]
        )
    )
    replayed = "dataHora < 1700000000000"
    assert query(started, f"SELECT count(*) FROM brt_raw WHERE {replayed}") == [(1923,)]
    last = query(
        started,
        "SELECT DISTINCT ON (codigo) codigo, latitude, longitude, velocidade, dataHora, linha, sentido, trajeto "
        f"FROM brt_raw WHERE {replayed} ORDER BY codigo, dataHora DESC",
    )
    assert {row[0]: row[1:] for row in last} == expected_positions()
    assert Counter(map(len, captures(started).values())).keys() == {453}


def test_starting_again_starts_nothing_twice(started):
    before = {name: services_of(started, name)[0].pid for name in SERVICES}
    step(started, "start")
    assert before == {name: services_of(started, name)[0].pid for name in SERVICES}


def services_of(world, name):
    """The processes of a service, its main one first: PostgreSQL's guard may be older."""
    mark = f"{world.folder} {name}"
    found = [each for each in left(world) if (each.info["environ"] or {}).get(services.MARK) == mark]
    return sorted(found, key=lambda each: (each.info["cmdline"][1:2] != ["-m"], each.info["create_time"]))


def postgres_of(world):
    """The PostgreSQL server; none while it restarts, when its PID file is absent or empty."""
    with suppress(FileNotFoundError):
        written = (world.folder / "postgres/data/postmaster.pid").read_text().split()
        return [process for process in left(world) if [str(process.pid)] == written[:1]]
    return []


def is_new(processes, killed):
    return [each for each in processes if each.info["create_time"] > killed.info["create_time"]]


def test_a_killed_service_restarts_and_no_capture_is_lost_or_doubled(started):
    """Each part in turn restarts by itself. PostgreSQL keeps its port."""
    eventually(lambda: captures(started))
    before = captures(started)
    for part in (*SERVICES, "server"):
        find = postgres_of if part == "server" else lambda world, part=part: services_of(world, part)
        victim = find(started)[0]
        victim.kill()
        victim.wait()
        eventually(lambda find=find, victim=victim: is_new(find(started), victim))
        so_far = len(captures(started))
        eventually(lambda so_far=so_far: len(captures(started)) > so_far)
    after = captures(started)
    assert {moment: after[moment] for moment in before} == before
    assert Counter(map(len, after.values())).keys() == {453}
    latest = max(after)
    eventually(lambda: query(started, f"SELECT count(*) FROM brt_raw WHERE captured_at >= '{latest}'") > [(0,)])
    held = query(started, f"SELECT codigo, dataHora FROM brt_raw WHERE captured_at <= '{latest}' ORDER BY 1, 2")
    captured = {(record["codigo"], int(record["dataHora"])) for records in after.values() for record in records}
    assert len(held) == len(set(held))
    assert set(held) <= captured <= set(query(started, "SELECT codigo, dataHora FROM brt_raw"))
    assert query(started, "SHOW port") == [(started.environment["BRT_POSTGRES_PORT"],)]
    log = (started.folder / "keeper.log").read_text()
    assert re.findall("^(.*) ended with code -9; .*log has the reason$", log, re.MULTILINE) == list(SERVICES)


def test_start_restores_all_services_after_a_kill_of_the_keeper_or_of_everything(started):
    for find in (lambda world: services_of(world, "keeper"), left):
        victims = find(started)
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        psutil.wait_procs(victims)
        step(started, "start")
        assert all(services_of(started, name) for name in ("keeper", *SERVICES))
        so_far = len(captures(started))
        eventually(lambda so_far=so_far: len(captures(started)) > so_far)


def test_changed_settings_restart_the_services(started):
    (before,) = services_of(started, "keeper")
    port = started.environment["BRT_POSTGRES_PORT"]
    other = SimpleNamespace(**vars(started))
    other.environment = started.environment | {"BRT_POSTGRES_PORT": str(free_ports(1)[0])}
    step(other, "start")
    assert not before.is_running()
    assert query(other, "SHOW port") == [(other.environment["BRT_POSTGRES_PORT"],)] != [(port,)]


@pytest.mark.parametrize("variable", ["BRT_STAND_IN_PORT", "BRT_PREFECT_PORT", "BRT_POSTGRES_PORT"])
def test_a_port_in_use_is_reported(started, variable):
    step(started, "stop")
    with socket.create_server(("127.0.0.1", int(started.environment[variable]))):
        done = run(started, "-m", "brt", "start")
    assert (done.returncode, done.stdout) == (7, "")
    assert re.fullmatch(rf"brt: port \d+ is in use: set {variable} to another one\n", done.stderr)
    assert left(started) == []


def test_a_service_that_ends_at_the_start_is_reported(started, tmp_path):
    step(started, "stop")
    end_prefect = "import os, sys\nif sys.orig_argv[2:3] == ['prefect']: os._exit(3)\n"
    (tmp_path / "sitecustomize.py").write_text(end_prefect)
    given = started.environment
    path = os.pathsep.join(filter(None, [str(tmp_path), given.get("PYTHONPATH")]))
    done = run(SimpleNamespace(environment=given | {"PYTHONPATH": path}), "-m", "brt", "start")
    assert (done.returncode, done.stdout) == (7, "")
    assert re.fullmatch(r"brt: prefect ended with code 3; .*/prefect.log has the reason\n", done.stderr)
    eventually(lambda: left(started) == [])


def test_an_unreachable_database_is_reported_before_anything_starts(world):
    world = SimpleNamespace(
        environment=world.environment | {"BRT_DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/brt"}
    )
    done = run(world, "-m", "brt", "start")
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch("brt: BRT's database failed: .*; set BRT_DATABASE_URL or .*\n", done.stderr)
    assert "secret" not in done.stderr


def test_an_interrupted_start_leaves_no_process_behind(started):
    step(started, "stop")
    command = [sys.executable, "-m", "brt", "start"]
    # A shell makes its background jobs ignore Ctrl-C.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    piped = {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=PROJECT, env=started.environment, **piped, **heard) as starting:
        eventually(lambda: services_of(started, "prefect"))
        starting.send_signal(signal.SIGINT)
        assert starting.communicate()[1] == "brt: interrupted; nothing is left half done\n"
    assert left(started) == []


def test_a_process_that_its_parent_never_reaps_counts_as_ended(monkeypatch):
    monkeypatch.setattr(services, "STOPS_WITHIN_S", 1)
    # The inner shell knows nothing of the child; the outer one could reap it.
    line = 'sleep 600 & exec sh -c "echo $!; exec sleep 600"'
    with subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE) as parent:
        try:
            child = psutil.Process(int(parent.stdout.readline()))
            services._end([child])
            assert child.status() == psutil.STATUS_ZOMBIE
        finally:
            parent.kill()


def test_stop_leaves_no_process_behind(started):
    assert step(started, "stop") == "stopped: keeper, flows, prefect, stand-in, postgres\n"
    assert left(started) == []
    assert step(started, "stop") == "stopped: nothing ran\n"
