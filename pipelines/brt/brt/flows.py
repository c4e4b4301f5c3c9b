"""Prefect's flows: they run the pipeline's steps at their times."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import Flow, flow, serve, task
from prefect.client.schemas.objects import State
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Interval
from prefect.states import Completed
from prefect.types.entrypoint import EntrypointType

from brt import pipeline, services, settings
from brt.capture import CAPTURES_PER_FILE

# A hung run ends within two default intervals.
CAPTURE_TIMEOUT_S = 100
LOAD_TIMEOUT_S = 600
# Concurrent processes: a load, a capture, and a run that is left out.
PROCESSES = 3

# Prefect's log of a run takes the steps' INFO messages.
logging.getLogger("brt").setLevel(logging.INFO)

load_files = task(name="load files")(pipeline.load_new)
run_dbt = task(name="dbt")(pipeline.model)


@flow(name="capture", timeout_seconds=CAPTURE_TIMEOUT_S)
def capture() -> State | str:
    """Capture the API's current answer; of several late runs at once, only the first one captures."""
    if pipeline.captured_just_now():
        return _left_out("the last capture was a moment ago: this run is too late")
    try:
        return str(pipeline.capture_once())
    except pipeline.Busy as busy:
        return _left_out(str(busy))


@flow(name="load", timeout_seconds=LOAD_TIMEOUT_S)
def load() -> State | None:
    """Load the new and changed files, then run dbt; a run that overlaps another one is left out."""
    try:
        report = load_files()
        try:
            run_dbt()
        finally:
            pipeline.refuse_faulty(report)
    except pipeline.Busy as busy:
        return _left_out(str(busy))
    return None


def _left_out(why: str) -> State:
    return Completed(name="Left out", message=why)


def serve_both() -> None:
    """Run both flows at their times, until SIGTERM."""
    services.wait_for_prefect()
    now = datetime.now(UTC)
    capture_s, load_s = settings.capture_every_s(), settings.load_every_s()
    # Captures run on whole minutes, the first load just after the first ten of them.
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    ten_captures = now + timedelta(seconds=(CAPTURES_PER_FILE + 0.5) * capture_s)
    serve(
        _deployment(capture, "capture", capture_s, midnight),
        _deployment(load, "load", load_s, ten_captures),
        limit=PROCESSES,
        print_starting_message=False,
    )


def _deployment(of: Flow[..., Any], name: str, every_s: int, first: datetime) -> RunnerDeployment:
    schedule = Interval(timedelta(seconds=every_s), anchor_date=first)
    # Given a script's path, Prefect would put brt/ on sys.path, where its modules may hide others.
    by = EntrypointType.MODULE_PATH
    return RunnerDeployment.from_flow(of, settings.DEPLOYMENTS[name], schedule=schedule, entrypoint_type=by)
