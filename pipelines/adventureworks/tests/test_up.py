"""Airflow's page: `make up` until `make down`, and compose.yaml (`pytest -m compose`, which needs Docker)."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from sqlalchemy import text

from tests.conftest import ROOT, environment, python

PATIENCE_S = 300


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def asked(url, token="", body=None):
    """The last line of JSON that Airflow answers."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, headers), timeout=PATIENCE_S) as answer:
        return json.loads(answer.read().splitlines()[-1])


def run_by_hand(url, **conf):
    """Trigger a run as the page does; returns its final state."""
    token = asked(f"{url}/auth/token")["access_token"]
    runs = f"{url}/api/v2/dags/adventureworks/dagRuns"
    assert asked(runs, token)["total_entries"] == 0
    run = asked(runs, token, {"logical_date": None, "conf": conf})["dag_run_id"]
    return asked(f"{runs}/{run.replace('+', '%2B')}/wait?interval=1", token)["state"]


@pytest.fixture
def make(tmp_path, database):
    """Run a target of the Makefile with this Python instead of .venv's, on a free port, with a database."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "venv/installed").touch()
    variables = {"VENV": tmp_path / "venv", "STATE": tmp_path / "up", "PORT": free_port()}
    url = {"ADVENTUREWORKS_DATABASE_URL": database.render_as_string(hide_password=False)}

    def run(target, **other):
        given = [f"{name}={value}" for name, value in (variables | other).items()]
        command = ["make", "--silent", target, *given]
        return subprocess.run(command, cwd=ROOT, env=url | environment(), capture_output=True, text=True, check=False)

    yield run
    run("down")


def test_make_up_serves_a_page_that_runs_the_dag_and_make_down_leaves_nothing(make, tmp_path, pool):
    port = free_port()
    url = f"http://localhost:{port}"
    up = make("up", PORT=port)
    assert (up.returncode, up.stdout) == (0, f"Airflow: {url}/dags/adventureworks; make down ends it\n"), up.stderr
    first = psutil.Process(int((tmp_path / "up/pid").read_text()))
    family = [first, *first.children(recursive=True)]
    [home] = {member.environ()["AIRFLOW_HOME"] for member in family if "AIRFLOW_HOME" in member.environ()}
    listening = {
        place.laddr.ip for member in family for place in member.net_connections("tcp") if place.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
    again = make("up", PORT=free_port())
    assert (again.returncode, again.stderr.splitlines()[0]) == (2, "make up: it is up already; make down ends it")
    assert run_by_hand(url) == "success"
    with pool.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sales.customer")) == 19_820
    down = make("down")
    assert (down.returncode, down.stdout, down.stderr) == (0, "", "")
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert not any(home in str(process.info["environ"]) for process in psutil.process_iter(["environ"]))
    assert not Path(home).exists()
    assert not (tmp_path / "up").exists()
    socket.create_server(("127.0.0.1", port)).close()
    assert make("down").returncode == 0


def test_make_up_names_a_port_that_is_in_use(make, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = make("up", PORT=port)
    assert up.returncode == 2
    assert up.stderr.startswith(f"make up: port {port} is in use: name another one, make up PORT=8081\n")
    assert not (tmp_path / "up").exists()


def test_make_up_repeats_the_error_and_leaves_only_its_log(make, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVENTUREWORKS_DATABASE_URL", "mysql://u:s3cr3t@h/d")
    up = make("up")
    assert up.returncode == 2
    assert up.stderr.startswith("run.py: ADVENTUREWORKS_DATABASE_URL is not a URL of PostgreSQL")
    assert f"\nmake up: Airflow did not start; {tmp_path}/up/log has the reason\n" in up.stderr
    assert [file.name for file in (tmp_path / "up").iterdir()] == ["log"]


def test_make_up_gives_up_after_its_time_limit_and_ends_what_it_started(make, tmp_path):
    up = make("up", WAIT_S=0)
    assert up.returncode == 2
    assert f"make up: Airflow did not start; {tmp_path}/up/log has the reason\n" in up.stderr
    assert [file.name for file in (tmp_path / "up").iterdir()] == ["log"]
    assert not any(str(tmp_path) in str(process.info["cmdline"]) for process in psutil.process_iter(["cmdline"]))


def test_a_part_of_airflow_that_ends_is_named(database):
    url = database.render_as_string(hide_password=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        run = python("run.py", "--airflow", place, ADVENTUREWORKS_DATABASE_URL=url)
    assert run.returncode == 1
    assert re.fullmatch("run.py: Airflow's api-server ended with code [1-9]: its output has the reason\n", run.stderr)


def test_an_address_of_the_page_without_a_port_is_refused():
    run = python("run.py", "--airflow", "8080")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "'8080': expected HOST:PORT, such as 127.0.0.1:8080" in run.stderr


@pytest.mark.compose
def test_compose_starts_the_same_with_docker_and_deletes_everything(tmp_path, pytestconfig):
    project, port = f"adventureworks-{uuid.uuid4().hex[:8]}", free_port()
    network = pytestconfig.getoption("--build-network")
    override = tmp_path / "override.yaml"
    override.write_text(json.dumps({"services": {"airflow": {"build": {"context": ".", "network": network}}}}))
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    compose = ["docker", "compose"] if plugin else ["docker-compose"]
    files = ["--file", "compose.yaml", *(["--file", str(override)] if network else [])]

    def docker(*command):
        given = os.environ | {"AIRFLOW_PORT": str(port)}
        run = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def healthy():
        label = f"label=com.docker.compose.project={project}"
        return len(docker("docker", "ps", "--quiet", "--filter", label, "--filter", "health=healthy").split())

    stack = [*compose, "--project-name", project, *files]
    try:
        docker(*stack, "up", "--detach", "--build")
        until = str(int(time.time()) + PATIENCE_S)
        events = ["docker", "events", "--until", until, "--filter", f"label=com.docker.compose.project={project}"]
        with subprocess.Popen(events, stdout=subprocess.PIPE, text=True) as watched:
            while healthy() < 2:
                assert watched.stdout.readline(), docker(*stack, "logs", "--tail=20")
            watched.kill()
        assert run_by_hand(f"http://localhost:{port}") == "success"
        answers = docker(*stack, "exec", "-T", "airflow", "python", "-m", "adventureworks.questions")
        assert [line.strip() for line in answers.splitlines() if line.endswith(" rows")] == [
            *("332 rows", "11 rows", "1,359 rows", "1,194 rows", "138 rows")
        ]
    finally:
        docker(*stack, "down", "--volumes", "--rmi", "local")
    for kind in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
        assert docker("docker", *kind, "--quiet", "--filter", f"label=com.docker.compose.project={project}") == ""
