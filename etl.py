"""A day from Fonte to Alvo: extract 1-minute samples, aggregate them to 10-minute statistics, replace the day.

exit codes:
  0  done
  2  bad input: arguments, settings, or a request that Fonte refuses
  3  Fonte failed
  4  Alvo failed
  5  no finite sample in the whole day; Alvo stays as it was

environment (a file .env beside this one serves too):
  FONTE_API_URL      the connector; unset, this process serves it on a free loopback port
  ALVO_DATABASE_URL  the target, postgresql://USER:PASSWORD@HOST:PORT/DATABASE; unset, the embedded PostgreSQL

The embedded PostgreSQL runs while a command of this checkout uses it, and keeps its data in
  {folder}
To start anew, delete that folder while no command runs.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from time import perf_counter
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from sqlalchemy import Engine

import command
import settings
from alvo.aggregation import ALL_STATISTICS, STATISTICS, Timestamps, Values, aggregate
from alvo.load import Report, replace_period
from fonte.client import FonteError, RequestRefused, fetch
from postgres import embedded, engine
from postgres.engine import DatabaseError
from settings import SettingsError

WINDOW = timedelta(minutes=10)
SAMPLE_INTERVAL = timedelta(minutes=1)


class BadPeriod(Exception):
    """The asked period cannot be run."""


class EmptyPeriod(Exception):
    """Fonte holds no finite sample in the whole period."""


class Period(NamedTuple):
    """One day: its title, and its half-open period in UTC."""

    title: str
    start: datetime
    end: datetime


class Outcome(NamedTuple):
    """What the run of a period did: finite samples and windows per variable, what was left out, seconds per phase."""

    samples: dict[str, int]
    windows: dict[str, int]
    not_finite: int
    overflowed: int
    report: Report
    seconds: dict[str, float]


# The first that fits counts: RequestRefused is a FonteError.
EXIT_CODES = {SettingsError: 2, BadPeriod: 2, RequestRefused: 2, FonteError: 3, DatabaseError: 4, EmptyPeriod: 5}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    return command.run("etl.py", lambda: _run_days(options), EXIT_CODES, debug=options.debug)


def run(
    base_url: str,
    alvo: Engine,
    start: datetime,
    end: datetime,
    columns: Sequence[str],
    statistics: Sequence[str] = STATISTICS,
) -> Outcome:
    """Carry the period [start, end) of these columns from Fonte at base_url to Alvo, as these statistics.

    What Alvo holds of other statistics of these columns goes. Raises FonteError, DatabaseError, and EmptyPeriod; Alvo
    then holds the old period or the new one, whole.
    """
    began = perf_counter()
    timestamps, samples = fetch(base_url, start, end, columns)
    extracted = perf_counter()

    window_starts, signals = aggregate(timestamps, samples, int(WINDOW.total_seconds()), statistics)
    if len(window_starts) == 0:
        raise EmptyPeriod(f"Fonte holds no finite sample of {', '.join(columns)} from {start} to {end}")
    aggregated = perf_counter()

    with engine.failures("Alvo", "it holds the old day or the new one, whole: check ALVO_DATABASE_URL and run again"):
        report = replace_period(alvo, start, end, window_starts, _unasked(columns, window_starts) | signals)
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


def _run_days(options: argparse.Namespace) -> int:
    """Run day after day; an empty one does not stop the range, any other failure does. The first failure counts."""
    periods = list(_periods(options.date, options.last_date or options.date, options.timezone))
    exit_code = 0
    with _fonte() as base_url:
        with engine.failures("Alvo", "set ALVO_DATABASE_URL, or mend what the message says"):
            alvo = engine.create(settings.alvo_database_url(), "etl.py")
        for period in periods:
            day = partial(_run_day, base_url, alvo, period, options.columns, options.statistics)
            code = command.run("etl.py", day, EXIT_CODES, debug=options.debug)
            exit_code = exit_code or code
            if code not in (0, EXIT_CODES[EmptyPeriod]):
                break
    return exit_code


def _run_day(base_url: str, alvo: Engine, period: Period, columns: Sequence[str], statistics: Sequence[str]) -> int:
    print(_summary(period, run(base_url, alvo, period.start, period.end, columns, statistics)), flush=True)
    return 0


def _fonte() -> AbstractContextManager[str]:
    """Give the base URL of the connector, which this process serves where FONTE_API_URL is unset."""
    url = settings.fonte_api_url()
    if url is not None:
        return nullcontext(url)
    from fonte.embedded import served

    return served()


def _periods(first: date, last: date, zone: ZoneInfo) -> Iterator[Period]:
    if last < first:
        raise BadPeriod(f"the range ends on {last}, before it begins on {first}: put the earlier date first")
    today = datetime.now(zone).date()
    if last > today:
        raise BadPeriod(f"{last} is in the future: the last day that can be run is today, {today} in {zone.key}")
    for number in range(first.toordinal(), last.toordinal() + 1):
        day = date.fromordinal(number)
        bounds = [datetime.combine(midnight, time(), zone) for midnight in (day, day + timedelta(days=1))]
        if any((bound.utcoffset() or timedelta()) % WINDOW for bound in bounds):
            raise BadPeriod(f"{day} in {zone.key} does not begin and end on a 10-minute boundary: choose another zone")
        try:
            start, end = (bound.astimezone(UTC) for bound in bounds)
        except OverflowError:
            raise BadPeriod(f"{day} in {zone.key} begins before the year 1 in UTC: choose a later day") from None
        if start == end:
            raise BadPeriod(f"{day} does not exist in {zone.key}: leave it out")
        yield Period(f"{day} {zone.key}" + (", not over yet" if day == today else ""), start, end)


def _summary(period: Period, outcome: Outcome) -> str:
    expected = (period.end - period.start) // SAMPLE_INTERVAL
    width = max(map(len, outcome.samples))
    lines = [period.title]
    for name, samples in outcome.samples.items():
        coverage = f"{samples:,} of {expected:,} samples ({samples / expected:.1%})"
        lines.append(f"  {name:{width}}  {coverage}, {outcome.windows[name]} windows")
    if outcome.not_finite:
        lines.append(f"  left out: {outcome.not_finite:,} values that are NULL, NaN or infinite")
    if outcome.overflowed:
        lines.append(f"  left out: {outcome.overflowed:,} results beyond the largest double")
    phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in outcome.seconds.items())
    lines.append("  Alvo: {:,} values written, {:,} unchanged, {:,} removed".format(*outcome.report))
    lines.append(f"  {sum(outcome.seconds.values()):.2f} s: {phases}")
    return "\n".join(lines)


def _parser() -> command.Parser:
    description = (__doc__ or "").format(folder=embedded.FOLDER)
    parser = command.Parser(
        prog="etl.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("date", type=command.day, metavar="DATE", help="the day, YYYY-MM-DD")
    parser.add_argument("last_date", type=command.day, metavar="LAST_DATE", nargs="?", help="last day of a range")
    variables = "wind_speed (m/s), power (kW), ambient_temperature (degC); default: wind_speed power"
    parser.add_argument("--columns", nargs="+", metavar="NAME", default=["wind_speed", "power"], help=variables)
    wanted = f"some of {' '.join(ALL_STATISTICS)}; default: {' '.join(STATISTICS)}"
    parser.add_argument(
        "--statistics", nargs="+", metavar="NAME", choices=ALL_STATISTICS, default=list(STATISTICS), help=wanted
    )
    zone = "time zone whose days are meant, such as America/Sao_Paulo; default: UTC"
    parser.add_argument("--timezone", type=_zone, metavar="ZONE", default=ZoneInfo("UTC"), help=zone)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise argparse.ArgumentTypeError(f"{name!r} is not a time zone: expected one such as Europe/Berlin") from None


if __name__ == "__main__":
    sys.exit(main())
