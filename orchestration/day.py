"""One day from Fonte to Alvo: fetch, aggregate, replace; and the report of it."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import Engine

from alvo.aggregation import ALL_STATISTICS, STATISTICS, WINDOW_S, Timestamps, Values, aggregate
from alvo.load import Record, Report, replace_period
from fonte.client import Client, Variable, fetch, variables
from fonte_alvo.command import Failure, count
from fonte_alvo.engine import failures

Names = Sequence[str]
COLUMNS = ["wind_speed", "power"]
MINUTE = timedelta(minutes=1)
USUAL_INTERVALS_US = [1_000_000 * s for s in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600)]
# A larger answer to a request for several days is refused, so that memory does not grow with them.
SEVERAL_DAYS_BYTES = 8 * 2**20


class EmptyPeriod(Failure):
    """Fonte holds no finite sample in the whole period."""

    exit_code = 5


class Day(NamedTuple):
    """One day: its date, its time zone, and its half-open period [start, end) in UTC."""

    date: date
    zone: str
    start: datetime
    end: datetime


class Samples(NamedTuple):
    """A day's samples: the arrays of fonte.client.fetch, and the day's share of the request's seconds."""

    timestamps: Timestamps
    values: dict[str, Values]
    seconds: float


class Outcome(NamedTuple):
    """The result of a day: finite samples, and windows with some, per variable; counts of oddities; seconds per phase.

    interval: that of sampling_interval; expected: how many samples of a variable the day then has; implausible: by
    variable, where the connector tells its range.
    """

    samples: dict[str, int]
    windows: dict[str, int]
    interval: timedelta
    expected: int
    implausible: dict[str, int]
    not_finite: int
    overflowed: int
    dropped: int
    report: Report
    seconds: dict[str, float]


def run(
    fonte: Client, alvo: Engine, day: Day, columns: Names, statistics: Names = STATISTICS, held: Samples | None = None
) -> Outcome:
    """Fetch these columns for a day, compute these statistics, and replace the day in Alvo.

    Alvo loses its other statistics of these columns for this day. held: the day's samples, if already fetched.
    Raises FonteError, DatabaseError and EmptyPeriod; Alvo then holds either the old day or the new one, complete.
    """
    timestamps, samples, extract_s = held or extract(fonte, columns, [day])[0]
    began = perf_counter()

    window_starts, signals = aggregate(timestamps, samples, statistics=statistics)
    if len(window_starts) == 0:
        raise EmptyPeriod(f"Fonte holds no finite sample of {', '.join(columns)} from {day.start} to {day.end}")
    aggregated = perf_counter()

    found = {name: int(np.isfinite(values).sum()) for name, values in samples.items()}
    interval = sampling_interval(timestamps)
    # Alvo's integer bounds it.
    expected = min(max((day.end - day.start) // interval, *found.values()), 2**31 - 1)
    records = [Record(name, statistics, found[name], expected) for name in columns]
    with failures("Alvo", "it holds the old day or the new one, whole: check ALVO_DATABASE_URL and run again"):
        signals = _unasked(columns, window_starts) | signals
        report = replace_period(alvo, day.start, day.end, window_starts, signals, records)
    loaded = perf_counter()

    known = variables(fonte)
    return Outcome(
        samples=found,
        windows={name: _windows(timestamps[np.isfinite(values)]) for name, values in samples.items()},
        interval=interval,
        expected=expected,
        implausible={name: _implausible(values, known[name]) for name, values in samples.items() if name in known},
        not_finite=len(timestamps) * len(samples) - sum(found.values()),
        overflowed=sum(int(np.isinf(values).sum()) for values in signals.values()),
        dropped=sum(int(np.isfinite(values).sum()) for values in signals.values()) - report.written - report.unchanged,
        report=report,
        seconds={"extract": extract_s, "aggregate": aggregated - began, "load": loaded - aggregated},
    )


def extract(fonte: Client, columns: Names, days: Sequence[Day], patience_s: float | None = None) -> list[Samples]:
    """Fetch days that follow each other by one request; return the samples of each, slices of the one answer.

    Raises FonteError.
    """
    began = perf_counter()
    most_bytes = SEVERAL_DAYS_BYTES if len(days) > 1 else None
    url, start, end = str(fonte.base_url), days[0].start, days[-1].end
    timestamps, samples = fetch(url, start, end, columns, fonte, most_bytes, patience_s)
    starts = np.array([day.start.replace(tzinfo=None) for day in days], "datetime64[us]")
    slices = [slice(*each) for each in pairwise([*np.searchsorted(timestamps, starts), len(timestamps)])]
    seconds = (perf_counter() - began) / len(days)
    return [Samples(timestamps[each], {name: samples[name][each] for name in samples}, seconds) for each in slices]


def sampling_interval(timestamps: Timestamps) -> timedelta:
    """Return the most frequent step between ascending timestamps; a minute if there is none.

    Of equally frequent steps the shortest counts. With fewer than a dozen steps, one longer than a window counts as a
    minute. A step across a gap is a multiple of the interval. If less than half of the steps are multiples of it, or
    less than a tenth equal it, the times have jitter: steps longer than a second are rounded to seconds. If there are a
    hundred steps or more, and less than half are multiples even then, the median step counts, or the nearest usual
    interval if it lies within the sampling error: three quartile ranges divided by the root of the number of steps.
    """
    steps_us = np.diff(timestamps).astype(np.int64)
    if len(steps_us) == 0:
        return MINUTE
    rounded_us = steps_us
    interval_us, times = _most_frequent(steps_us)
    if 10 * times < len(steps_us) or np.mean(steps_us % interval_us == 0) < 0.5:
        rounded_us = np.where(steps_us > 1_000_000, (steps_us + 500_000) // 1_000_000 * 1_000_000, steps_us)
        interval_us, _ = _most_frequent(rounded_us)
    if len(steps_us) >= 100 and np.mean(rounded_us % interval_us == 0) < 0.5:
        interval_us = int(np.median(rounded_us))
        # Steps that are rounded have a narrower range than the sampling error comes from.
        low_us, high_us = np.percentile(steps_us, [25, 75])
        usual_us = min(USUAL_INTERVALS_US, key=lambda each: abs(each - interval_us))
        is_close = abs(usual_us - interval_us) <= 3 * (high_us - low_us) / len(steps_us) ** 0.5
        interval_us = usual_us if is_close else interval_us
    # A few samples far apart show gaps.
    few = len(steps_us) < 12 and interval_us > WINDOW_S * 1_000_000
    return MINUTE if few else timedelta(microseconds=interval_us)


def _most_frequent(steps_us: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Return the most frequent step, the shortest of several, and how often it occurs."""
    different_us, times = np.unique(steps_us, return_counts=True)
    return int(different_us[np.argmax(times)]), int(times.max())


def _windows(timestamps: Timestamps) -> int:
    """Count the windows that hold these timestamps."""
    return len(np.unique(timestamps.astype(np.int64) // (WINDOW_S * 1_000_000)))


def _implausible(values: Values, variable: Variable) -> int:
    """Count the finite values outside the plausible range."""
    return int((np.isfinite(values) & ((values < variable.lowest) | (values > variable.highest))).sum())


def _unasked(columns: Sequence[str], window_starts: Timestamps) -> dict[str, Values]:
    """Return all statistics filled with NaN, so that the load deletes those that the caller did not request."""
    nothing = np.full(len(window_starts), np.nan)
    return {f"{name}_{statistic}": nothing for name in columns for statistic in ALL_STATISTICS}


def summary(day: Day, outcome: Outcome) -> str:
    """Report one day in several lines: coverage, oddities, changes, seconds."""
    width = max(map(len, outcome.samples))
    lines = [_title(day)]
    for name, samples in outcome.samples.items():
        # Rounded down, because only a complete day has 100 %.
        coverage = f"{samples:,} of {outcome.expected:,} samples ({1000 * samples // outcome.expected / 10:.1f}%)"
        lines.append(f"  {name:{width}}  {coverage}, {count(outcome.windows[name], 'window')}")
    lines += [f"  {oddity}" for oddity in oddities(outcome)]
    phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in outcome.seconds.items())
    lines.append(f"  Alvo: {changes(outcome.report)}")
    lines.append(f"  {sum(outcome.seconds.values()):.2f} s: {phases}")
    return "\n".join(lines)


def oddities(outcome: Outcome) -> list[str]:
    """Report what is unusual about a day."""
    odd = [f"one sample every {outcome.interval.total_seconds():g} s"] * (outcome.interval != MINUTE)
    odd += [f"{name}: {count(found, 'implausible value')}" for name, found in outcome.implausible.items() if found]
    unchecked = ", ".join(name for name in outcome.samples if name not in outcome.implausible)
    odd += [f"not checked for implausible values: {unchecked}"] * bool(unchecked)
    them = "value that is" if outcome.not_finite == 1 else "values that are"
    odd += [f"left out: {outcome.not_finite:,} {them} NULL, NaN or infinite"] * (outcome.not_finite > 0)
    odd += [f"left out: {count(outcome.overflowed, 'result')} beyond the largest double"] * (outcome.overflowed > 0)
    kept = "look for a trigger or rule of its table data"
    return odd + [f"not kept by Alvo: {count(outcome.dropped, 'value')}; {kept}"] * (outcome.dropped > 0)


def line(day: Day, outcome: Outcome) -> str:
    """Report one day among many on one line."""
    samples = f"{sum(outcome.samples.values()):,} of {outcome.expected * len(outcome.samples):,} samples"
    odd = "".join(f", {oddity}" for oddity in oddities(outcome))
    return f"{_title(day)}  {samples}, {changes(outcome.report)}, {sum(outcome.seconds.values()):.2f} s{odd}"


def changes(report: Report) -> str:
    """Report how many of Alvo's values a load changed."""
    return f"{count(report.written, 'value')} written, {report.unchanged:,} unchanged, {report.removed:,} removed"


def _title(day: Day) -> str:
    return f"{day.date} {day.zone}" + (", not over yet" if day.end > datetime.now(UTC) else "")
