"""Fills Fonte's table by COPY, in the caller's transaction."""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine, text

from fonte import schema, synthetic
from fonte_alvo import copy
from fonte_alvo.command import Failure

START = date(2024, 5, 20)
DAYS = 10
RANDOM_SEED = 2024
PROFILES = {"turbine": synthetic.turbine, "uniform": synthetic.uniform}
LIVE_DAYS = 10
NAMES = [each.name for each in schema.VARIABLES]

Columns = dict[str, npt.NDArray[Any]]


class Contradiction(Failure):
    """The offered rows hold two values of one variable for one timestamp; nothing was written."""

    exit_code = 2


class UnfitTable(Failure):
    """The table cannot take our rows; the message names what prevents it. Nothing was written."""

    exit_code = 3


class Merged(NamedTuple):
    """Numbers of offered timestamps: new, already present, and of the present ones filled and differing."""

    inserted: int = 0
    present: int = 0
    filled: int = 0
    differing: int = 0


def seed_once(connection: Connection) -> None:
    """Create the table and fill it with the default days; do nothing where the table exists."""
    if schema.create_absent(connection):
        fill_synthetic(connection, midnight(START), midnight(START, DAYS), "turbine", RANDOM_SEED)


def midnight(day: date, days_later: int = 0) -> datetime:
    """Return the beginning of a UTC day."""
    return datetime.combine(day + timedelta(days=days_later), clock(), UTC)


def fill_synthetic(
    connection: Connection, start: datetime, end: datetime, profile: str, random_seed: int, step_minutes: int = 1
) -> Merged:
    """Merge synthetic samples of [start, end), aware, one every step_minutes from its first minute on."""
    bounds = [bound.astimezone(UTC).replace(tzinfo=None) for bound in (start, end)]
    day = bounds[0].date()
    days = ((bounds[1] - timedelta.resolution).date() - day).days + 1
    columns: Columns = {"timestamp": synthetic.minutes(day, days), **PROFILES[profile](day, days, random_seed)}
    since_start = columns["timestamp"] - np.datetime64(bounds[0], "us")
    inside = (since_start >= np.timedelta64(0, "us")) & (columns["timestamp"] < np.datetime64(bounds[1], "us"))
    wanted = inside & (since_start // np.timedelta64(1, "m") % step_minutes == 0)
    return merge(connection, [{name: values[wanted] for name, values in columns.items()}])


def total(parts: Iterable[Merged]) -> Merged:
    """Add up the numbers of several merges."""
    return Merged(*map(sum, zip(Merged(), *parts, strict=True)))


def live(pool: Engine, profile: str, random_seed: int, stop: Event) -> Iterator[Merged]:
    """Fill the minutes from the last row, ten days ago at most, to now, and then each minute, until stop is set."""
    while True:
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        with pool.begin() as connection:
            schema.create_absent(connection)
            query = "SELECT max(timestamp)::timestamptz FROM data WHERE timestamp <= :now"
            last = connection.scalar(text(query), {"now": now})
            start = max(now - timedelta(days=LIVE_DAYS), (last or midnight(date.min)) + timedelta.resolution)
            merged = fill_synthetic(connection, start, now + timedelta(minutes=1), profile, random_seed)
        yield merged
        if stop.wait(60 - time.time() % 60):
            return


def _each(pattern: str, separator: str = ", ") -> str:
    return separator.join(pattern.format(name) for name in NAMES)


# Finds an offered timestamp that the table does not hold once, or without an offered value. Only these tables may lose
# what they receive; elsewhere the comparison would only make a seed 10 to 50 % slower.
_CHANGED = text(f"""
    SELECT offered.timestamp FROM pg_temp.incoming AS offered LEFT JOIN data AS held USING (timestamp)
    WHERE (SELECT relhastriggers OR relhassubclass OR atttypmod >= 0 FROM pg_class JOIN pg_attribute
        ON attrelid = pg_class.oid WHERE attname = 'timestamp' AND attrelid = to_regclass('data'))
    GROUP BY offered.timestamp HAVING (min(held.tableoid) = max(held.tableoid)) IS NOT TRUE
        OR bool_or({_each("offered.{0} <> 'NaN' AND held.{0} IS NULL", " OR ")}) LIMIT 1
""")


def merge(
    connection: Connection, batches: Iterable[Columns], source: str = "synthetic", *, replace: bool = False
) -> Merged:
    """Merge columns, NaN where there is no value; a value of the table stays unless replace is set.

    A NULL or NaN of the table is filled. source names the rows in the message of Contradiction. Raises Contradiction
    and UnfitTable.
    """
    if obstacle := schema.obstacle_to_rows(connection):
        raise UnfitTable(f"Fonte takes no rows: {obstacle}")
    # Not LIKE data: its columns may be more than ours, and of other types.
    ours = _each("{0} double precision")
    connection.execute(text(f"CREATE TEMP TABLE incoming (timestamp timestamptz, {ours}) ON COMMIT DROP"))
    for columns in batches:
        # A search path may prefer a user's table of this name.
        copy.copy_in(connection, "pg_temp.incoming", columns)
    # The planner then knows how many rows there are.
    connection.execute(text("ANALYZE pg_temp.incoming"))
    contradiction, *counts = connection.execute(text(_merge_sql(replace))).one()
    if contradiction is not None:
        remedy = "keep one of them, or name the zone of local times by --csv-timezone"
        raise Contradiction(f"{source}: two rows for {contradiction} hold different values: {remedy}")
    if (changed := connection.scalar(_CHANGED)) is not None:
        remedy = "look for a trigger, a child table or a type of timestamp that rounds"
        raise UnfitTable(f"Fonte takes no rows: its table data did not keep the row of {changed} as sent: {remedy}")
    connection.execute(text("DROP TABLE pg_temp.incoming"))
    return Merged(*counts)


def _merge_sql(replace: bool) -> str:
    """Return one statement that compares the offered rows with the table as it was, and merges them into it."""
    # PostgreSQL sorts NaN above all other values.
    lowest, highest = "min(nullif({0}, 'NaN'))", "max(nullif({0}, 'NaN'))"
    # A held NaN is no sample. Not all types of numbers have one.
    value = "nullif(held.{0}::float8, 'NaN')"
    fills, differs = f"{value} IS NULL AND offered.{{0}} IS NOT NULL", f"coalesce({value} <> offered.{{0}}, false)"
    merged = f"CASE WHEN {replace} OR {value} IS NULL THEN coalesce(excluded.{{0}}, held.{{0}}) ELSE held.{{0}} END"
    # An upsert locks every row that it receives, so it receives only rows that change.
    return f"""
        WITH offered AS MATERIALIZED (
            SELECT timestamp, {_each(f"{highest} AS {{0}}")}, {_each(f"{lowest} < {highest}", " OR ")} AS contradicts
            FROM pg_temp.incoming GROUP BY timestamp
        ), compared AS MATERIALIZED (
            SELECT offered.*, held.timestamp IS NOT NULL AS present,
                held.timestamp IS NOT NULL AND ({_each(fills, " OR ")}) AS filled, {_each(differs, " OR ")} AS differing
            FROM offered LEFT JOIN data AS held ON held.timestamp = offered.timestamp
        ), merged AS (
            INSERT INTO data AS held (timestamp, {_each("{0}")}) SELECT timestamp, {_each("{0}")} FROM compared
            WHERE NOT present OR filled OR (differing AND {replace}) ORDER BY timestamp
            ON CONFLICT (timestamp) DO UPDATE SET {_each(f"{{0}} = {merged}")}
        )
        SELECT min(timestamp) FILTER (WHERE contradicts), count(*) FILTER (WHERE NOT present),
            count(*) FILTER (WHERE present), count(*) FILTER (WHERE filled), count(*) FILTER (WHERE differing)
        FROM compared
    """
