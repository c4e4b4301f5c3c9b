"""After kill -9 at any moment, Alvo holds the whole old or new day, and one plain run repairs everything."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import httpx
import psutil
import pytest
from sqlalchemy import text
from support.project import (
    ROOT,
    SCRIPTS,
    SIXTY_DAYS,
    alvo_values,
    bare,
    external,
    seeded,
    servers,
    values_of_days_alone,
)

pytestmark = pytest.mark.faults

COMMAND = [sys.executable, "etl.py", "2024-05-20"]


def run_and_kill(folder, environment, after_s):
    """Start etl.py and kill it after some seconds, unless it has ended."""
    with subprocess.Popen(
        COMMAND, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as run:
        try:
            run.wait(after_s)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
        return run.wait(), run.stderr.read().decode()


def powers(pool):
    """The distinct values of power_mean in Alvo, and the number of rows of all signals."""
    held = alvo_values(pool)
    return {value for (_, name), value in held.items() if name == "power_mean"}, len(held)


def test_a_killed_run_leaves_the_old_day_or_the_new_one(connector, fonte_pool, alvo, alvo_pool, pytestconfig):
    environment = external(connector, alvo)
    moments = random.Random(2024)
    began = time.perf_counter()
    subprocess.run(COMMAND, cwd=SCRIPTS, env=environment, check=True, capture_output=True)
    usual_s = time.perf_counter() - began
    outcomes = set()
    previous = powers(alvo_pool)[0]
    for number in range(pytestconfig.getoption("kills")):
        with fonte_pool.begin() as connection:
            connection.execute(text("UPDATE data SET power = :power"), {"power": number})
        code, error = run_and_kill(ROOT, environment, moments.uniform(0, 1.1 * usual_s))
        assert code in (0, -signal.SIGKILL), error
        found, rows = powers(alvo_pool)
        assert rows == 1152
        # A killed run's COMMIT may have been sent and arrive after the last look.
        assert found in (previous, {number - 1}, {number}), found
        outcomes.add((code, found == {number}))
        previous = found
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET power = -1"))
    subprocess.run(COMMAND, cwd=SCRIPTS, env=environment, check=True, capture_output=True)
    assert powers(alvo_pool) == ({-1.0}, 1152)
    assert (-signal.SIGKILL, False) in outcomes


def test_a_killed_first_run_needs_no_repair_and_leaves_no_server(folder, pytestconfig, run_command):
    environment = bare(folder)
    moments = random.Random(2024)
    for _ in range(pytestconfig.getoption("kills")):
        code, error = run_and_kill(folder, environment, moments.uniform(0.2, 1.6))
        assert code in (0, -signal.SIGKILL), error
        if (folder / ".embedded").exists():
            # A guard that has only just started does not hold its lock yet: psutil waits for it too.
            while running := servers(folder / ".embedded"):
                psutil.wait_procs([psutil.Process(pid) for pid in running if psutil.pid_exists(pid)], timeout=1)
    run = run_command(*COMMAND[1:])
    assert run.returncode == 0, run.stderr
    assert "of 1,440 samples (100.0%), 144 windows" in run.stdout


def test_resume_completes_a_range_after_kills_of_its_run_and_of_postgresql(folder, run_command):
    environment = bare(folder)
    sixty_days = ["etl.py", *SIXTY_DAYS, "--resume"]
    assert run_command("seed.py", "--days", "60").returncode == 0
    command = [sys.executable, *sixty_days]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE) as run:
        for _ in range(5):
            run.stdout.readline()
        run.kill()
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        for _ in range(5):
            run.stdout.readline()
        for pid in servers(folder / ".embedded"):
            if psutil.Process(pid).name() == "postgres":
                psutil.Process(pid).kill()
        _, error = run.communicate()
    assert run.returncode in (3, 4), error
    # psycopg2 itself may print lines if a server dies within a COPY.
    assert error.splitlines()[-1].startswith("etl.py: ")
    assert "during reset" not in error
    resumed = run_command(*sixty_days)
    assert resumed.returncode == 0, resumed.stderr
    assert 0 < resumed.stdout.count("UTC") <= 50
    again = run_command(*sixty_days[:-1]).stdout
    assert again.endswith("60 days: 0 values written, 34,512 unchanged, 0 removed\n")


@contextmanager
def connector_process(fonte, port):
    command = [sys.executable, "-m", "uvicorn", "fonte.connector:app", "--port", str(port), "--log-level", "error"]
    environment = os.environ | {"FONTE_DATABASE_URL": fonte.render_as_string(hide_password=False)}
    with subprocess.Popen(command, cwd=SCRIPTS, env=environment) as process:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_resume_completes_a_long_range_whose_connector_was_killed(
    sixty_days_fonte, alvo, alvo_pool, make_database, free_port
):
    port = free_port
    environment = external(f"http://127.0.0.1:{port}", alvo)
    command = [sys.executable, "etl.py", *SIXTY_DAYS]
    with (
        connector_process(sixty_days_fonte, port) as connector,
        subprocess.Popen(
            command, cwd=SCRIPTS, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as run,
    ):
        for _ in range(20):
            run.stdout.readline()
        connector.kill()
        _, error = run.communicate()
    assert run.returncode == 3, error
    held = alvo_values(alvo_pool)
    with connector_process(sixty_days_fonte, port):
        undisturbed = values_of_days_alone(make_database(), environment["FONTE_API_URL"], SIXTY_DAYS)
        resumed = subprocess.run([*command, "--resume"], cwd=SCRIPTS, env=environment, check=False)
    assert held.items() < undisturbed.items()
    assert resumed.returncode == 0
    assert alvo_values(alvo_pool) == undisturbed


def test_a_year_is_loaded_while_its_connector_stops_three_times_for_8_s(make_database, alvo, free_port):
    fonte = seeded(make_database(), 366)
    moments = random.Random(8)
    stops = sorted(moments.sample(range(5, 360), 3))
    command = [sys.executable, "etl.py", "2024-05-20", "2025-05-20", "--columns", "power"]
    environment = external(f"http://127.0.0.1:{free_port}", alvo)
    with ExitStack() as connector:
        connector.enter_context(connector_process(fonte, free_port))
        with subprocess.Popen(
            command, cwd=SCRIPTS, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as run:
            for number, _ in enumerate(run.stdout):
                if number in stops:
                    connector.close()
                    time.sleep(8)
                    connector.enter_context(connector_process(fonte, free_port))
            error = run.stderr.read()
        assert (run.returncode, error) == (0, "")
        again = subprocess.run(command, cwd=SCRIPTS, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout.endswith("366 days: 0 values written, 210,768 unchanged, 0 removed\n")
