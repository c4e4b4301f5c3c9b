"""One day from Fonte to Alvo, and the report of it: fetch, aggregate, replace."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from time import perf_counter
from typing import NamedTuple

import numpy as np
from sqlalchemy import Engine

from alvo.aggregation import ALL_STATISTICS, STATISTICS, Timestamps, Values, aggregate
from alvo.load import Report, replace_period
from fonte.client import Client, fetch
from fonte_alvo.command import Failure
from fonte_alvo.engine import failures

COLUMNS = ["wind_speed", "power"]
SAMPLE_INTERVAL = timedelta(minutes=1)


class EmptyPeriod(Failure):
    """Fonte holds no finite sample in the whole period."""

    exit_code = 5


class Day(NamedTuple):
    """One day: its date, its time zone, and its half-open period [start, end) in UTC."""

    date: date
    zone: str
    start: datetime
    end: datetime


class Outcome(NamedTuple):
    """The result of a day: finite samples and windows per variable, what was left out, seconds per phase."""

    samples: dict[str, int]
    windows: dict[str, int]
    not_finite: int
    overflowed: int
    report: Report
    seconds: dict[str, float]


def run(
    fonte: Client, alvo: Engine, day: Day, columns: Sequence[str], statistics: Sequence[str] = STATISTICS
) -> Outcome:
    """Carry a day of these columns from Fonte to Alvo, as these statistics.

    What Alvo holds of other statistics of these columns goes. Raises FonteError, DatabaseError and EmptyPeriod; Alvo
    then holds the old day or the new one, whole.
    """
    began = perf_counter()
    timestamps, samples = fetch(str(fonte.base_url), day.start, day.end, columns, fonte)
    extracted = perf_counter()

    window_starts, signals = aggregate(timestamps, samples, statistics=statistics)
    if len(window_starts) == 0:
        raise EmptyPeriod(f"Fonte holds no finite sample of {', '.join(columns)} from {day.start} to {day.end}")
    aggregated = perf_counter()

    with failures("Alvo", "it holds the old day or the new one, whole: check ALVO_DATABASE_URL and run again"):
        report = replace_period(alvo, day.start, day.end, window_starts, _unasked(columns, window_starts) | signals)
    loaded = perf_counter()

    found = {name: int(np.isfinite(values).sum()) for name, values in samples.items()}
    return Outcome(
        samples=found,
        windows={name: max(int(np.isfinite(signals[f"{name}_{s}"]).sum()) for s in statistics) for name in samples},
        not_finite=len(timestamps) * len(samples) - sum(found.values()),
        overflowed=sum(int(np.isinf(values).sum()) for values in signals.values()),
        report=report,
        seconds={"extract": extracted - began, "aggregate": aggregated - extracted, "load": loaded - aggregated},
    )


def _unasked(columns: Sequence[str], window_starts: Timestamps) -> dict[str, Values]:
    """Return every statistic without a value, so that what Alvo holds of those that are not asked goes."""
    nothing = np.full(len(window_starts), np.nan)
    return {f"{name}_{statistic}": nothing for name in columns for statistic in ALL_STATISTICS}


def summary(day: Day, outcome: Outcome) -> str:
    """Report one day in several lines: coverage, what was left out, changes, seconds."""
    expected = (day.end - day.start) // SAMPLE_INTERVAL
    width = max(map(len, outcome.samples))
    lines = [_title(day)]
    for name, samples in outcome.samples.items():
        coverage = f"{samples:,} of {expected:,} samples ({samples / expected:.1%})"
        lines.append(f"  {name:{width}}  {coverage}, {outcome.windows[name]} windows")
    if outcome.not_finite:
        lines.append(f"  left out: {outcome.not_finite:,} values that are NULL, NaN or infinite")
    if outcome.overflowed:
        lines.append(f"  left out: {outcome.overflowed:,} results beyond the largest double")
    phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in outcome.seconds.items())
    lines.append(f"  Alvo: {changes(outcome.report)}")
    lines.append(f"  {sum(outcome.seconds.values()):.2f} s: {phases}")
    return "\n".join(lines)


def line(day: Day, outcome: Outcome) -> str:
    """Report one day among many on one line."""
    expected = (day.end - day.start) // SAMPLE_INTERVAL * len(outcome.samples)
    samples = f"{sum(outcome.samples.values()):,} of {expected:,} samples"
    return f"{_title(day)}  {samples}, {changes(outcome.report)}, {sum(outcome.seconds.values()):.2f} s"


def changes(report: Report) -> str:
    """Report what a load did to Alvo's values."""
    return f"{report.written:,} values written, {report.unchanged:,} unchanged, {report.removed:,} removed"


def _title(day: Day) -> str:
    return f"{day.date} {day.zone}" + (", not over yet" if day.end > datetime.now(UTC) else "")
