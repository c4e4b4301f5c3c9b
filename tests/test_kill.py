"""kill -9 at any moment: Alvo holds the old day or the new one, whole, and one plain run mends all."""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
from sqlalchemy import text

from tests.conftest import ROOT
from tests.test_embedded import servers
from tests.test_etl import alvo_values

COMMAND = [sys.executable, "etl.py", "2024-05-20"]


def run_and_kill(folder, environment, after_s):
    """Start etl.py and kill it after some seconds, unless it has ended by itself."""
    with subprocess.Popen(
        COMMAND, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as run:
        try:
            run.wait(after_s)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
        return run.wait(), run.stderr.read().decode()


def powers(pool):
    """The distinct values of power_mean in Alvo, and how many rows there are of all signals."""
    held = alvo_values(pool)
    return {value for (_, name), value in held.items() if name == "power_mean"}, len(held)


def test_a_killed_run_leaves_the_old_day_or_the_new_one(connector, fonte_pool, alvo, alvo_pool, pytestconfig):
    environment = os.environ | {
        "FONTE_API_URL": connector,
        "ALVO_DATABASE_URL": alvo.render_as_string(hide_password=False),
    }
    moments = random.Random(2024)
    began = time.perf_counter()
    subprocess.run(COMMAND, cwd=ROOT, env=environment, check=True, capture_output=True)
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
        # A killed run's COMMIT that was already on its way may arrive after the last look.
        assert found in (previous, {number - 1}, {number}), found
        outcomes.add((code, found == {number}))
        previous = found
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET power = -1"))
    subprocess.run(COMMAND, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert powers(alvo_pool) == ({-1.0}, 1152)
    assert (-signal.SIGKILL, False) in outcomes


def test_a_killed_first_run_needs_no_hand_and_leaves_no_server(checkout, pytestconfig, run_command):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    moments = random.Random(2024)
    for _ in range(pytestconfig.getoption("kills")):
        code, error = run_and_kill(checkout, environment, moments.uniform(0.2, 1.6))
        assert code in (0, -signal.SIGKILL), error
        if (checkout / ".embedded").exists():
            # A guard that was only just born does not hold its lock yet: psutil waits for it too.
            while running := servers(checkout / ".embedded"):
                psutil.wait_procs([psutil.Process(pid) for pid in running if psutil.pid_exists(pid)], timeout=1)
    run = run_command(*COMMAND[1:])
    assert run.returncode == 0, run.stderr
    assert "of 1,440 samples (100.0%), 144 windows" in run.stdout
