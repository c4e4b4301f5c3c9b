"""Replaces a period of Alvo in one transaction: readers see the old period or the new one, never a mixture."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from psycopg2.errorcodes import INVALID_COLUMN_REFERENCE
from sqlalchemy import Connection, Engine, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from alvo import schema
from alvo.aggregation import Timestamps, Values
from fonte_alvo import copy
from fonte_alvo.engine import DatabaseError, sqlstate


class Report(NamedTuple):
    """The changes that a load made, as Alvo counted them: rows inserted or changed, left untouched, deleted."""

    written: int
    unchanged: int
    removed: int


class Record(NamedTuple):
    """The record of a load: the statistics of a variable, its number of samples, and the number expected."""

    variable: str
    statistics: Sequence[str]
    samples: int
    expected: int


# Loads that share a UTC day wait for each other here; other loads run in parallel. Every load takes its locks in
# ascending order, so they cannot deadlock. Under READ COMMITTED, later statements see the changes of the other load.
# Loads and the deletion of signals exclude each other, so a signal stays after a load has found it.
_BEGIN = text("""
    SELECT count(pg_advisory_xact_lock_shared(hashtext('alvo.signal'), 0)),
        count(pg_advisory_xact_lock(hashtext('alvo.load'), day)),
        bool_or(to_regclass('data') IS NULL OR NOT EXISTS (
            SELECT FROM pg_attribute WHERE attrelid = to_regclass('load') AND attname = 'period_start'
        )),
        EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('signal') AND relkind IN ('r', 'p') AND NOT EXISTS (
            SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
            WHERE indrelid = pg_class.oid AND indisunique AND indisvalid AND indnkeyatts = 1 AND indpred IS NULL
                AND attname = 'name'
        )),
        (SELECT json_object_agg(attname, format_type(coalesce(nullif(typbasetype, 0), atttypid), NULL))
            FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid WHERE attrelid = to_regclass('data'))
    FROM generate_series(CAST(:first_day AS integer), CAST(:last_day AS integer)) AS day
""")

# The types of a binary COPY. PostgreSQL would store a double's bits in another type of 8 bytes, such as bigint.
_TYPES = {"timestamp": "timestamp with time zone", "signal_id": "integer", "value": "double precision"}

_SIGNALS = text("""
    SELECT name::text, id, EXISTS (
        SELECT FROM data WHERE signal_id = signal.id AND timestamp >= :start AND timestamp < :end
    ) FROM signal WHERE name = ANY(:names)
""")

# Write only rows that differ: ON CONFLICT alone would lock every existing row, and each lock is a write.
_REPLACE = text("""
    WITH differing AS MATERIALIZED (
        SELECT signal_id, timestamp, incoming.value
        FROM pg_temp.incoming FULL JOIN (
            SELECT signal_id, timestamp, value FROM data
            WHERE signal_id = ANY(:signal_ids) AND timestamp >= :start AND timestamp < :end
        ) AS old USING (signal_id, timestamp)
        WHERE incoming.value IS NULL OR incoming.value IS DISTINCT FROM old.value
    ), removed AS (
        DELETE FROM data USING differing AS stale
        WHERE stale.value IS NULL AND data.signal_id = stale.signal_id AND data.timestamp = stale.timestamp
        RETURNING 1
    ), written AS (
        INSERT INTO data (timestamp, signal_id, value)
        SELECT timestamp, signal_id, value FROM differing WHERE value IS NOT NULL
        ON CONFLICT (signal_id, timestamp) DO UPDATE SET value = excluded.value
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM written),
        (SELECT count(*) FROM pg_temp.incoming) - (SELECT count(value) FROM differing),
        (SELECT count(*) FROM removed)
""")

# Tables of an earlier version have no records.
_HAS_RECORDS = text("SELECT to_regclass('load') IS NOT NULL")

# Any change within a record's period deletes the record, so no record describes rows that have changed.
_FORGET = """
    DELETE FROM load WHERE period_start < %(end)s AND period_end > %(start)s
        AND (CAST(%(variables)s AS text[]) IS NULL OR variable = ANY(CAST(%(variables)s AS text[])))
"""

_WRITE_RECORDS = f"""
    WITH forgotten AS ({_FORGET} RETURNING 1)
    INSERT INTO load (period_start, period_end, variable, statistics, samples, expected)
    SELECT %(start)s, %(end)s, record.*
    FROM (SELECT count(*) FROM forgotten) AS first, jsonb_to_recordset(%(records)s)
        AS record (variable text, statistics text[], samples integer, expected integer)
"""

# A record with samples counts only where the period still holds rows of the variable.
_READ_RECORDS = text("""
    SELECT bool_and(statistics @> CAST(:statistics AS text[]) AND finished_at >= period_end AND (samples = 0 OR EXISTS (
            SELECT FROM data JOIN signal ON signal.id = data.signal_id
            WHERE regexp_replace(signal.name, '_[^_]*$', '') = load.variable
                AND data.timestamp >= period.period_start AND data.timestamp < period.period_end
        ))) AND count(load) = :variables,
        coalesce(bool_or(samples < expected OR finished_at < period_end), false)
    FROM unnest(CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]))
        WITH ORDINALITY AS period (period_start, period_end, number)
    LEFT JOIN (SELECT * FROM load WHERE variable = ANY(:names)) AS load USING (period_start, period_end)
    GROUP BY number ORDER BY number
""")


class Recorded(NamedTuple):
    """The record of a period: whether it was loaded as asked, and whether it is incomplete; see recorded()."""

    loaded: bool
    incomplete: bool


def recorded(
    engine: Engine, periods: Sequence[tuple[datetime, datetime]], variables: Sequence[str], statistics: Sequence[str]
) -> list[Recorded]:
    """Return what Alvo recorded about each period [start, end) and all these variables. Raises SQLAlchemyError.

    loaded: at least these statistics were loaded, after the period ended. incomplete: there were fewer samples than
    expected, or the load ran before the period ended.
    """
    with engine.connect() as connection:
        if not connection.scalar(_HAS_RECORDS):
            return [Recorded(False, False)] * len(periods)
        starts, ends = [start for start, _ in periods], [end for _, end in periods]
        asked = {"starts": starts, "ends": ends, "names": list(variables), "variables": len(variables)}
        rows = connection.execute(_READ_RECORDS, {**asked, "statistics": list(statistics)})
        return [Recorded(loaded is True, incomplete) for loaded, incomplete in rows]


def recorded_periods(engine: Engine) -> int:
    """Return how many periods Alvo records as loaded. Raises SQLAlchemyError."""
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(DISTINCT period_start) FROM load")) or 0)


def forget(connection: Connection, start: datetime | str, end: datetime | str) -> None:
    """Remove the records that overlap a period, in the caller's transaction; the bounds may be infinite."""
    if connection.scalar(_HAS_RECORDS):
        connection.exec_driver_sql(_FORGET, {"start": start, "end": end, "variables": None})


def delete_unused_signals(connection: Connection) -> int:
    """Delete the signals without a value, in the caller's transaction; return how many. Waits for loads in progress."""
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('alvo.signal'), 0)")
    unused = "NOT EXISTS (SELECT FROM data WHERE signal_id = signal.id)"
    return connection.exec_driver_sql(f"DELETE FROM signal WHERE {unused}").rowcount


def replace_period(
    engine: Engine,
    start: datetime,
    end: datetime,
    window_starts: Timestamps,
    signals: Mapping[str, Values],
    records: Sequence[Record] = (),
) -> Report:
    """Make Alvo hold exactly these values of these signals in [start, end); other signals stay as they are.

    start, end: aware. window_starts: `datetime64[us]` (w,), UTC, each inside the period; signals: name to float64 (w,).
    Values that are not finite are not stored. records: describe this load; overlapping records of its variables are
    always deleted. Missing tables and signals are created. Raises ValueError for a window outside the period, and
    SQLAlchemyError, psycopg2.Error, DatabaseError or OverflowError if Alvo cannot take the values; the transaction is
    then rolled back, unless only the answer to COMMIT was lost. Either way Alvo holds a whole period.
    """
    first, last = (np.datetime64(bound.astimezone(UTC).replace(tzinfo=None), "us") for bound in (start, end))
    outside = window_starts[(window_starts < first) | (window_starts >= last)]
    if len(outside):
        raise ValueError(f"the window {outside[0]}Z lies outside the period from {start} to {end}")
    period = {"start": start, "end": end}
    days = {"first_day": int(start.timestamp() // 86_400), "last_day": int(-(-end.timestamp() // 86_400)) - 1}
    with engine.begin() as connection:
        *_, tables_are_absent, names_may_repeat, types = connection.execute(_BEGIN, days).one()
        _check_types(types or {})
        if tables_are_absent:
            schema.create_absent(connection)
        if names_may_repeat:
            mend = "ALTER TABLE signal ADD UNIQUE (name)"
            raise DatabaseError(f"Alvo failed: name is no key of signal; as its owner: {mend}")
        ids, holds_some = _signal_ids(connection, signals, period)
        rows = _rows(window_starts, signals, ids)
        if holds_some:
            report = _merge(connection, rows, {**period, "signal_ids": list(ids.values())})
        else:
            report = Report(copy.copy_in(connection, "data", rows), 0, 0)
        variables = sorted({name.rpartition("_")[0] for name in signals})
        told = json.dumps([record._asdict() for record in records])
        connection.exec_driver_sql(_WRITE_RECORDS, {**period, "variables": variables, "records": told})
    return report


def _check_types(held: Mapping[str, str]) -> None:
    """Raise DatabaseError if a column of data has a type that a binary COPY would not fill correctly."""
    for name, kind in _TYPES.items():
        # A timestamp without time zone has the same bits, in UTC.
        if held.get(name, kind).replace("without", "with") != kind:
            wrong = f"Alvo failed: its column data.{name} is {held[name]}, not {kind}"
            # The cast to timestamptz takes the session's zone.
            zone = "SET timezone = 'UTC'; " * (name == "timestamp")
            mend = f"{zone}ALTER TABLE data ALTER {name} TYPE {kind} USING {name}::{kind}"
            raise DatabaseError(f"{wrong}; as its owner: {mend}")


def _merge(connection: Connection, rows: Mapping[str, npt.NDArray[Any]], parameters: dict[str, Any]) -> Report:
    """Make the period hold these rows of these signals and no others; parameters are those of _REPLACE."""
    # Not LIKE data, which may have more columns. pg_temp: a search path may prefer a user's table.
    incoming = "(timestamp timestamptz, signal_id integer, value double precision)"
    connection.execute(text(f"CREATE TEMP TABLE incoming {incoming} ON COMMIT DROP"))
    copy.copy_in(connection, "pg_temp.incoming", rows)
    try:
        return Report(*connection.execute(_REPLACE, parameters).one())
    except DBAPIError as error:
        if sqlstate(error) != INVALID_COLUMN_REFERENCE:
            raise
        mend = "ALTER TABLE data ADD UNIQUE (signal_id, timestamp)"
        raise DatabaseError(f"Alvo failed: signal_id and timestamp are no key of data; as its owner: {mend}") from None


def _signal_ids(
    connection: Connection, signals: Mapping[str, Values], period: dict[str, datetime]
) -> tuple[dict[str, int], bool]:
    """Return the ids of signals, and whether the period holds a value of any.

    Missing signals are created if they have a value, and skipped otherwise.
    """
    found = connection.execute(_SIGNALS, {"names": list(signals), **period}).all()
    known = {name for name, *_ in found}
    valued = sorted(name for name, values in signals.items() if np.isfinite(values).any())
    if absent := [{"name": name} for name in valued if name not in known]:
        connection.execute(insert(schema.signal).values(absent).on_conflict_do_nothing())
        found = connection.execute(_SIGNALS, {"names": list(signals), **period}).all()
    return {name: signal_id for name, signal_id, _ in found}, any(holds_some for *_, holds_some in found)


def _rows(
    window_starts: Timestamps, signals: Mapping[str, Values], ids: Mapping[str, int]
) -> dict[str, npt.NDArray[Any]]:
    """Return the finite values as columns, in the primary key's order."""
    if beyond := [signal_id for signal_id in ids.values() if signal_id >= 2**31]:
        raise OverflowError(f"the signal id {beyond[0]} is beyond an integer, the type of data.signal_id")
    ordered = sorted(ids, key=ids.__getitem__)
    values = np.concatenate([signals[name] for name in ordered] or [np.empty(0)])
    finite = np.isfinite(values)
    timestamp = np.tile(window_starts, len(ordered))[finite]
    signal_id = np.repeat(np.array([ids[name] for name in ordered], dtype=np.int32), len(window_starts))[finite]
    return {"timestamp": timestamp, "signal_id": signal_id, "value": values[finite]}
