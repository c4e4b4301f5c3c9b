"""Dagster in a fresh checkout, started by `python -m orchestration.dagster` and queried over GraphQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from support.project import ROOT, SETTINGS

TODAY = datetime.now(UTC).date()
# Ten whole days, and the last ten days; Fonte has no data on two of the latter.
DAYS = [str(TODAY - timedelta(days=number)) for number in range(20, 10, -1)]
LAST = [str(TODAY - timedelta(days=number)) for number in range(10, 0, -1)]
EMPTY = {LAST[3], LAST[6]}


def environment():
    """The environment without any setting of the project."""
    unset = {*SETTINGS, "DAGSTER_HOME"} - {"ALVO_DATABASE_URL"}
    return {name: value for name, value in os.environ.items() if name not in unset} | {"ALVO_DATABASE_URL": ""}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A checkout whose Fonte holds the days."""
    clone = tmp_path_factory.mktemp("clone") / "fonte-alvo"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "mutants", "*.egg-info"))
    for first, days in ((DAYS[0], 13), (LAST[4], 2), (LAST[7], 3)):
        seed = [sys.executable, "seed.py", "--start", first, "--days", str(days)]
        subprocess.run(seed, cwd=clone, env=environment(), check=True)
    # The environment overrides this file, in each of Dagster's processes too.
    (clone / ".env").write_text("ALVO_DATABASE_URL=postgresql://nobody:nothing@127.0.0.1:1/another\n")
    return clone


@pytest.fixture(scope="module")
def log(clone):
    return clone.parent / "log"


@pytest.fixture(scope="module")
def dagster(clone, log):
    with started(clone, log) as url_and_process:
        yield url_and_process


@contextmanager
def started(clone, log):
    """Start Dagster; yield its URL and its process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "orchestration.dagster", "--port", str(port)]
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=clone, env=environment(), stdout=output, stderr=output) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        while f"open {url}\n" not in log.read_text():
            assert process.poll() is None, log.read_text()
        assert answers(url)
        yield url, process
        process.send_signal(signal.SIGINT)


def answers(url):
    try:
        return httpx.get(f"{url}/server_info").is_success
    except httpx.TransportError:
        return False


def client(url):
    """Make a function that queries Dagster over GraphQL."""

    def ask(query, **variables):
        answer = httpx.post(f"{url}/graphql", json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer
        return answer["data"]

    return ask


@pytest.fixture(scope="module")
def ask(dagster):
    return client(dagster[0])


def definitions(ask):
    """The names of the definitions' repository and location in GraphQL."""
    query = "{repositoriesOrError {... on RepositoryConnection {nodes {name location {name}}}}}"
    (repository,) = ask(query)["repositoriesOrError"]["nodes"]
    return {"repositoryName": repository["name"], "repositoryLocationName": repository["location"]["name"]}


def backfill(ask, days=DAYS):
    """Backfill days; return the finished backfill."""
    launch = """mutation ($p: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $p) {
        ... on LaunchBackfillSuccess {backfillId}
    }}"""
    asked = {"assetSelection": [{"path": ["ten_minute_statistics"]}], "partitionNames": days}
    backfill_id = ask(launch, p=asked)["launchPartitionBackfill"]["backfillId"]
    look = """query ($id: String!) {partitionBackfillOrError(backfillId: $id) {
        ... on PartitionBackfill {status runs {status startTime endTime}}
    }}"""
    while (found := ask(look, id=backfill_id)["partitionBackfillOrError"])["status"] == "REQUESTED":
        pass
    return found
