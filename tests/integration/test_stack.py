"""compose.yaml under Docker: the commands of docs/services.md, the networks, and recovery from kills.

`pytest -m compose` runs these in order: each test leaves every service healthy, the last one removes all.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import psycopg2
import pytest
from dotenv import dotenv_values
from support.compose import EXAMPLE
from support.compose import SERVICES as ALL
from support.project import ROOT, SETTINGS

# `docker compose up` starts these without a profile.
SERVICES = {name: service for name, service in ALL.items() if "profiles" not in service}
STAYING = [name for name, service in SERVICES.items() if service["restart"] == "unless-stopped"]

pytestmark = pytest.mark.compose
PATIENCE_S = 300

# Listening services and ports, and the only services that may connect.
IN_ALVO = {"alvo-database", "alvo-api", "dagster-code", "dagster-daemon", "dagster-webserver"}
REACHED_BY = {
    ("fonte-database", 5432): {"fonte-database", "connector"},
    ("connector", 8000): {"fonte-database", "connector", "alvo-api", "dagster-code"},
    ("alvo-database", 5432): IN_ALVO,
    ("alvo-api", 8080): IN_ALVO,
    ("dagster-code", 4000): IN_ALVO,
    ("dagster-webserver", 3000): IN_ALVO,
}
OF_POSTGRES = {"/run/postgresql", "/tmp", "/var/lib/postgresql"}
OF_DAGSTER = {"/tmp", "/dagster/storage"}
FOLDERS = {
    **dict.fromkeys(("fonte-database", "alvo-database"), OF_POSTGRES),
    **dict.fromkeys(("dagster-code", "dagster-daemon"), OF_DAGSTER),
}


def section(language):
    """Return the code blocks of the section on Docker in docs/services.md, in order."""
    text = (ROOT / "docs/services.md").read_text().split("\n## With Docker\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


START, DAY, CALLS, END = section("sh")


class Stack:
    """compose.yaml as a user starts it in a checkout, but with another project name and other ports."""

    def __init__(self, folder, build_network):
        self.folder = folder
        self.project = f"fonte-alvo-{uuid.uuid4().hex[:8]}"
        shutil.copytree(ROOT, folder, ignore=of_no_checkout)
        example = folder / ".env.example"
        example.write_text(re.sub(r"(_PORT=)\d+", lambda found: f"{found[1]}{free_port()}", example.read_text()))
        self.settings = dotenv_values(example)
        override = {name: {"build": {"network": build_network}} for name in SERVICES if "build" in SERVICES[name]}
        (folder / "override.yaml").write_text(json.dumps({"services": override if build_network else {}}))
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
        self.compose = "docker compose" if plugin else "docker-compose"
        self.environment = {name: value for name, value in os.environ.items() if name not in {*SETTINGS, *EXAMPLE}} | {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": f"compose.yaml{os.pathsep}override.yaml",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, command):
        """Run a command of docs/services.md on the ports of this stack; return its output."""
        for name, port in (("CONNECTOR_PORT", 8000), ("ALVO_API_PORT", 8080)):
            command = command.replace(f"http://localhost:{port}", self.url(name))
        command = command.replace("docker compose", self.compose)
        run = subprocess.run(command, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
        return run.stdout

    def url(self, name):
        return f"http://127.0.0.1:{self.settings[name]}"

    def container(self, service):
        labels = {"project": self.project, "service": service}
        filters = " ".join(f"--filter label=com.docker.compose.{name}={value}" for name, value in labels.items())
        return self.run(f"docker ps --all --quiet {filters}").strip()

    def inspect(self, service):
        return json.loads(self.run(f"docker inspect {self.container(service)}"))[0]

    def inside(self, service, *command, user=None):
        asked = ["docker", "exec", *(["--user", user] if user else []), self.container(service), *command]
        return self.run(shlex.join(asked))

    def beside(self, options, *command):
        """Run a command in another container of the connector's image."""
        return self.run(shlex.join(["docker", "run", "--rm", *options, self.inspect("connector")["Image"], *command]))

    def wait_until(self, condition):
        """Wait for a condition of containers, which is tested at each event of Docker."""
        until = str(int(time.time()) + PATIENCE_S)
        events = ["docker", "events", "--until", until, "--filter", f"label=com.docker.compose.project={self.project}"]
        with subprocess.Popen(events, stdout=subprocess.PIPE, text=True) as watching:
            while not condition():
                assert watching.stdout.readline(), self.run("docker compose logs --tail=20")
            watching.kill()

    def healthy(self, *services):
        filters = f"--filter label=com.docker.compose.project={self.project} --filter health=healthy"
        found = self.run(f"docker ps {filters} --format '{{{{.Label \"com.docker.compose.service\"}}}}'").split()
        return set(services or STAYING) <= set(found)

    def ask_dagster(self, query, **variables):
        asked = {"query": query, "variables": variables}
        answer = httpx.post(self.url("DAGSTER_PORT") + "/graphql", json=asked, timeout=60).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def contents(self):
        """Return a digest of all databases, Dagster's too, read from this machine."""
        given = self.settings
        of_dagster = f"dagster:{given['DAGSTER_PASSWORD']}@127.0.0.1:{given['ALVO_DATABASE_PORT']}/dagster"
        tables = {given["FONTE_DATABASE_URL"]: "data", given["ALVO_DATABASE_URL"]: "data"}
        held = []
        for url, table in (tables | {f"postgresql://{of_dagster}": "runs"}).items():
            connection = psycopg2.connect(url)
            with connection, connection.cursor() as cursor:
                cursor.execute(f"SELECT count(*), sum(hashtextextended(row::text, 0)) FROM {table} AS row")
                held += cursor.fetchall()
            connection.close()
        return held


def of_no_checkout(folder, names):
    hidden = {name for name in names if name.startswith(".")} - {".dockerignore", ".env.example"}
    return hidden | ({"__pycache__", "build", "mutants"} & set(names))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def stack(tmp_path_factory, pytestconfig):
    stack = Stack(tmp_path_factory.mktemp("compose") / "checkout", pytestconfig.getoption("--build-network"))
    try:
        stack.run(START)
        stack.wait_until(stack.healthy)
        yield stack
    finally:
        stack.run("docker compose down --volumes --rmi local")


def test_from_nothing_all_services_become_healthy_or_end_with_success(stack):
    for service in set(SERVICES) - set(STAYING):
        state = stack.inspect(service)["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0)
    assert "14,400 rows inserted" in stack.run("docker compose logs fonte-seed")


def test_every_volume_has_a_name(stack):
    mounts = [mount for service in SERVICES for mount in stack.inspect(service)["Mounts"] if mount["Type"] == "volume"]
    assert {mount["Name"] for mount in mounts} == {f"{stack.project}_{name}" for name in ("fonte", "alvo", "dagster")}


def test_a_day_is_loaded_from_this_machine_and_a_rerun_changes_nothing(stack):
    assert "1,152 values written, 0 unchanged, 0 removed" in stack.run(DAY)
    assert "0 values written, 1,152 unchanged, 0 removed" in stack.run(DAY)


def test_the_calls_of_the_docs_answer(stack):
    of_fonte, of_alvo = (stack.run(call) for call in CALLS.splitlines())
    assert len(json.loads(of_fonte)) == 10
    deviations = [line.split(",")[2] for line in of_alvo.splitlines()[1:]]
    assert len(deviations) == 6
    (code,) = section("python")
    printed = stack.run(f"python - <<'END'\n{code}END")
    for deviation in deviations[:3]:
        # pandas and polars print six decimals, the last one rounded.
        whole, decimals = deviation.split(".")
        assert printed.count(f"{whole}.{decimals[:5]}") == 3


def test_the_docs_and_the_pages_are_served(stack):
    places = (("CONNECTOR_PORT", "/docs"), ("ALVO_API_PORT", "/docs"), ("ALVO_API_PORT", "/"), ("DAGSTER_PORT", "/"))
    for name, path in places:
        assert "<html" in httpx.get(stack.url(name) + path, timeout=60).text


def test_the_page_of_alvo_gets_the_samples_of_fonte(stack):
    period = "start_timestamp=2024-05-20&end_timestamp=2024-05-20T00:10&columns=power"
    answer = httpx.get(f"{stack.url('ALVO_API_PORT')}/samples?{period}").json()
    assert len(answer["columns"]["power"]) == 10


def test_without_a_token_a_change_is_refused(stack):
    for name in ("CONNECTOR_PORT", "ALVO_API_PORT"):
        assert httpx.delete(stack.url(name) + "/data").status_code == 403


def test_the_schedule_of_dagster_is_on_and_its_launchpad_runs_days(stack):
    ask = stack.ask_dagster
    repositories = ask("{repositoriesOrError {... on RepositoryConnection {nodes {name location {name}}}}}")
    (repository,) = repositories["repositoriesOrError"]["nodes"]
    names = {"repositoryName": repository["name"], "repositoryLocationName": repository["location"]["name"]}
    schedule = """query ($s: ScheduleSelector!) {scheduleOrError(scheduleSelector: $s) {
        ... on Schedule {scheduleState {status}}
    }}"""
    state = ask(schedule, s={**names, "scheduleName": "daily"})["scheduleOrError"]["scheduleState"]
    assert state == {"status": "RUNNING"}
    launch = "mutation ($p: ExecutionParams!) {launchRun(executionParams: $p) {... on LaunchRunSuccess {run {runId}}}}"
    config = (ROOT / "orchestration/dagster/etl.yaml").read_text()
    run = ask(launch, p={"selector": {**names, "jobName": "etl"}, "runConfigData": config})["launchRun"]["run"]
    look = "query ($id: ID!) {runOrError(runId: $id) {... on Run {status endTime}}}"
    deadline = time.monotonic() + PATIENCE_S
    while not (found := ask(look, id=run["runId"])["runOrError"])["endTime"]:
        assert time.monotonic() < deadline, found
    assert found["status"] == "SUCCESS"
    values = httpx.get(stack.url("ALVO_API_PORT") + "/data?signals=power_mean", timeout=60).json()
    assert len(values) == 3 * 144


@pytest.mark.parametrize("service", STAYING)
def test_no_process_is_root_or_can_become_root(stack, service):
    _, *processes = stack.run(f"docker top {stack.container(service)} -eo uid,comm,pid").splitlines()
    staying = [process.split() for process in processes if "pg_isready" not in process]
    assert {int(uid) for uid, *_ in staying} == {999 if "database" in service else 65532}
    status = stack.inside(service, "cat", "/proc/1/status")
    for name, value in (("CapPrm", "0+"), ("CapEff", "0+"), ("NoNewPrivs", "1")):
        assert re.search(rf"^{name}:\s+{value}$", status, re.MULTILINE)


@pytest.mark.parametrize("service", STAYING)
def test_a_service_can_write_only_to_its_own_folders(stack, service):
    """All folders but those of the kernel; /dev is in the memory of the container."""
    walk = "shopt -s globstar dotglob nullglob; for f in / /[!ps]*/ /[!ps]*/**/ /s[!y]*/ /s[!y]*/**/; do"
    look = f'{walk} [ -L "${{f%/}}" ] || [ ! -w "$f" ] || echo "$f"; done'
    user = "999" if "database" in service else None
    found = {folder.rstrip("/") for folder in stack.inside(service, "bash", "-c", look, user=user).splitlines()}
    own = FOLDERS.get(service, {"/tmp"})
    assert own <= found
    assert [folder for folder in found if not folder.startswith((*own, "/dev/"))] == []


@pytest.mark.parametrize("service", STAYING)
def test_a_service_reaches_only_the_services_that_it_needs(stack, service):
    """By every address, also those of other networks."""
    places = {
        f"{network['IPAddress']}:{port}": name
        for name, port in REACHED_BY
        for network in stack.inspect(name)["NetworkSettings"]["Networks"].values()
    }
    code = """
import socket, sys
for place in sys.argv[1:]:
    host, port = place.split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
        print(place)
    except OSError:
        pass
"""
    network = ["--network", f"container:{stack.container(service)}"]
    reached = stack.beside(network, "python", "-c", code, *places).split()
    assert {places[place] for place in reached} == {name for (name, _), by in REACHED_BY.items() if service in by}


@pytest.mark.parametrize("service", ["connector", "dagster-code"])
def test_an_image_can_neither_install_nor_compile(stack, service):
    look = "type pip pip3 gcc cc make 2>/dev/null; python -c 'import pip' 2>/dev/null && echo pip; id -u"
    assert stack.inside(service, "bash", "-c", look) == "65532\n"


def test_the_commands_of_an_image_name_their_version(stack):
    assert stack.inside("connector", "python", "etl.py", "--version").startswith("fonte-alvo ")


@pytest.mark.parametrize("service", ["connector", "alvo-api", "fonte-database", "alvo-database", "dagster-code"])
def test_a_killed_service_restarts_with_its_data(stack, service):
    before = stack.contents()
    state = stack.inspect(service)["State"]
    # From outside: process 1 of a container cannot be killed from inside.
    kill = f"import os; os.kill({state['Pid']}, 9)"
    stack.beside(["--pid=host", "--user=0"], "python", "-c", kill)
    stack.wait_until(lambda: stack.inspect(service)["State"]["StartedAt"] != state["StartedAt"])
    stack.wait_until(stack.healthy)
    assert stack.contents() == before
    assert "0 values written, 1,152 unchanged, 0 removed" in stack.run(DAY)


def test_down_and_up_keep_the_data_and_apply_a_new_password(stack):
    connection = psycopg2.connect(stack.settings["FONTE_DATABASE_URL"])
    with connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM data WHERE timestamp >= '2024-05-29Z'")
    connection.close()
    before = stack.contents()
    down, up, down_with_volumes = END.splitlines()
    stack.run(down)
    passwords = stack.folder / ".env"
    passwords.write_text(passwords.read_text().replace("=fonte-writer", "=another-one"))
    stack.settings = dotenv_values(passwords)
    stack.run(up)
    stack.wait_until(stack.healthy)
    assert stack.contents() == before
    assert "0 values written, 1,152 unchanged, 0 removed" in stack.run(DAY)
    stack.run(down_with_volumes)
    for kind in ("ps --all", "volume ls", "network ls"):
        assert stack.run(f"docker {kind} --quiet --filter label=com.docker.compose.project={stack.project}") == ""
    assert stack.run(f"docker image ls --quiet '{stack.project}*'") == ""
