"""A day from Fonte to Alvo: extract 1-minute samples, aggregate them to 10-minute statistics, replace the day."""

import argparse
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, date, datetime, time, timedelta
from time import perf_counter
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from psycopg2 import Error as PostgresError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

import command
import settings
from alvo.aggregation import aggregate
from alvo.load import Report, replace_period
from fonte.client import FonteError, RequestRefused, fetch
from postgres import embedded, engine

WINDOW = timedelta(minutes=10)
SAMPLE_INTERVAL = timedelta(minutes=1)

EPILOG = f"""\
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
  {embedded.FOLDER}
To start anew, delete that folder while no command runs.
"""


class BadPeriod(Exception):
    """The asked period cannot be run."""


class EmptyPeriod(Exception):
    """Fonte holds no finite sample in the whole period."""


class Period(NamedTuple):
    """One day, as its title and its half-open period in UTC."""

    title: str
    start: datetime
    end: datetime


class Outcome(NamedTuple):
    """What the run of a period did: finite samples and windows per variable, infinite results, seconds per phase."""

    samples: dict[str, int]
    windows: dict[str, int]
    not_finite: int
    overflowed: int
    report: Report
    seconds: dict[str, float]


# The first that fits counts: RequestRefused is a FonteError.
EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (settings.SettingsError, 2),
    (BadPeriod, 2),
    (RequestRefused, 2),
    (FonteError, 3),
    (SQLAlchemyError, 4),
    (PostgresError, 4),
    (embedded.EmbeddedServerError, 4),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    exit_code = 0
    try:
        periods = list(_periods(options.date, options.last_date or options.date, options.timezone))
        with _fonte() as base_url:
            alvo = engine.create(settings.alvo_database_url(), "etl.py")
            for period in periods:
                try:
                    print(_summary(period, run(base_url, alvo, period.start, period.end, options.columns)), flush=True)
                except EmptyPeriod as empty:
                    print(f"etl.py: {period.title}: {empty}", file=sys.stderr)
                    exit_code = exit_code or 5
    except tuple(kind for kind, _ in EXIT_CODES) as error:
        if options.debug:
            traceback.print_exc()
        print(f"etl.py: {_explained(error)}", file=sys.stderr)
        return exit_code or next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except KeyboardInterrupt:
        print("etl.py: interrupted; the day in hand is the old one or the new one, whole", file=sys.stderr)
        return 130
    return exit_code


def run(base_url: str, alvo: Engine, start: datetime, end: datetime, columns: Sequence[str]) -> Outcome:
    """Carry the period [start, end) of these columns from Fonte at base_url to Alvo. Raises EmptyPeriod."""
    began = perf_counter()
    timestamps, samples = fetch(base_url, start, end, columns)
    extracted = perf_counter()

    window_starts, signals = aggregate(timestamps, samples, int(WINDOW.total_seconds()))
    if len(window_starts) == 0:
        raise EmptyPeriod(f"Fonte holds no finite sample of {', '.join(columns)}; Alvo stays as it was")
    aggregated = perf_counter()

    report = replace_period(alvo, start, end, window_starts, signals)
    loaded = perf_counter()
    finite = {name: int(np.isfinite(values).sum()) for name, values in samples.items()}
    return Outcome(
        samples=finite,
        windows={name: int(np.isfinite(signals[f"{name}_mean"]).sum()) for name in samples},
        not_finite=len(timestamps) * len(samples) - sum(finite.values()),
        overflowed=sum(int(np.isinf(values).sum()) for values in signals.values()),
        report=report,
        seconds={"extract": extracted - began, "aggregate": aggregated - extracted, "load": loaded - aggregated},
    )


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
            raise BadPeriod(f"the days of {zone.key} do not begin on a 10-minute boundary of UTC: choose another zone")
        start, end = (bound.astimezone(UTC) for bound in bounds)
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
    written, unchanged, removed = outcome.report
    phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in outcome.seconds.items())
    lines.append(f"  Alvo: {written:,} values written, {unchanged:,} unchanged, {removed:,} removed")
    lines.append(f"  {sum(outcome.seconds.values()):.2f} s: {phases}")
    return "\n".join(lines)


def _explained(error: BaseException) -> str:
    if isinstance(error, SQLAlchemyError | PostgresError):
        return (
            f"Alvo failed: {engine.reason(error)}; the day is the old one or the new one, whole: "
            "check ALVO_DATABASE_URL and run the command again"
        )
    return str(error)


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="etl.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("date", type=command.day, metavar="DATE", help="the day, YYYY-MM-DD")
    parser.add_argument(
        "last_date", type=command.day, metavar="LAST_DATE", nargs="?", help="last day of a range (default: DATE alone)"
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="NAME",
        default=["wind_speed", "power"],
        help="variables of Fonte: wind_speed (m/s), power (kW), ambient_temperature (degC) (default: wind_speed power)",
    )
    parser.add_argument(
        "--timezone",
        type=_zone,
        metavar="ZONE",
        default=ZoneInfo("UTC"),
        help="the zone whose days are meant, such as America/Sao_Paulo (default: UTC)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise argparse.ArgumentTypeError(f"{name!r} is not a time zone: expected a name such as Europe/Berlin") from None


if __name__ == "__main__":
    sys.exit(main())
