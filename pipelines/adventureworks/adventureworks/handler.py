"""The Lambda function: streams the files from S3 into PostgreSQL, and returns the counts of their rows.

The event, all of it optional: {"mode": "replace" or "upsert", "files": ["Sales.Customer", ...], "allow_shrink": true,
"dialect": {"delimiter": ",", "header": false, "null": "", "decimal": "."}}. The result:
{"mode": ..., "files": {"Sales.Customer": {"rows": ..., "loaded": ..., "rejected": ..., "flagged": ...}}}.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from psycopg2 import Error, errors
from sqlalchemy.exc import SQLAlchemyError

from adventureworks import dialect, load, model, settings, stage
from fonte_alvo import engine
from fonte_alvo.command import Failure, clean

CHUNK_BYTES = 128 * 1024
# The time that the function keeps to roll back and report why.
MARGIN_S = engine.GRACE_S + 5
COUNTS = ("rows", "loaded", "rejected", "flagged")


class EventError(Failure):
    """The event has a wrong value; the message names the right ones."""


def lambda_handler(event: object, context: Any) -> dict[str, Any]:  # noqa: ANN401
    """Load the files that the event names. Raises EventError, SettingsError, FileError, DatabaseError."""
    plan = _plan(event)
    time_limit_s = max(1, context.get_remaining_time_in_millis() / 1000 - MARGIN_S)
    versions: dict[str, Any] = {}
    source, client = settings.source(), boto3.client("s3", config=settings.NETWORK)

    def tell(file: str, report: stage.Report) -> None:
        # One line of JSON per file: CloudWatch finds its fields, Airflow's log shows the last 4 KB.
        print(json.dumps({"file": file, **vars(report), "loaded": report.loaded, **versions[file]}), flush=True)

    with _failures(time_limit_s):
        pool = engine.create(settings.database_url(), "adventureworks", time_limit_s=time_limit_s)
        try:
            reports = load.load(pool, plan, lambda file: _content(client, source, file, versions), tell)
        finally:
            pool.dispose()
    counts = {file: {name: getattr(report, name) for name in COUNTS} for file, report in reports.items()}
    return {"mode": plan.mode, "files": counts}


def _plan(event: object) -> load.Plan:
    names = load.Plan._fields[:4]
    known = isinstance(event, dict) and set(event) <= set(names)
    _expect(known, "the event", event, f"an object with some of {', '.join(names)}")
    given = {name: value for name, value in dict(event).items() if value is not None}  # type: ignore[call-overload]
    plan = load.Plan(**({"files": list(model.TABLES)} | given))
    _expect(plan.mode in get_args(load.Mode), "mode", plan.mode, " or ".join(get_args(load.Mode)))
    known = isinstance(plan.files, list) and plan.files != [] and all(file in [*model.TABLES] for file in plan.files)
    _expect(known, "files", plan.files, f"a list of some of {', '.join(model.TABLES)}, or null for all")
    _expect(isinstance(plan.allow_shrink, bool), "allow_shrink", plan.allow_shrink, "true or false")
    known = isinstance(plan.dialect, dict) and set(plan.dialect) <= set(dialect.CHOICES)
    _expect(known, "dialect", plan.dialect, f"an object with some of {', '.join(dialect.CHOICES)}")
    for name, value in plan.dialect.items():
        choices = dialect.CHOICES[name]
        is_one = any(type(value) is type(choice) and value == choice for choice in choices)
        _expect(is_one, name, value, " or ".join(map(json.dumps, choices)))
    return plan._replace(limits=settings.limits())


def _expect(is_right: object, name: str, value: object, expected: str) -> None:
    if not is_right:
        raise EventError(f"{name} is {value!r:.200}: expected {expected}")


def key(source: settings.Source, file: str) -> str:
    """Return the key of a file: PREFIXsales/Sales.Customer.csv."""
    return f"{source.prefix}{model.TABLES[file].schema}/{file}.csv"


def _content(client: Any, source: settings.Source, file: str, versions: dict[str, Any]) -> Iterator[bytes]:  # noqa: ANN401
    """Stream an object; a second reading accepts only the same version. Raises FileError.

    botocore compares the length and the checksum that S3 sends, so a stream that breaks off is an error.
    """
    place = f"s3://{source.bucket}/{key(source, file)}"
    same = {"IfMatch": versions[file]["etag"]} if file in versions else {}
    try:
        answer = client.get_object(Bucket=source.bucket, Key=key(source, file), **same)
        versions[file] = {"version": answer.get("VersionId"), "etag": answer["ETag"], "bytes": answer["ContentLength"]}
        yield from answer["Body"].iter_chunks(CHUNK_BYTES)
    except (ClientError, BotoCoreError) as error:
        raise dialect.FileError(f"cannot be read from {place}: {clean(str(error))}; nothing was written") from error


@contextmanager
def _failures(time_limit_s: float) -> Iterator[None]:
    """Raise errors of the database as one line with the remedy, without values of rows."""
    end = time.monotonic() + time_limit_s
    with engine.failures("the database", "nothing was written: check the secret, the network and the server's log"):
        try:
            yield
        except (SQLAlchemyError, Error) as error:
            cause = getattr(error, "orig", None) or error
            said = isinstance(cause, Error) and _said(cause, time_limit_s, is_late=time.monotonic() > end)
            if not said:
                raise
            raise engine.DatabaseError(f"the database failed: {said}; nothing was written") from None


def _said(error: Error, time_limit_s: float, *, is_late: bool) -> str:
    """Return the cause and its remedy; empty if the server sent no message."""
    # A cut connection has no message. Others may cancel a statement, too, or set a shorter limit.
    if is_late and (isinstance(error, errors.QueryCanceled) or not error.diag.message_primary):
        left = f"the load took longer than {time_limit_s:.0f} s, the time that the function's timeout leaves it"
        return f"{left}: raise the function's timeout, or name fewer files in the event"
    if isinstance(error, errors.LockNotAvailable):
        held = f"another transaction held a lock for more than {engine.LOCK_TIMEOUT_S} s (lock timeout)"
        return f"{held}: invoke the function again when it has ended, or find it in pg_stat_activity and end it"
    # Errors of data and of constraints may repeat values, their details whole rows.
    personal = (error.pgcode or "").startswith(("22", "23"))
    return type(error).__name__ if personal else " ".join((error.diag.message_primary or "").split())[:500]
