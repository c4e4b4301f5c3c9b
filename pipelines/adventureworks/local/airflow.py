"""Airflow in a folder of its own: SQLite for its metadata, connections from the environment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from local import cloud

DAGS = Path(__file__).resolve().parents[1] / "dags"
DAG = "adventureworks"


def environment(home: Path, lambda_url: str) -> dict[str, str]:
    """Return the environment in which Airflow finds the DAG, and the function at this URL."""
    keys = {"login": cloud.KEYS["AWS_ACCESS_KEY_ID"], "password": cloud.KEYS["AWS_SECRET_ACCESS_KEY"]}
    connection = {"conn_type": "aws", **keys, "extra": {"region_name": cloud.REGION, "endpoint_url": lambda_url}}
    core = {"DAGS_FOLDER": str(DAGS), "LOAD_EXAMPLES": "False", "DEFAULT_TASK_RETRY_DELAY": "1"}
    core |= {"SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True", "DAGS_ARE_PAUSED_AT_CREATION": "False"}
    given = {"AIRFLOW_HOME": str(home), "AIRFLOW_CONN_ADVENTUREWORKS_AWS": json.dumps(connection)}
    given |= {f"AIRFLOW__CORE__{name}": value for name, value in core.items()}
    # Runs start by hand.
    given["AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE"] = "False"
    given["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{home / 'airflow.db'}"
    return {**os.environ, **given, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run_dag(variables: Mapping[str, str], event: Mapping[str, object]) -> "subprocess.CompletedProcess[str]":
    """Run the DAG once, with these parameters, by `airflow dags test`. Raises CalledProcessError."""
    _airflow(variables, "db", "migrate").check_returncode()
    return _airflow(variables, "dags", "test", DAG, "--conf", json.dumps(event))


def _airflow(variables: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "airflow", *arguments]
    return subprocess.run(command, env=dict(variables), capture_output=True, text=True, check=False)


def serve(variables: Mapping[str, str], host: str, port: str) -> int:
    """Serve Airflow's page, without a password, until a signal. Return its exit code."""
    page = {"HOST": host, "PORT": port, "BASE_URL": f"http://localhost:{port}"}
    environment = {**variables, **{f"AIRFLOW__API__{name}": value for name, value in page.items()}}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = psutil.Popen([sys.executable, "-m", "airflow", "standalone"], env=environment)
    with suppress(KeyboardInterrupt):
        return int(process.wait())
    family = [*process.children(recursive=True), process]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                end(member)
        _, family = psutil.wait_procs(family, timeout=20)
    return 0
