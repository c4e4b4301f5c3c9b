"""The pipeline's steps, which read the settings; Prefect's flows and `python -m brt` call them."""

import fcntl
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from brt import capture, load, settings
from fonte_alvo import engine
from fonte_alvo.command import Failure

log = logging.getLogger(__name__)
DBT_PROJECT = settings.PROJECT / "dbt"


class Busy(Failure):
    """Another process runs the same step."""

    exit_code = 6


class ModelError(Failure):
    """dbt failed."""

    exit_code = 5


def captures_folder() -> Path:
    """Return the folder of the captured files."""
    return settings.folder() / "captures"


def capture_once() -> Path:
    """Capture the API's current answer; returns its file. Raises SettingsError, CaptureError and Busy."""
    with alone("capture"):
        captured = capture.fetch(settings.api_url())
        file = capture.append(captures_folder(), captured, settings.capture_every_s())
        _report_changes(captured.differences)
    log.info("%s vehicles at %s to %s", len(captured.records), captured.captured_at.isoformat(), file)
    return file


def _report_changes(differences: Sequence[str]) -> None:
    """Warn of the differences of format that no earlier capture had."""
    reported = settings.folder() / "format.txt"
    with settings.file_failures(), reported.open("a+", encoding="utf-8", errors="replace") as file:
        file.seek(0)
        known = set(file.read().splitlines())
        new = [each for each in differences if each not in known]
        file.writelines(f"{each}\n" for each in new)
    if new:
        log.warning("the API's format has changed: %.1000s; all of it is kept", "; ".join(new))


def captured_just_now() -> bool:
    """Tell whether the last capture was written less than half an interval ago. Raises SettingsError."""
    newest = capture.files(captures_folder())[-1:]
    # A time in the future does not count: the clock was set back since.
    return any(0 <= time.time() - file.stat().st_mtime < settings.capture_every_s() / 2 for file in newest)


def load_new() -> load.Report:
    """Load the new and changed captures. Raises SettingsError, DatabaseError and Busy."""
    with alone("load"), database() as pool, settings.file_failures():
        report = load.load(pool, captures_folder())
    if not report.loaded + report.skipped:
        log.info("no capture is in %s: `make capture` makes one, `make start` one a minute", captures_folder())
        return report
    log.info("%s", report)
    if report.unread:
        which = ", ".join(f"{count:,} of {name}" for name, count in sorted(report.unread.items()))
        log.warning("unreadable values are NULL: %s; the column brt_raw.extra keeps them", which)
    if report.rejected and not report.faulty:
        log.warning("%s lines rejected; the table brt_reject has the reasons", f"{report.rejected:,}")
    return report


def refuse_faulty(report: load.Report) -> None:
    """Raise RejectedError if too many lines of a file are not signals."""
    if report.faulty:
        remedy = "the others are loaded, and the table brt_reject has the reasons"
        raise load.RejectedError(f"too many lines are not signals: {'; '.join(report.faulty):.500}; {remedy}")


def run_dbt(*arguments: str) -> None:
    """Run a command of dbt, such as `build`. Raises SettingsError, DatabaseError, ModelError and Busy."""
    # Imported here: a capture does not need it.
    from dbt.cli.main import dbtRunner

    with alone("dbt"), database() as pool:
        settings.give_dbt(pool.url)
        written = settings.folder() / "dbt"
        folders = ["--project-dir", DBT_PROJECT, "--profiles-dir", DBT_PROJECT, "--log-path", written / "logs"]
        result = dbtRunner().invoke([*arguments, *map(str, [*folders, "--target-path", written / "target"])])
    if not result.success:
        # dbt has logged the failure already.
        said = capture.clean(str(result.exception or "see its output above"))
        raise ModelError(f"dbt {' '.join(arguments)} failed: {said}; fix the cause and run `make run_dbt`")


def model() -> None:
    """Build and test the models, describe them, and check that the source is fresh. Raises the errors of run_dbt."""
    run_dbt("build")
    run_dbt("docs", "generate")
    run_dbt("source", "freshness")


def draw() -> Path:
    """Draw the last positions; returns the picture's file. Raises SettingsError and DatabaseError."""
    from brt.map import picture

    remedy = "the first load after `make start` creates the view, or run `make capture load run_dbt`"
    with database() as pool, pool.connect() as connection, engine.failures("BRT's database", remedy):
        query = "SELECT latitude, longitude, time, outside_city, clock_ahead FROM posicao_onibus"
        buses = connection.execute(text(query)).all()
    file = settings.folder() / "map.png"
    with settings.file_failures():
        file.write_bytes(picture(buses))
    return file


@contextmanager
def database() -> Iterator[Engine]:
    """Yield an engine of the pipeline's database, and report its failures. Raises SettingsError and DatabaseError."""
    with engine.failures("BRT's database", "set BRT_DATABASE_URL or BRT_POSTGRES_PORT, or fix the named cause"):
        pool = engine.create(settings.database_url(), "brt")
        try:
            yield pool
        finally:
            pool.dispose()


@contextmanager
def alone(step: str) -> Iterator[None]:
    """Keep other processes from running the same step. Raises Busy if one runs it, and SettingsError.

    A file's lock ends with its process, even a killed one; Prefect's concurrency limits outlive a killed run.
    """
    with settings.file_failures():
        settings.folder().mkdir(parents=True, exist_ok=True)
        lock = (settings.folder() / f"{step}.lock").open("ab")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another {step} still runs: nothing was done") from None
        yield
