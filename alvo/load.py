"""Replaces a period of Alvo in one transaction: readers see the old period or the new one, never a mixture."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.dialects.postgresql import insert

from alvo import schema
from alvo.aggregation import Timestamps, Values
from fonte_alvo import copy


class Report(NamedTuple):
    """What a load did to Alvo's values: rows inserted or changed, left untouched, deleted."""

    written: int
    unchanged: int
    removed: int


# Loads that share a UTC day wait for each other here; all others run side by side. Taken in ascending order by
# everyone, the locks cannot deadlock, and READ COMMITTED shows the statements after this one what the other load did.
_BEGIN = text("""
    SELECT count(pg_advisory_xact_lock(hashtext('alvo.load'), day)), bool_or(to_regclass('data') IS NULL)
    FROM generate_series(CAST(:first_day AS integer), CAST(:last_day AS integer)) AS day
""")

_SIGNALS = text("""
    SELECT name, id, EXISTS (SELECT FROM data WHERE signal_id = id AND timestamp >= :start AND timestamp < :end)
    FROM signal WHERE name = ANY(:names)
""")

# Only rows that differ are touched: ON CONFLICT alone would lock, and so write, every row that it meets.
_REPLACE = text("""
    WITH old AS (
        SELECT signal_id, timestamp, value FROM data
        WHERE signal_id = ANY(:signal_ids) AND timestamp >= :start AND timestamp < :end
    ), removed AS (
        DELETE FROM data
        USING (SELECT signal_id, timestamp FROM old EXCEPT SELECT signal_id, timestamp FROM incoming) AS stale
        WHERE data.signal_id = stale.signal_id AND data.timestamp = stale.timestamp
        RETURNING 1
    ), written AS (
        INSERT INTO data (timestamp, signal_id, value)
        SELECT timestamp, signal_id, incoming.value
        FROM incoming LEFT JOIN old USING (signal_id, timestamp)
        WHERE old.value IS DISTINCT FROM incoming.value
        ON CONFLICT (signal_id, timestamp) DO UPDATE SET value = excluded.value
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM written), (SELECT count(*) FROM incoming), (SELECT count(*) FROM removed)
""")


_HELD = text("""
    SELECT number FROM unnest(CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]))
        WITH ORDINALITY AS period (start_timestamp, end_timestamp, number)
    WHERE NOT EXISTS (
        SELECT FROM unnest(CAST(:variables AS text[])) AS variable
        WHERE NOT EXISTS (
            SELECT FROM data JOIN signal ON signal.id = signal_id
            WHERE name IN (SELECT variable || '_' || statistic FROM unnest(CAST(:statistics AS text[])) AS statistic)
                AND timestamp >= start_timestamp AND timestamp < end_timestamp
        )
    )
""")


def held(
    engine: Engine, periods: Sequence[tuple[datetime, datetime]], variables: Sequence[str], statistics: Sequence[str]
) -> set[int]:
    """Return the positions of the periods [start, end) of which Alvo holds a value of every variable.

    Any one of the statistics counts. Raises SQLAlchemyError.
    """
    with engine.connect() as connection:
        if connection.scalar(text("SELECT to_regclass('data')")) is None:
            return set()
        starts, ends = [start for start, _ in periods], [end for _, end in periods]
        asked = {"starts": starts, "ends": ends, "variables": list(variables), "statistics": list(statistics)}
        return {number - 1 for number in connection.execute(_HELD, asked).scalars()}


def replace_period(
    engine: Engine, start: datetime, end: datetime, window_starts: Timestamps, signals: Mapping[str, Values]
) -> Report:
    """Make Alvo hold exactly these values of these signals in [start, end); other signals stay as they are.

    start, end: aware. window_starts: `datetime64[us]` (w,), UTC, each inside the period; signals: name to float64
    (w,). What is not finite gives no row. Absent tables and signals are created. Raises SQLAlchemyError or
    psycopg2.Error; the transaction is then rolled back, unless only the answer to COMMIT was lost: the period is
    whole in both cases.
    """
    inside = (window_starts >= _datetime64(start)) & (window_starts < _datetime64(end))
    if not inside.all():
        raise ValueError(f"the window {window_starts[~inside][0]}Z lies outside the period from {start} to {end}")
    with engine.begin() as connection:
        _wait_for_turn(connection, start, end)
        ids, holds_some = _signal_ids(connection, signals, start, end)
        rows = _rows(window_starts, signals, ids)
        if not holds_some:
            copy.copy_in(connection, "data", rows)
            return Report(len(rows["value"]), 0, 0)
        connection.execute(text("CREATE TEMP TABLE incoming (LIKE data) ON COMMIT DROP"))
        copy.copy_in(connection, "incoming", rows)
        parameters = {"start": start, "end": end, "signal_ids": list(ids.values())}
        written, offered, removed = connection.execute(_REPLACE, parameters).one()
    return Report(written, offered - written, removed)


def _datetime64(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def _wait_for_turn(connection: Connection, start: datetime, end: datetime) -> None:
    days = {"first_day": int(start.timestamp() // 86_400), "last_day": int(-(-end.timestamp() // 86_400)) - 1}
    _, tables_are_absent = connection.execute(_BEGIN, days).one()
    if tables_are_absent:
        schema.create_absent(connection)


def _signal_ids(
    connection: Connection, signals: Mapping[str, Values], start: datetime, end: datetime
) -> tuple[dict[str, int], bool]:
    """Return the ids of signals, and whether the period holds a value of any.

    Those that are absent are created where they have a value, and left out elsewhere.
    """
    found = connection.execute(_SIGNALS, {"names": list(signals), "start": start, "end": end}).all()
    ids = {name: signal_id for name, signal_id, _ in found}
    valued = sorted(name for name, values in signals.items() if np.isfinite(values).any())
    if absent := [{"name": name} for name in valued if name not in ids]:
        connection.execute(insert(schema.signal).values(absent).on_conflict_do_nothing())
        query = select(schema.signal.c.name, schema.signal.c.id).where(schema.signal.c.name.in_(signals))
        ids = {name: signal_id for name, signal_id in connection.execute(query)}
    return ids, any(holds_some for _, _, holds_some in found)


def _rows(
    window_starts: Timestamps, signals: Mapping[str, Values], ids: Mapping[str, int]
) -> dict[str, npt.NDArray[Any]]:
    """Return the finite values as columns of rows ordered as the primary key."""
    ordered = sorted(ids, key=ids.__getitem__)
    values = np.concatenate([signals[name] for name in ordered] or [np.empty(0)])
    finite = np.isfinite(values)
    timestamp = np.tile(window_starts, len(ordered))[finite]
    signal_id = np.repeat(np.array([ids[name] for name in ordered], dtype=np.int32), len(window_starts))[finite]
    return {"timestamp": timestamp, "signal_id": signal_id, "value": values[finite]}
