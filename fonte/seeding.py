"""Fills Fonte's table through COPY. What is there already keeps its values."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple

from psycopg2 import DataError, IntegrityError
from sqlalchemy import Connection, Engine, func, select, text

from fonte import schema, synthetic
from postgres import copy

START = date(2024, 5, 20)
DAYS = 10
RANDOM_SEED = 2024
PROFILES = {"turbine": synthetic.turbine, "uniform": synthetic.uniform}
# Bounds the memory of a long seed.
DAYS_PER_COPY = 60


class CsvError(Exception):
    """The CSV file cannot be loaded; nothing was."""


class Filled(NamedTuple):
    """What became of the offered timestamps."""

    inserted: int
    kept: int


class Extent(NamedTuple):
    """What the table holds; the timestamps are None where it holds nothing."""

    first: datetime | None
    last: datetime | None
    rows: int


def seed_once(pool: Engine) -> None:
    """Create the table and fill it with the default days; do nothing where the table exists."""
    with pool.begin() as connection:
        if schema.create_absent(connection):
            _fill_synthetic(connection, START, DAYS, "turbine", RANDOM_SEED)


def fill_synthetic(
    pool: Engine, start: date, days: int, profile: str, random_seed: int, progress: Callable[[int], None]
) -> Filled:
    """Fill whole UTC days with synthetic samples, in one transaction; progress is called with the days done."""
    with pool.begin() as connection:
        schema.create_absent(connection)
        return _fill_synthetic(connection, start, days, profile, random_seed, progress)


def fill_from_csv(pool: Engine, file: Path) -> Filled:
    """Fill from a CSV file whose header names `timestamp` and some of the variables, in one transaction.

    Naive timestamps mean UTC; an empty field is no value. Raises CsvError.
    """
    names = _csv_columns(file)
    with pool.begin() as connection, file.open("rb") as stream:
        schema.create_absent(connection)
        connection.execute(text("SET LOCAL TIME ZONE 'UTC'"))
        with _incoming(connection):
            _copy_csv(connection, file, stream, names)
            _refuse_contradictions(connection, file)
            return _merge(connection)


def extent(pool: Engine) -> Extent:
    """Return the first and last timestamp and the number of rows."""
    timestamp = schema.data.c.timestamp
    with pool.connect() as connection:
        return Extent(*connection.execute(select(func.min(timestamp), func.max(timestamp), func.count())).one())


def _fill_synthetic(
    connection: Connection,
    start: date,
    days: int,
    profile: str,
    random_seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Filled:
    inserted = kept = 0
    for done in range(0, days, DAYS_PER_COPY):
        first, count = start + timedelta(days=done), min(DAYS_PER_COPY, days - done)
        columns = {"timestamp": synthetic.minutes(first, count), **PROFILES[profile](first, count, random_seed)}
        with _incoming(connection):
            copy.copy_in(connection, "incoming", columns)
            filled = _merge(connection)
        inserted, kept = inserted + filled.inserted, kept + filled.kept
        progress(done + count)
    return Filled(inserted, kept)


@contextmanager
def _incoming(connection: Connection) -> Iterator[None]:
    connection.execute(text("CREATE TEMP TABLE incoming (LIKE data INCLUDING CONSTRAINTS) ON COMMIT DROP"))
    yield
    connection.execute(text("DROP TABLE incoming"))


def _copy_csv(connection: Connection, file: Path, stream: BinaryIO, names: list[str]) -> None:
    command = f"COPY incoming ({', '.join(names)}) FROM STDIN (FORMAT csv, HEADER)"
    try:
        connection.connection.cursor().copy_expert(command, stream)
    except (DataError, IntegrityError) as error:
        where = (error.diag.context or "").removeprefix("COPY incoming, ")
        raise CsvError(f"{file}: {error.diag.message_primary} ({' '.join(where.split())})") from error


def _merge(connection: Connection) -> Filled:
    inserted = connection.execute(
        text("INSERT INTO data SELECT * FROM incoming ON CONFLICT (timestamp) DO NOTHING")
    ).rowcount
    offered = connection.scalar(text("SELECT count(DISTINCT timestamp) FROM incoming"))
    return Filled(inserted, int(offered or 0) - inserted)


def _refuse_contradictions(connection: Connection, file: Path) -> None:
    timestamp = connection.scalar(
        text("SELECT timestamp FROM (SELECT DISTINCT * FROM incoming) AS d GROUP BY 1 HAVING count(*) > 1 LIMIT 1")
    )
    if timestamp is not None:
        raise CsvError(f"{file}: different rows for the timestamp {timestamp}: keep one of them")


def _csv_columns(file: Path) -> list[str]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            names = next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError) as error:
        raise CsvError(f"{file}: {error}") from error
    known = [column.name for column in schema.data.columns]
    if "timestamp" not in names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise CsvError(
            f"{file}: the header is {', '.join(names) or 'empty'}; "
            f"expected timestamp and some of {', '.join(known[1:])}, each once"
        )
    return names
