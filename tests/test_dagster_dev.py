"""`python -m orchestration` in a fresh checkout: the whole of Dagster, over GraphQL and as a browser shows it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from fnmatch import fnmatch

import httpx
import psutil
import pytest
from support.project import ROOT, SETTINGS

pytest.importorskip("dagster", reason="tox -e orchestration has it")
playwright = pytest.importorskip("playwright.sync_api", reason="tox -e orchestration has it")

ASSET = "/assets/ten_minute_statistics"
DAYS = [f"2024-05-{day}" for day in range(20, 30)]
# Chromium as Debian packages it, without its own talk to the network.
BROWSER = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A checkout in which nothing has run yet."""
    clone = tmp_path_factory.mktemp("clone") / "fonte-alvo"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "mutants", "*.egg-info"))
    return clone


@pytest.fixture(scope="module")
def log(clone):
    return clone.parent / "log"


@pytest.fixture(scope="module")
def dagster(clone, log):
    """Dagster, started by the one command; gives its URL and its process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in {*SETTINGS, "DAGSTER_HOME"}}
    command = [sys.executable, "-m", "orchestration.dagster", "--port", str(port)]
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=clone, env=environment, stdout=output, stderr=output) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        while not answers(url):
            assert process.poll() is None, log.read_text()
        yield url, process
        process.send_signal(signal.SIGINT)


def answers(url):
    try:
        return httpx.get(f"{url}/server_info").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def ask(dagster):
    """Ask Dagster in GraphQL."""

    def ask(query, **variables):
        answer = httpx.post(f"{dagster[0]}/graphql", json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer
        return answer["data"]

    return ask


@pytest.fixture
def selector(ask):
    """What names the definitions in GraphQL."""
    query = "{repositoriesOrError {... on RepositoryConnection {nodes {name location {name}}}}}"
    (repository,) = ask(query)["repositoriesOrError"]["nodes"]
    return {"repositoryName": repository["name"], "repositoryLocationName": repository["location"]["name"]}


@pytest.fixture
def page(dagster):
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "the browser tests need Chromium: apt-get install chromium"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=BROWSER)
        page = browser.new_page(base_url=dagster[0], viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def backfill(ask):
    """Fill the ten days; gives the finished backfill."""
    launch = """mutation ($p: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $p) {
        ... on LaunchBackfillSuccess {backfillId}
    }}"""
    asked = {"assetSelection": [{"path": ["ten_minute_statistics"]}], "partitionNames": DAYS}
    backfill_id = ask(launch, p=asked)["launchPartitionBackfill"]["backfillId"]
    look = """query ($id: String!) {partitionBackfillOrError(backfillId: $id) {
        ... on PartitionBackfill {status runs {status startTime endTime}}
    }}"""
    while (found := ask(look, id=backfill_id)["partitionBackfillOrError"])["status"] == "REQUESTED":
        pass
    return found


@pytest.fixture(scope="module")
def backfilled(ask):
    """The finished backfill of the ten days."""
    return backfill(ask)


def test_ten_days_are_filled_in_one_run(backfilled, ask):
    assert backfilled["status"] == "COMPLETED_SUCCESS"
    assert [run["status"] for run in backfilled["runs"]] == ["SUCCESS"]
    query = """{assetNodeOrError(assetKey: {path: ["ten_minute_statistics"]}) {... on AssetNode {
        partitionStats {numMaterialized numFailed}
    }}}"""
    assert ask(query)["assetNodeOrError"]["partitionStats"] == {"numMaterialized": 10, "numFailed": 0}


def test_the_schedule_is_on_for_six_in_the_morning(ask, selector):
    query = """query ($s: ScheduleSelector!) {scheduleOrError(scheduleSelector: $s) {... on Schedule {
        scheduleState {status} futureTicks(limit: 2) {results {timestamp}}
    }}}"""
    schedule = ask(query, s={**selector, "scheduleName": "daily"})["scheduleOrError"]
    assert schedule["scheduleState"]["status"] == "RUNNING"
    ticks = [datetime.fromtimestamp(tick["timestamp"], UTC) for tick in schedule["futureTicks"]["results"]]
    assert [(tick.hour, tick.minute) for tick in ticks] == [(6, 0), (6, 0)]


def launched(ask, selector, job, tags, run_config):
    """Launch a run; gives its id."""
    query = """mutation ($p: ExecutionParams!) {launchRun(executionParams: $p) {
        __typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}
    }}"""
    job = {**selector, "jobName": job}
    metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
    answer = ask(query, p={"selector": job, "runConfigData": run_config, "executionMetadata": metadata})["launchRun"]
    return answer["run"]["runId"]


def finished(ask, run_ids):
    """The runs, when all have ended."""
    query = """query ($f: RunsFilter!) {runsOrError(filter: $f) {... on Runs {results {
        runId status startTime endTime
    }}}}"""
    while True:
        runs = ask(query, f={"runIds": run_ids})["runsOrError"]["results"]
        if all(run["endTime"] for run in runs):
            return runs


def test_the_launchpad_takes_the_run_configuration_as_it_is_written(ask, selector):
    run_id = launched(ask, selector, "etl", {}, (ROOT / "orchestration/dagster/etl.yaml").read_text())
    assert [run["status"] for run in finished(ask, [run_id])] == ["SUCCESS"]


def test_of_many_runs_at_once_two_ask_fonte(ask, selector, backfilled):
    run_ids = [launched(ask, selector, "materialize_ten_minute_statistics", {"dagster/partition": day}, {}) for day in DAYS[:4]]
    runs = finished(ask, run_ids)
    assert {run["status"] for run in runs} == {"SUCCESS"}
    moments = sorted([(run["startTime"], 1) for run in runs] + [(run["endTime"], -1) for run in runs])
    at_once = [sum(change for _, change in moments[: number + 1]) for number in range(len(moments))]
    assert max(at_once) <= 2


def test_the_browser_shows_the_day_its_picture_and_its_checks(page, backfilled):
    page.goto(f"{ASSET}?view=partitions&partition=2024-05-21")
    page.get_by_text("Materialized (10)").wait_for()
    page.get_by_text("1,440 of 1,440 samples (100.0%), 144 windows").first.wait_for()
    page.get_by_text("[Show Markdown]").click()
    picture = page.locator('img[src^="data:image/png"]')
    picture.wait_for()
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [810, 427]
    page.goto(f"{ASSET}?view=checks")
    for name in ("rows_match_coverage", "mean_between_min_and_max", "no_nan", "fresh"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text("Checks (4)").wait_for()
    assert page.get_by_text("Succeeded").count() == 4


def test_the_browser_shows_the_schedule_on(page):
    page.goto("/automation")
    page.get_by_text("Scheduled At 06:00 AM UTC").wait_for()
    # The first box selects the row, the last one is the switch.
    assert page.locator('input[type="checkbox"]').last.is_checked()


def test_nothing_nags_and_everything_is_kept_in_ignored_folders(clone, log, backfilled):
    told = log.read_text().lower()
    assert "telemetry" not in told
    assert "warning" not in told
    made = {path.name + "/" for path in clone.iterdir()} - {path.name + "/" for path in ROOT.glob("[!.]*")}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert all(any(fnmatch(name, pattern) for pattern in ignored) for name in made)
    assert {".dagster/", ".embedded/"} <= made


def test_ctrl_c_stops_them_all(dagster, clone, log):
    url, process = dagster
    of_the_clone = [other for other in psutil.process_iter() if str(clone) in " ".join(arguments(other))]
    everything = {*of_the_clone, *psutil.Process(process.pid).children(recursive=True)}
    assert any("postgres" in arguments(other)[0] for other in everything)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    _, alive = psutil.wait_procs(everything, timeout=30)
    assert alive == []
    assert not answers(url)
    assert "Dagster services shut down." in log.read_text()
    assert list(clone.glob(".tmp_dagster_home_*")) == []


def arguments(process):
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]
