"""Run Airflow in a folder: metadata in SQLite, connections from the environment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from fonte_alvo.command import Failure
from local import cloud

DAGS = Path(__file__).resolve().parents[1] / "dags"
# Their log servers would listen on all networks; the page reads the logs from the folder.
PARTS = ("api-server", "scheduler --skip-serve-logs", "triggerer --skip-serve-logs", "dag-processor")


def environment(home: Path, lambda_url: str, place: str | None = None) -> dict[str, str]:
    """Return Airflow's environment.

    lambda_url: the endpoint of the Lambda service. place: HOST:PORT of Airflow's page; 127.0.0.1:8080 if None.
    """
    keys = {"login": cloud.KEYS["AWS_ACCESS_KEY_ID"], "password": cloud.KEYS["AWS_SECRET_ACCESS_KEY"]}
    connection = {"conn_type": "aws", **keys, "extra": {"region_name": cloud.REGION, "endpoint_url": lambda_url}}
    host, _, port = (place or "127.0.0.1:8080").rpartition(":")
    given = {"CORE__DAGS_FOLDER": str(DAGS), "CORE__LOAD_EXAMPLES": "False", "CORE__DEFAULT_TASK_RETRY_DELAY": "1"}
    given |= {"CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True", "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False"}
    given |= {"API__HOST": host, "API__PORT": port, "API__BASE_URL": f"http://localhost:{port}"}
    # Runs start only by hand.
    given |= {"SCHEDULER__USE_JOB_SCHEDULE": "False", "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}"}
    variables = {"AIRFLOW_HOME": str(home), "AIRFLOW_CONN_ADVENTUREWORKS_AWS": json.dumps(connection)}
    return os.environ | variables | {f"AIRFLOW__{name}": text for name, text in given.items()}


def run_dag(variables: Mapping[str, str], event: Mapping[str, object]) -> "subprocess.CompletedProcess[str]":
    """Run the DAG once, with these parameters, by `airflow dags test`. Raises Failure."""
    _migrate(variables)
    return _airflow(variables, "dags", "test", "adventureworks", "--conf", json.dumps(event))


def _migrate(variables: Mapping[str, str]) -> None:
    run = _airflow(variables, "db", "migrate")
    if run.returncode:
        raise Failure(f"airflow db migrate failed: {' '.join((run.stdout + run.stderr).split())[-1000:]}")


def _airflow(variables: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "airflow", *arguments]
    return subprocess.run(command, env=dict(variables), capture_output=True, text=True, check=False)


def serve(variables: dict[str, str]) -> int:
    """Serve Airflow's page without a password until a signal. Raises Failure."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ended: list[psutil.Popen] = []
    with suppress(KeyboardInterrupt):
        _migrate(variables)
        parts = [psutil.Popen([sys.executable, "-m", "airflow", *part.split()], env=dict(variables)) for part in PARTS]
        while not (ended := psutil.wait_procs(parts, timeout=1)[0]):
            pass
    family = psutil.Process().children(recursive=True)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                end(member)
        _, family = psutil.wait_procs(family, timeout=20)
    if ended:
        # The command: python -m airflow PART ...
        raise Failure(f"Airflow's {ended[0].args[3]} ended with code {ended[0].returncode}: its output has the reason")
    return 0
