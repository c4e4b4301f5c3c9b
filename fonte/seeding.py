"""Fills Fonte's table through COPY, in the caller's transaction."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from psycopg2 import DataError, IntegrityError
from sqlalchemy import Connection, text

from fonte import schema, synthetic
from fonte_alvo import copy
from fonte_alvo.command import Failure, clean

START = date(2024, 5, 20)
DAYS = 10
RANDOM_SEED = 2024
PROFILES = {"turbine": synthetic.turbine, "uniform": synthetic.uniform}
# Bounds the memory of a long seed.
DAYS_PER_COPY = 60


class CsvError(Failure):
    """The CSV file cannot be loaded; nothing was."""

    exit_code = 2


class Filled(NamedTuple):
    """What became of the offered timestamps."""

    inserted: int
    kept: int


def seed_once(connection: Connection) -> None:
    """Create the table and fill it with the default days; do nothing where the table exists."""
    if schema.create_absent(connection):
        fill_synthetic(connection, START, DAYS, "turbine", RANDOM_SEED, lambda done, days: None)


def fill_synthetic(
    connection: Connection, start: date, days: int, profile: str, random_seed: int, progress: Callable[[int, int], None]
) -> Filled:
    """Fill whole UTC days with synthetic samples; what is there already keeps its values.

    progress is told days done and in all.
    """
    schema.create_absent(connection)
    inserted = kept = 0
    for columns in _synthetic(start, days, profile, random_seed):
        with _incoming(connection):
            copy.copy_in(connection, "incoming", columns)
            filled = _merge(connection)
        inserted, kept = inserted + filled.inserted, kept + filled.kept
        progress((inserted + kept) // synthetic.MINUTES_PER_DAY, days)
    return Filled(inserted, kept)


def copy_synthetic(connection: Connection, start: datetime, end: datetime, profile: str, random_seed: int) -> int:
    """Insert synthetic samples on every minute of [start, end), aware, which holds none; return their number."""
    first, last = start.astimezone(UTC).date(), (end.astimezone(UTC) - timedelta.resolution).date()
    bounds = [np.datetime64(bound.astimezone(UTC).replace(tzinfo=None)) for bound in (start, end)]
    rows = 0
    for columns in _synthetic(first, (last - first).days + 1, profile, random_seed):
        inside = (columns["timestamp"] >= bounds[0]) & (columns["timestamp"] < bounds[1])
        copy.copy_in(connection, "data", {name: values[inside] for name, values in columns.items()})
        rows += int(inside.sum())
    return rows


def _synthetic(start: date, days: int, profile: str, random_seed: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the columns of whole UTC days, a part at a time."""
    for done in range(0, days, DAYS_PER_COPY):
        first, count = start + timedelta(days=done), min(DAYS_PER_COPY, days - done)
        yield {"timestamp": synthetic.minutes(first, count), **PROFILES[profile](first, count, random_seed)}


def fill_from_csv(connection: Connection, file: Path) -> Filled:
    """Fill from a CSV file whose header names `timestamp` and some of the variables; what is there keeps its values.

    Naive timestamps mean UTC; an empty field is no value. Raises CsvError.
    """
    names = _csv_columns(file)
    schema.create_absent(connection)
    with file.open("rb") as stream, _incoming(connection):
        _copy_csv(connection, file, stream, names)
        contradiction = connection.scalar(
            text("SELECT timestamp FROM (SELECT DISTINCT * FROM incoming) AS d GROUP BY 1 HAVING count(*) > 1 LIMIT 1")
        )
        if contradiction is not None:
            raise CsvError(f"{file}: different rows for the timestamp {contradiction}: keep one of them")
        return _merge(connection)


@contextmanager
def _incoming(connection: Connection) -> Iterator[None]:
    connection.execute(text("CREATE TEMP TABLE incoming (LIKE data INCLUDING CONSTRAINTS) ON COMMIT DROP"))
    yield
    connection.execute(text("DROP TABLE incoming"))


def _merge(connection: Connection) -> Filled:
    merge = text("INSERT INTO data SELECT * FROM incoming ON CONFLICT (timestamp) DO NOTHING")
    inserted = connection.execute(merge).rowcount
    offered = connection.execute(text("SELECT count(DISTINCT timestamp) FROM incoming")).scalar_one()
    return Filled(inserted, offered - inserted)


def _csv_columns(file: Path) -> list[str]:
    if not file.is_file():
        raise CsvError(f"{file}: expected a file that is there and can be read twice, not a pipe or a folder")
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            names = next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CsvError(f"{file}: {error}") from error
    known = [column.name for column in schema.data.columns]
    if "timestamp" not in names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise CsvError(
            f"{file}: the header is {clean(', '.join(names)) or 'empty'}; "
            f"expected timestamp and some of {', '.join(known[1:])}, each once"
        )
    return names


def _copy_csv(connection: Connection, file: Path, stream: BinaryIO, names: list[str]) -> None:
    command = f"COPY incoming ({', '.join(names)}) FROM STDIN (FORMAT csv, HEADER)"
    try:
        connection.connection.cursor().copy_expert(command, stream)
    except (DataError, IntegrityError) as error:
        where = (error.diag.context or "").removeprefix("COPY incoming, ")
        raise CsvError(f"{file}: {clean(f'{error.diag.message_primary} ({where})')}") from error
