"""The DAG in Airflow, and run.py as a user runs it."""

import os
import re
import signal

import psutil
import pytest

from adventureworks import handler, settings
from fonte_alvo.command import Failure
from local import airflow, cloud
from tests.conftest import ROOT, python, rejects


def test_too_many_rejects_fail_the_dag_after_its_retries_with_the_counts_in_its_log(tmp_path, pool):
    database = pool.url.render_as_string(hide_password=False)
    with cloud.running(database) as running:
        cloud.fill(running.s3_url)
        body = cloud.sample("Sales.Customer").replace(b":07.263\r", b":7.263\r", 1_000)
        key = handler.key(settings.Source(cloud.BUCKET, ""), "Sales.Customer")
        cloud.client("s3", running.s3_url).put_object(Bucket=cloud.BUCKET, Key=key, Body=body)
        run = airflow.run_dag(airflow.environment(tmp_path, running.lambda_url), {"files": ["Sales.Customer"]})
    assert run.returncode == 1
    assert "Lambda function execution resulted in error" in run.stdout
    assert "Sales.Customer has 1,000 rows of 19,820 that cannot be loaded" in run.stdout
    # The function's line of the log.
    assert '"rows": 19820, "unreadable": 1000, "rejected": 1000' in run.stdout
    assert "line 2: ModifiedDate '2014-09-12 11:15:7.263' is no time" in run.stdout
    assert run.stdout.count("Invoking AWS Lambda function") == 3


@pytest.mark.parametrize(
    "start", [lambda variables: airflow.run_dag(variables, {}), airflow.serve], ids=["run", "serve"]
)
def test_a_failed_migration_of_airflow_is_reported_with_its_reason(tmp_path, monkeypatch, start):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    broken = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////dev/null/airflow.db"}
    with pytest.raises(Failure, match=r"^airflow db migrate failed: .*unable to open database file") as failure:
        start(airflow.environment(tmp_path, "http://127.0.0.1:1") | broken)
    assert "\n" not in str(failure.value)


# Settings that a machine may have.
FOREIGN = {
    "HTTP_PROXY": "http://127.0.0.1:1",
    "http_proxy": "http://127.0.0.1:1",
    "ADVENTUREWORKS_PREFIX": "elsewhere/",
    "AWS_PROFILE": "absent",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
}


def test_one_command_runs_everything_and_leaves_no_process_behind(pool):
    """The machine's settings do not reach it, and without a terminal it shows no progress."""
    database = pool.url.render_as_string(hide_password=False)
    before = {process.pid for process in psutil.process_iter()}
    run = python("run.py", **FOREIGN, ADVENTUREWORKS_DATABASE_URL=database)
    assert (run.returncode, run.stderr) == (0, "")
    [shown] = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert run.stdout.startswith(shown)
    counts = [line.strip() for line in run.stdout.splitlines() if line.endswith(" rows")]
    assert counts == ["332 rows", "11 rows", "1,359 rows", "1,194 rows", "138 rows"]
    assert len(rejects(pool)) == 54
    mine = {process.pid for process in psutil.process_iter() if process.ppid() == os.getpid()} - before
    assert mine == set()
    left = [
        process for process in psutil.process_iter(["cmdline"]) if "awslambdaric" in (process.info["cmdline"] or [])
    ]
    assert {process.pid for process in left} <= before


def test_an_unusable_database_url_fails_the_one_command_on_one_line():
    run = python("run.py", ADVENTUREWORKS_DATABASE_URL="mysql://u:s3cr3t@h/d")
    assert run.returncode == 2
    assert run.stderr.startswith("run.py: ADVENTUREWORKS_DATABASE_URL is not a URL of PostgreSQL")
    assert run.stderr.count("\n") == 1
