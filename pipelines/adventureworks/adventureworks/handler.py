"""The Lambda function: streams the files from S3 into PostgreSQL, and returns what became of their rows.

The event, all of it optional: {"mode": "replace" or "upsert", "files": ["Sales.Customer", ...]}. The result:
{"mode": ..., "files": {"Sales.Customer": {"rows": ..., "loaded": ..., "rejected": ..., "flagged": ...}}}.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, get_args

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from adventureworks import dialect, load, model, settings
from fonte_alvo import engine

CHUNK_BYTES = 256 * 1024
# What the function needs at its end to roll back and to tell why.
MARGIN_S = engine.GRACE_S + 5
MODES = get_args(load.Mode)


class EventError(Exception):
    """The event asks for what is not there; the message says what is."""


class Context(Protocol):
    """What the function needs of Lambda's context."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda ends the function."""


def lambda_handler(event: object, context: Context) -> dict[str, Any]:
    """Load the files that the event names. Raises EventError, SettingsError, FileError, DatabaseError."""
    mode, files = _asked(event)
    time_limit_s = max(1, context.get_remaining_time_in_millis() / 1000 - MARGIN_S)
    source = settings.source()
    client = boto3.client("s3", config=settings.NETWORK)
    with engine.failures("the database", "nothing was written: check the secret, the network and the server's log"):
        pool = engine.create(settings.database_url(), "adventureworks", time_limit_s=time_limit_s)
        try:
            reports = load.load(pool, files, mode, lambda file: _content(client, source, file))
        finally:
            pool.dispose()
    return {"mode": mode, "files": {file: report._asdict() for file, report in reports.items()}}


def _asked(event: object) -> tuple[load.Mode, Sequence[str]]:
    if not isinstance(event, dict):
        raise EventError(f"the event is {event!r}: expected an object with mode and files, each of them optional")
    if unknown := sorted(set(event) - {"mode", "files"}):
        raise EventError(f"the event has {unknown[0]!r}: expected mode and files")
    mode, files = event.get("mode", "replace"), event.get("files")
    if files is None:
        files = list(model.TABLES)
    if mode not in MODES:
        raise EventError(f"mode is {mode!r}: expected {' or '.join(MODES)}")
    if not isinstance(files, list) or not files:
        raise EventError(f"files is {files!r}: expected a list of names, or null for all of them")
    for file in files:
        if not isinstance(file, str) or file not in model.TABLES:
            raise EventError(f"there is no file {file!r}: expected some of {', '.join(model.TABLES)}")
    return mode, files


def key(source: settings.Source, file: str) -> str:
    """Return the key of a file: PREFIXsales/Sales.Customer.csv."""
    return f"{source.prefix}{model.TABLES[file].schema}/{file}.csv"


def _content(client: Any, source: settings.Source, file: str) -> Iterator[bytes]:  # noqa: ANN401
    """Stream an object; one that S3 breaks off is an error, never an end."""
    place = f"s3://{source.bucket}/{key(source, file)}"
    try:
        body = client.get_object(Bucket=source.bucket, Key=key(source, file))["Body"]
        yield from body.iter_chunks(CHUNK_BYTES)
    except (ClientError, BotoCoreError) as error:
        raise dialect.FileError(f"cannot be read from {place}: {error}; nothing was written") from error
