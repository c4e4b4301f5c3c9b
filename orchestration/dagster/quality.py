"""What Dagster shows of a day: its figures, its picture, and the checks of what Alvo then holds."""

import base64
from collections.abc import Iterator, Mapping
from datetime import timedelta

import dagster as dg
import numpy as np
from sqlalchemy import Engine

from alvo import plot, screen
from alvo.aggregation import STATISTICS, WINDOW_S, Timestamps, Values
from fonte_alvo import engine
from orchestration import day as one
from orchestration.day import Day, Outcome

ASSET = dg.AssetKey("ten_minute_statistics")
DAYS = dg.DailyPartitionsDefinition(start_date="2024-05-20", timezone="UTC")
CHECKS = {
    "rows_match_coverage": "Alvo holds a row of every statistic for each window with samples, and no other.",
    "mean_between_min_and_max": "No mean lies below the minimum or above the maximum of its window.",
    "no_nan": "Every value is a finite number.",
    "fresh": "The samples of every variable reach the last window of the day.",
}
SPECS = [dg.AssetCheckSpec(name, asset=ASSET, description=CHECKS[name], partitions_def=DAYS) for name in CHECKS]

Event = dg.AssetMaterialization | dg.AssetCheckEvaluation


def events(day: Day, done: Outcome, alvo: Engine, units: Mapping[str, str]) -> Iterator[Event]:
    """Yield a day's materialization, with its figures and picture, and its checks, all of what Alvo holds now.

    units: of the variables, where they are known. Raises DatabaseError.
    """
    names = [f"{variable}_{statistic}" for variable in done.samples for statistic in STATISTICS]
    with engine.failures("Alvo", "the day is loaded: check ALVO_DATABASE_URL and run again"):
        window_starts, signals, not_finite = screen.values(alvo, day.start, day.end, names)
    axes = {name: f"{name} ({units[name]})" if name in units else name for name in done.samples}
    figures = _figures(day, done)
    title = f"{day.date} {day.zone}, {figures['coverage_percent']:.1f} % of the samples"
    png = plot.picture(title, day.start, day.end, window_starts, signals, axes)
    picture = f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
    summary = dg.MetadataValue.md(f"```\n{one.summary(day, done)}\n```")
    key = str(day.date)
    yield dg.AssetMaterialization(
        ASSET, partition=key, metadata={"plot": dg.MetadataValue.md(picture), "summary": summary, **figures}
    )
    for name, (passed, metadata) in _checked(day, done, window_starts, signals, not_finite).items():
        severity = dg.AssetCheckSeverity.WARN if name == "fresh" else dg.AssetCheckSeverity.ERROR
        yield dg.AssetCheckEvaluation(ASSET, name, passed, metadata, severity=severity, partition=key)


def _figures(day: Day, done: Outcome) -> dict[str, int | float]:
    samples, expected = sum(done.samples.values()), done.expected * len(done.samples)
    return {
        "samples": samples,
        "coverage_percent": 100 * samples / expected,
        "windows": sum(done.windows.values()),
        "values_written": done.report.written,
        "values_unchanged": done.report.unchanged,
        "values_removed": done.report.removed,
        "seconds": round(sum(done.seconds.values()), 3),
        "dagster/partition_row_count": done.report.written + done.report.unchanged,
    }


def _checked(
    day: Day, done: Outcome, window_starts: Timestamps, signals: Mapping[str, Values], not_finite: int
) -> dict[str, tuple[bool, dict[str, int | str]]]:
    """Return for each check whether it passed, and what it counted."""
    rows = {name: int(np.isfinite(values).sum()) for name, values in signals.items()}
    wrong = sum(_out_of_order(*(signals[f"{name}_{s}"] for s in ("min", "mean", "max"))) for name in done.samples)
    last = {name: _last(window_starts, signals[f"{name}_mean"]) for name in done.samples}
    reaching = np.datetime64((day.end - timedelta(seconds=WINDOW_S)).replace(tzinfo=None), "us")
    return {
        # A window with one sample has no standard deviation.
        "rows_match_coverage": (
            all(rows[f"{name}_{s}"] == done.windows[name] for name in done.samples for s in ("min", "mean", "max"))
            and all(rows[f"{name}_std"] <= done.windows[name] for name in done.samples),
            {**rows, **{f"{name}_windows": windows for name, windows in done.windows.items()}},
        ),
        "mean_between_min_and_max": (wrong == 0, {"windows_out_of_order": wrong}),
        "no_nan": (not_finite == 0, {"values_not_finite": not_finite}),
        "fresh": (all(moment == reaching for moment in last.values()), {n: f"{moment}Z" for n, moment in last.items()}),
    }


def _out_of_order(low: Values, mean: Values, high: Values) -> int:
    return int(((mean < low) | (mean > high)).sum())


def _last(window_starts: Timestamps, values: Values) -> np.datetime64 | None:
    """Return the start of the last window with a value, if any has one."""
    return next(iter(window_starts[np.isfinite(values)][::-1]), None)
