"""Reduces a period of Alvo to what a screen can show: buckets of windows, none of which hides an extreme."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine, select, text

from alvo import schema
from alvo.aggregation import STATISTICS, WINDOW_S, Timestamps, Values

WINDOW = timedelta(seconds=WINDOW_S)
DAY = timedelta(days=1)
# Each divides a day, so that cells of an hour or a day are made of whole buckets.
BUCKETS = [WINDOW * windows for windows in (1, 2, 3, 6, 12, 18, 36, 72, 144)]
CELLS = 80
# The bounds of Python's datetime; PostgreSQL's timestamps reach further.
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

# The square of a larger value overflows a double, an error in PostgreSQL.
_SQUARABLE = "abs(value) < 1e140"

_BUCKETS = text(f"""
    SELECT signal_id, (extract(epoch FROM start - :origin) / :bucket_s)::integer, windows, min, max,
        CASE WHEN squarable = windows THEN mean END, CASE WHEN squarable = windows THEN variance END
    FROM (
        SELECT signal_id, date_bin(:bucket, timestamp, :origin) AS start, count(*) AS windows, min(value), max(value),
            count(*) FILTER (WHERE {_SQUARABLE}) AS squarable,
            avg(value) FILTER (WHERE {_SQUARABLE}) AS mean,
            var_pop(value) FILTER (WHERE {_SQUARABLE}) AS variance
        FROM data WHERE signal_id = ANY(:ids) AND timestamp >= :start AND timestamp < :end GROUP BY 1, 2
    ) AS bucket
""")

_NEIGHBOURS = text("""
    SELECT max(before), min(after) FROM unnest(CAST(:ids AS integer[])) AS asked (id),
        LATERAL (SELECT max(timestamp)::timestamptz AS before FROM data
            WHERE signal_id = asked.id AND timestamp < :start AND timestamp >= :first) AS earlier,
        LATERAL (SELECT min(timestamp)::timestamptz AS after FROM data
            WHERE signal_id = asked.id AND timestamp >= :end AND timestamp <= :last) AS later
""")

# If a day was loaded while it ran, or soon after, its source was live.
_LIVE = text("SELECT EXISTS (SELECT FROM load WHERE finished_at < period_end + INTERVAL '36 hours')")

_VALUES = text("""
    SELECT signal.name, (extract(epoch FROM data.timestamp) * 1000000)::bigint, data.value
    FROM data JOIN signal ON signal.id = data.signal_id
    WHERE signal.name = ANY(:names) AND data.timestamp >= :start AND data.timestamp < :end
""")

# Each part is computed once: without statistics of a new table, the planner takes years of windows for a few rows.
_CURVE = text(f"""
    WITH pair AS MATERIALIZED (
        SELECT max(value) FILTER (WHERE signal_id = :x) AS x, max(value) FILTER (WHERE signal_id = :y) AS y FROM data
        WHERE signal_id IN (:x, :y) AND timestamp >= :start AND timestamp < :end AND {_SQUARABLE}
        GROUP BY timestamp HAVING count(*) = 2
    ), extent AS MATERIALIZED (SELECT min(x) AS left, max(x) AS right, min(y) AS bottom, max(y) AS top FROM pair)
    SELECT avg(x), avg(y), count(*) FROM pair, extent GROUP BY
        CASE WHEN "left" < "right" THEN width_bucket(x, "left", "right", :cells) END,
        CASE WHEN bottom < top THEN width_bucket(y, bottom, top, :cells) END
    ORDER BY 1, 2
""")


def signal_ids(connection: Connection) -> dict[str, int]:
    """Return the ids of the signals that Alvo knows, by name."""
    return {name: signal_id for name, signal_id in connection.execute(select(schema.signal.c.name, schema.signal.c.id))}


def shown_ids(connection: Connection) -> dict[str, int]:
    """Return the ids of the signals that a screen shows, by name: not those of counts, for example."""
    return {name: signal_id for name, signal_id in signal_ids(connection).items() if variables([name])}


def variables(names: Iterable[str]) -> list[str]:
    """Return the variables of which these signals are statistics that a screen shows."""
    parts = [name.rpartition("_") for name in names]
    return sorted({variable for variable, _, statistic in parts if variable and statistic in STATISTICS})


def neighbours(
    connection: Connection, ids: Iterable[int], start: datetime, end: datetime
) -> tuple[datetime | None, datetime | None]:
    """Return the last window of these signals before start and the first one from end on, None where there is none."""
    bounds = {"first": FIRST, "start": start, "end": end, "last": LAST}
    before, after = connection.execute(_NEIGHBOURS, {"ids": list(ids), **bounds}).one()
    return before, after


def live(connection: Connection) -> bool:
    """Return whether a load ever followed its period within 36 hours; true where the records cannot be read."""
    readable = connection.scalar(text("SELECT has_table_privilege(to_regclass('load'), 'SELECT')"))
    return not readable or bool(connection.scalar(_LIVE))


def buckets(
    connection: Connection, ids: Mapping[str, int], names: Iterable[str], start: datetime, end: datetime, points: int
) -> tuple[datetime, timedelta, dict[str, dict[str, npt.NDArray[Any]]]]:
    """Return the start of the first bucket, on a window's boundary, their length, and what each variable has in them.

    ids: {variable}_{statistic} to id; names: the variables; points: the most buckets. Each variable has the statistics
    that Alvo knows of it, float64 of one value a bucket, NaN where there is none, the number of its windows, and of
    those with a mean, `means`. Every window has the same weight in mean and std.
    """
    origin = start - (start - datetime.fromtimestamp(0, UTC)) % WINDOW
    least = (end - origin) / points
    length = next((each for each in BUCKETS if each >= least), -(-least // DAY) * DAY)
    count = -((origin - end) // length)
    bounds = {"origin": origin, "start": start, "end": end, "bucket": length, "bucket_s": length.total_seconds()}
    rows = connection.execute(_BUCKETS, {"ids": list(ids.values()), **bounds}).all()
    # Of each signal and bucket: windows, minimum, maximum, mean, variance.
    grids: defaultdict[int, Values] = defaultdict(lambda: np.full((5, count), np.nan))
    for signal_id, number, *figures in rows:
        grids[signal_id][:, number] = [np.nan if figure is None else figure for figure in figures]
    known = {name: {s: grids[ids[f"{name}_{s}"]] for s in STATISTICS if f"{name}_{s}" in ids} for name in names}
    return origin, length, {name: _statistics(grids, count) for name, grids in known.items()}


def signals(
    engine: Engine, names: Sequence[str], start: datetime, end: datetime, points: int
) -> tuple[Timestamps, dict[str, Values], timedelta] | None:
    """Return buckets() of these variables as alvo.plot draws them: starts, {variable}_{statistic}, length.

    None where Alvo has no tables yet. Raises SQLAlchemyError.
    """
    with engine.connect() as connection:
        if connection.scalar(text("SELECT to_regclass('data')")) is None:
            return None
        asked = {name: each for name, each in shown_ids(connection).items() if name.rpartition("_")[0] in names}
        origin, length, held = buckets(connection, asked, names, start, end, points)
    unknown = np.full(-((origin - end) // length), np.nan)
    starts = np.datetime64(origin.replace(tzinfo=None), "us") + np.arange(len(unknown)) * np.timedelta64(length)
    return starts, {f"{name}_{each}": held[name].get(each, unknown) for name in names for each in STATISTICS}, length


def values(
    engine: Engine, start: datetime, end: datetime, names: Sequence[str]
) -> tuple[Timestamps, dict[str, Values], int]:
    """Return what Alvo holds of these signals in [start, end), and how many of these values are not finite.

    The first two are window starts `datetime64[us]` (w,), UTC, ascending, and name to float64 (w,), NaN where there is
    no value. Raises SQLAlchemyError.
    """
    with engine.connect() as connection:
        rows = connection.execute(_VALUES, {"names": list(names), "start": start, "end": end}).all()
    moments = np.array([moment for _, moment, _ in rows], dtype="datetime64[us]")
    window_starts, positions = np.unique(moments, return_inverse=True)
    signals = {name: np.full(len(window_starts), np.nan) for name in names}
    for (name, _, value), position in zip(rows, positions, strict=True):
        signals[name][position] = value
    return window_starts, signals, int((~np.isfinite([value for _, _, value in rows])).sum())


def _statistics(grids: Mapping[str, Values], count: int) -> dict[str, npt.NDArray[Any]]:
    picked = {name: grids[name][row] for name, row in (("min", 1), ("max", 2), ("mean", 3)) if name in grids}
    if "std" in grids and "mean" in grids:
        *_, mean, variance = grids["std"]
        # Within a window it is the sample variance (n - 1): the sum is a few percent above the variance of all samples.
        picked["std"] = np.sqrt(mean**2 + variance + grids["mean"][4])
    counts = {name: np.nan_to_num(grid[0]).astype(int) for name, grid in grids.items()}
    none = np.zeros(count, int)
    return {**picked, "windows": np.max([none, *counts.values()], axis=0), "means": counts.get("mean", none)}


def curve(
    connection: Connection, x: int | None, y: int | None, start: datetime, end: datetime
) -> list[tuple[float, float, int]]:
    """Return y against x, by their signals' ids, over [start, end): mean x and y and number of windows of a cell.

    The cells divide what the windows span into CELLS by CELLS; one of a single window is that window.
    """
    asked = {"x": x, "y": y, "start": start, "end": end, "cells": CELLS}
    return [tuple(row) for row in connection.execute(_CURVE, asked)]
