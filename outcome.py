"""What the run of a period did, and how it is told."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from alvo.load import Report
from backfill import Period

SAMPLE_INTERVAL = timedelta(minutes=1)


class Outcome(NamedTuple):
    """What the run of a period did: finite samples and windows per variable, what was left out, seconds per phase."""

    samples: dict[str, int]
    windows: dict[str, int]
    not_finite: int
    overflowed: int
    report: Report
    seconds: dict[str, float]


def summary(period: Period, outcome: Outcome) -> str:
    """Tell of one period, in several lines: coverage, what was left out, changes, seconds."""
    expected = (period.end - period.start) // SAMPLE_INTERVAL
    width = max(map(len, outcome.samples))
    lines = [_title(period)]
    for name, samples in outcome.samples.items():
        coverage = f"{samples:,} of {expected:,} samples ({samples / expected:.1%})"
        lines.append(f"  {name:{width}}  {coverage}, {outcome.windows[name]} windows")
    if outcome.not_finite:
        lines.append(f"  left out: {outcome.not_finite:,} values that are NULL, NaN or infinite")
    if outcome.overflowed:
        lines.append(f"  left out: {outcome.overflowed:,} results beyond the largest double")
    phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in outcome.seconds.items())
    lines.append(f"  Alvo: {_changes(outcome.report)}")
    lines.append(f"  {sum(outcome.seconds.values()):.2f} s: {phases}")
    return "\n".join(lines)


def _title(period: Period) -> str:
    return f"{period.day} {period.zone}" + (", not over yet" if period.end > datetime.now(UTC) else "")


def line(period: Period, outcome: Outcome) -> str:
    """Tell of one period among many."""
    expected = (period.end - period.start) // SAMPLE_INTERVAL * len(outcome.samples)
    samples = f"{sum(outcome.samples.values()):,} of {expected:,} samples"
    return f"{_title(period)}  {samples}, {_changes(outcome.report)}, {sum(outcome.seconds.values()):.2f} s"


def total(outcomes: Sequence[Outcome]) -> str:
    """Tell what became of many periods together."""
    reports = [outcome.report for outcome in outcomes]
    changes = Report(*map(sum, zip(*reports, strict=True))) if reports else Report(0, 0, 0)
    return f"{days(len(outcomes))}: {_changes(changes)}"


def days(count: int) -> str:
    """Write a number of days, such as `1 day`."""
    return f"{count:,} day{'s' * (count != 1)}"


def _changes(report: Report) -> str:
    return f"{report.written:,} values written, {report.unchanged:,} unchanged, {report.removed:,} removed"
