"""`python -m orchestration.dagster` in a fresh checkout, over GraphQL and in a browser."""

import re
import signal
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch

import psutil
import pytest
from support.browser import launched as chromium
from support.dagster_services import DAYS, EMPTY, LAST, answers, backfill, client, definitions, started
from support.project import ROOT, wait_until

dg = pytest.importorskip("dagster", reason="tox -e orchestration has it")
pytest.importorskip("playwright.sync_api", reason="tox -e orchestration has it")

from dagster._core.scheduler.instigation import ScheduleInstigatorData  # noqa: E402

from orchestration.dagster.quality import CHECKS, COMPLETE  # noqa: E402

ASSET = "/assets/ten_minute_statistics"


@pytest.fixture
def selector(ask):
    return definitions(ask)


@pytest.fixture
def page(dagster):
    with chromium() as browser:
        page = browser.new_page(base_url=dagster[0], viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        yield page


@pytest.fixture(scope="module")
def backfilled(ask):
    """The finished backfill of the last ten days."""
    return backfill(ask, LAST)


FRESHNESS = """{assetNodeOrError(assetKey: {path: ["alvo_data"]}) {... on AssetNode {
    freshnessStatusInfo {freshnessStatus}
}}}"""


def fresh(ask):
    return ask(FRESHNESS)["assetNodeOrError"]["freshnessStatusInfo"]["freshnessStatus"]


def test_partitions_start_where_fontes_data_start(ask):
    query = """{assetNodeOrError(assetKey: {path: ["ten_minute_statistics"]}) {... on AssetNode {partitionKeys}}}"""
    assert ask(query)["assetNodeOrError"]["partitionKeys"] == [*DAYS, *LAST]


def test_a_load_of_old_days_does_not_make_alvo_fresh(ask):
    assert backfill(ask, DAYS[:2])["status"] == "COMPLETED_SUCCESS"
    assert fresh(ask) == "UNKNOWN"


def test_one_run_carries_ten_days_of_which_two_are_empty(backfilled, ask):
    assert backfilled["status"] == "COMPLETED_SUCCESS"
    assert [run["status"] for run in backfilled["runs"]] == ["SUCCESS"]
    query = """query ($k: AssetKeyInput!, $days: [String!]) {assetNodeOrError(assetKey: $k) {... on AssetNode {
        partitionStats {numMaterialized numFailed}
        assetMaterializations(partitions: $days) {partition metadataEntries {label}}
    }}}"""
    node = ask(query, k={"path": ["ten_minute_statistics"]}, days=LAST)["assetNodeOrError"]
    assert node["partitionStats"] == {"numMaterialized": 12, "numFailed": 0}
    made = {each["partition"]: each["metadataEntries"] for each in node["assetMaterializations"]}
    labels = {day: {entry["label"] for entry in entries} for day, entries in made.items()}
    assert {day for day in LAST if "empty" in labels[day]} == EMPTY
    assert {day for day in LAST if "picture" in labels[day]} == set(LAST) - EMPTY


def test_the_load_of_yesterday_makes_alvo_fresh(ask, backfilled):
    # The daemon checks the freshness twice a minute.
    wait_until(lambda: fresh(ask) != "UNKNOWN")
    assert fresh(ask) == "HEALTHY"


def test_the_schedule_is_on_for_six_in_the_morning(ask, selector):
    query = """query ($s: ScheduleSelector!) {scheduleOrError(scheduleSelector: $s) {... on Schedule {
        scheduleState {status} futureTicks(limit: 2) {results {timestamp}}
    }}}"""
    schedule = ask(query, s={**selector, "scheduleName": "daily"})["scheduleOrError"]
    assert schedule["scheduleState"]["status"] == "RUNNING"
    ticks = [datetime.fromtimestamp(tick["timestamp"], UTC) for tick in schedule["futureTicks"]["results"]]
    assert [(tick.hour, tick.minute) for tick in ticks] == [(6, 0), (6, 0)]


def launched(ask, selector, job, tags, run_config):
    """Launch a run; return its id."""
    query = """mutation ($p: ExecutionParams!) {launchRun(executionParams: $p) {
        __typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}
    }}"""
    job = {**selector, "jobName": job}
    metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
    answer = ask(query, p={"selector": job, "runConfigData": run_config, "executionMetadata": metadata})["launchRun"]
    assert "run" in answer, answer
    return answer["run"]["runId"]


def finished(ask, run_ids):
    """Wait until all runs have ended, and return them."""
    query = """query ($f: RunsFilter!) {runsOrError(filter: $f) {... on Runs {results {
        runId status startTime endTime
    }}}}"""
    while True:
        runs = ask(query, f={"runIds": run_ids})["runsOrError"]["results"]
        if all(run["endTime"] for run in runs):
            return runs


def test_the_launchpad_accepts_the_run_configuration_of_etl_yaml(ask, selector):
    written = (ROOT / "orchestration/dagster/etl.yaml").read_text()
    run_id = launched(ask, selector, "etl", {}, written.replace("2024-05-20", DAYS[0]).replace("2024-05-22", DAYS[2]))
    assert [run["status"] for run in finished(ask, [run_id])] == ["SUCCESS"]


def test_a_secret_in_a_run_configuration_is_stored_nowhere(ask, selector, clone, log):
    url = {"config": {"url": "postgresql://user:not-to-be-kept@host/alvo"}}
    launch = """mutation ($p: ExecutionParams!) {launchRun(executionParams: $p) {
        __typename ... on PythonError {message}
    }}"""
    asked = {"selector": {**selector, "jobName": "etl"}, "runConfigData": {"resources": {"alvo": url}}}
    answer = ask(launch, p=asked)["launchRun"]
    assert answer["__typename"] == "PythonError"
    assert "may hold no password, as it is shown: `url: {env: NAME}`" in answer["message"]
    kept = [log, *(path for path in (clone / ".dagster").rglob("*") if path.is_file())]
    assert [path for path in kept if b"not-to-be-kept" in path.read_bytes()] == []


def test_at_most_two_runs_ask_fonte_at_once(ask, selector, backfilled):
    run_ids = [
        launched(ask, selector, "materialize_ten_minute_statistics", {"dagster/partition": day}, {}) for day in DAYS[:4]
    ]
    runs = finished(ask, run_ids)
    assert {run["status"] for run in runs} == {"SUCCESS"}
    moments = sorted([(run["startTime"], 1) for run in runs] + [(run["endTime"], -1) for run in runs])
    at_once = [sum(change for _, change in moments[: number + 1]) for number in range(len(moments))]
    assert max(at_once) <= 2


def test_the_browser_shows_the_day_and_its_pictures_in_place(page, backfilled):
    page.goto(f"{ASSET}?view=partitions&partition={LAST[-1]}")
    page.get_by_text(re.compile(r"Materialized \(1\d\)")).wait_for()
    page.get_by_text("1,440 of 1,440 samples (100.0%), 144 windows").first.wait_for()
    pictures = page.locator('img[src^="data:image/webp"]')
    assert pictures.count() == 2
    for number in range(2):
        size = pictures.nth(number).evaluate("image => [image.complete, image.naturalWidth, image.naturalHeight]")
        assert size == [True, 288, 80]
    page.get_by_text("[Show Markdown]").click()
    picture = page.locator('img[src^="data:image/png"]')
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") == 1600


def test_the_browser_shows_why_a_day_is_empty(page, backfilled):
    page.goto(f"{ASSET}?view=partitions&partition={LAST[3]}")
    page.get_by_text(f"Fonte holds no finite sample of wind_speed, power from {LAST[3]}").first.wait_for()
    assert page.get_by_role("row").filter(has_text="empty").filter(has_text="true").count() == 1


def test_the_browser_shows_the_checks_of_good_days_beside_those_of_an_empty_one(page, backfilled):
    page.goto(f"{ASSET}?view=checks")
    for name in CHECKS:
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text(f"Checks ({len(CHECKS)})").wait_for()
    # Dagster shows each check's worst day.
    assert page.get_by_text("Succeeded").count() == len(CHECKS) - 1
    page.goto(f"{ASSET}?view=checks&checkDetail={COMPLETE}")
    # The first tab is the asset's.
    page.get_by_role("tab", name="Partitions").nth(1).click()
    page.get_by_text(re.compile(r"Passed \((8|1\d)\)")).first.wait_for()
    page.get_by_text("Failed (2)").first.wait_for()


def test_the_launchpad_of_the_job_opens_filled_and_without_an_error(page, ask, selector):
    page.goto(f"/locations/{selector['repositoryLocationName']}/jobs/etl/playground")
    page.get_by_text("No errors").wait_for()
    page.get_by_text("start_date").first.wait_for()
    assert page.get_by_text("yesterday").count() == 2


def test_the_browser_shows_the_lineage_of_the_data(page, backfilled):
    page.goto("/asset-groups")
    for name in ("fonte_data", "ten_minute_statistics", "alvo_data"):
        page.get_by_text(name, exact=True).first.wait_for()


def test_the_browser_shows_the_schedule_on(page):
    page.goto("/automation")
    page.get_by_text("Scheduled At 06:00 AM UTC").wait_for()
    # The first box selects the row; the last one switches the schedule.
    wait_until(page.locator('input[type="checkbox"]').last.is_checked)


def test_the_log_has_no_warning_and_every_new_folder_is_ignored(clone, log, backfilled):
    logged = log.read_text().lower()
    assert "telemetry" not in logged
    assert [line for line in logged.splitlines() if "warning" in line and "is empty" not in line] == []
    assert "temporary" not in logged
    made = {path.name + "/" for path in clone.iterdir() if path.is_dir()} - {
        path.name + "/" for path in ROOT.glob("[!.]*")
    }
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert all(any(fnmatch(name, pattern) for pattern in ignored) for name in made)
    assert {".dagster/", ".embedded/"} <= made


def test_ctrl_c_stops_every_process(dagster, clone, log):
    url, process = dagster
    of_the_clone = [other for other in psutil.process_iter() if str(clone) in " ".join(arguments(other))]
    everything = {*of_the_clone, *family(process)}
    assert any("postgres" in arguments(other)[0] for other in everything)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    _, alive = psutil.wait_procs(everything, timeout=30)
    assert alive == []
    assert not answers(url)
    assert "Dagster services shut down." in log.read_text()
    assert list(clone.glob(".tmp_dagster_home_*")) == []


@pytest.fixture(scope="module")
def woken(clone, tmp_path_factory):
    """Dagster on a machine that was off at the scheduled time: its URL, its process and that time."""
    tick = datetime.now(UTC).replace(hour=6, minute=0, second=0, microsecond=0)
    tick -= timedelta(days=tick > datetime.now(UTC))
    with dg.DagsterInstance.from_config(str(clone / ".dagster")) as instance:
        (state,) = instance.all_instigator_state()
        slept = ScheduleInstigatorData("0 6 * * *", (tick - timedelta(hours=1)).timestamp())
        instance.update_instigator_state(state.with_data(slept))
    with started(clone, tmp_path_factory.mktemp("woken") / "log") as (url, process):
        yield url, process, tick


def test_a_tick_of_the_schedule_loads_the_day_before(woken):
    url, _, tick = woken
    ask = client(url)
    query = "query ($f: RunsFilter!) {runsOrError(filter: $f) {... on Runs {results {runId tags {key value}}}}}"
    daily = {"tags": [{"key": "dagster/schedule_name", "value": "daily"}]}
    runs = {}
    while str(tick.date() - timedelta(days=1)) not in runs:
        for run in ask(query, f=daily)["runsOrError"]["results"]:
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            runs[tags["dagster/partition"]] = run["runId"]
    # The others are late days.
    assert runs.keys() <= {str(tick.date() - timedelta(days=number)) for number in range(1, 8)}
    assert {run["status"] for run in finished(ask, list(runs.values()))} == {"SUCCESS"}


def test_a_run_whose_container_dies_fails_at_its_time_limit(woken):
    """Its code server dies with it, as in a container."""
    ask = client(woken[0])
    long = {"ops": {"run_etl": {"config": {"start_date": "2000-01-01"}}}}
    run_id = launched(ask, definitions(ask), "etl", {"dagster/max_runtime": "1"}, long)
    logs = """query ($id: ID!) {logsForRun(runId: $id) {... on EventConnection {
        events {... on MessageEvent {message}}
    }}}"""

    def messages():
        return "\n".join(event["message"] for event in ask(logs, id=run_id)["logsForRun"]["events"])

    while not (worker := re.search(r"Executing steps in process \(pid: (\d+)\)", messages())):
        pass
    worker = psutil.Process(int(worker[1]))
    for each in (worker.parent(), worker):
        each.kill()
    assert [run["status"] for run in finished(ask, [run_id])] == ["FAILURE"]
    assert "Canceling due to exceeding maximum runtime of 1 seconds." in messages()


def test_a_killed_command_takes_dagster_with_it(woken):
    _, process, _ = woken
    everything = family(process)
    assert everything
    process.kill()
    _, alive = psutil.wait_procs(everything, timeout=60)
    assert alive == []


def family(process):
    return psutil.Process(process.pid).children(recursive=True)


def arguments(process):
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]
