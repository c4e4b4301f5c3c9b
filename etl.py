"""A day from Fonte to Alvo: extract 1-minute samples, aggregate them to 10-minute statistics, replace the day.

exit codes:
  0  done
  1  the Dask cluster failed
  2  bad input: arguments, settings, or a request that Fonte refuses
  3  Fonte failed
  4  Alvo failed
  5  no finite sample in the whole day; Alvo stays as it was
  6  Alvo is loaded, but the picture of --plot cannot be written

environment (a file .env beside this one serves too):
  FONTE_API_URL      the connector; unset, this process serves it on a free loopback port
  ALVO_DATABASE_URL  the target, postgresql://USER:PASSWORD@HOST:PORT/DATABASE; unset, the embedded PostgreSQL

The embedded PostgreSQL runs while a command of this checkout uses it, and keeps its data in
  {folder}
To start anew, delete that folder while no command runs.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Literal
from zoneinfo import ZoneInfo

import httpx
import numpy as np
from sqlalchemy import URL, Engine

import backfill
import command
import outcome
import settings
from alvo import load
from alvo.aggregation import ALL_STATISTICS, STATISTICS, Timestamps, Values, aggregate
from alvo.load import replace_period
from backfill import WINDOW, BadPeriod, ClusterError, Period
from fonte.client import FonteError, RequestRefused, connect, fetch, units
from outcome import Outcome
from postgres import embedded, engine
from postgres.engine import DatabaseError
from settings import SettingsError

COLUMNS = ["wind_speed", "power"]
# So that one day is fetched while the one before it is loaded.
DAYS_AT_ONCE = 2
# As many steps as a picture is wide; more would hide the mean in its own zigzag.
PLOT_POINTS = 360


class EmptyPeriod(Exception):
    """Fonte holds no finite sample in the whole period."""


class PictureError(Exception):
    """The picture cannot be written; Alvo is loaded."""


# The first that fits counts: RequestRefused is a FonteError.
EXIT_CODES: dict[type[Exception], int] = {
    SettingsError: 2,
    BadPeriod: 2,
    RequestRefused: 2,
    FonteError: 3,
    DatabaseError: 4,
    EmptyPeriod: 5,
    ClusterError: 1,
    PictureError: 6,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    return command.run("etl.py", lambda: _run(options), EXIT_CODES, debug=options.debug)


def run(
    base_url: str,
    alvo: Engine,
    start: datetime,
    end: datetime,
    columns: Sequence[str],
    statistics: Sequence[str] = STATISTICS,
    http: httpx.Client | None = None,
) -> Outcome:
    """Carry the period [start, end) of these columns from Fonte at base_url to Alvo, as these statistics.

    What Alvo holds of other statistics of these columns goes. http: as fetch takes it. Raises FonteError, DatabaseError
    and EmptyPeriod; Alvo then holds the old period or the new one, whole.
    """
    began = perf_counter()
    timestamps, samples = fetch(base_url, start, end, columns, http)
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


def run_apart(
    base_url: str, alvo_url: URL, columns: Sequence[str], statistics: Sequence[str], period: Period
) -> Outcome:
    """Do as run does, with a connection of its own: for another process, on another machine perhaps."""
    alvo = engine.create(alvo_url, "etl.py")
    try:
        return run(base_url, alvo, period.start, period.end, columns, statistics)
    finally:
        alvo.dispose()


def _run(options: argparse.Namespace) -> int:
    periods = list(backfill.days(options.date, options.last_date or options.date, options.timezone))
    if options.dask and not settings.services_are_external():
        raise SettingsError("--dask needs FONTE_API_URL and ALVO_DATABASE_URL: its workers cannot reach this process")
    with connector() as base_url:
        with engine.failures("Alvo", "set ALVO_DATABASE_URL, or mend what the message says"):
            alvo = engine.create(settings.alvo_database_url(), "etl.py", pool_size=options.days_at_once)
        with connect(base_url) as http:
            code = _load(options, periods, base_url, alvo, http)
            if options.plot and code in (0, EXIT_CODES[EmptyPeriod]):
                _plot(options, periods, alvo, http)
            return code


def _load(
    options: argparse.Namespace, periods: Sequence[Period], base_url: str, alvo: Engine, http: httpx.Client
) -> int:
    if options.resume:
        with engine.failures("Alvo", "set ALVO_DATABASE_URL, or mend what the message says"):
            held = load.held(alvo, [period[-2:] for period in periods], options.columns, ALL_STATISTICS)
        periods = [period for number, period in enumerate(periods) if number not in held]

    def carry(period: Period) -> Outcome:
        return run(base_url, alvo, period.start, period.end, options.columns, options.statistics, http)

    if not periods:
        print("Alvo already holds values of every variable on every day: nothing to do")
        return 0
    if options.last_date is None and options.dask is None:
        try:
            print(outcome.summary(periods[0], carry(periods[0])))
        except EmptyPeriod as error:
            return command.failed("etl.py", error, EXIT_CODES, debug=options.debug)
        return 0
    apart = partial(run_apart, base_url, alvo.url, options.columns, options.statistics)
    with backfill.executor(options.dask, options.days_at_once) as (executor, check):
        results = backfill.run(periods, apart if options.dask else carry, executor, options.days_at_once, check)
        return _run_range(options, periods, results)


def _plot(options: argparse.Namespace, periods: Sequence[Period], alvo: Engine, http: httpx.Client) -> None:
    """Draw what Alvo holds of these days into the file, which is there as a whole or as it was."""
    # Loaded here, because Matplotlib takes longer than the day.
    from alvo import plot, screen

    first, last = periods[0], periods[-1]
    with engine.failures("Alvo", "the days are loaded, but not drawn: check ALVO_DATABASE_URL and run again"):
        shown = screen.signals(alvo, options.columns, first.start, last.end, PLOT_POINTS)
    if shown is None:
        print(f"{options.plot} is not drawn: Alvo holds nothing yet")
        return
    window_starts, signals, window = shown
    known = units(http)
    axes = {name: f"{name} ({known[name]})" if name in known else name for name in options.columns}
    title = f"{first.day} {first.zone}" if first == last else f"{first.day} to {last.day} {first.zone}"
    drawn = (title, first.start, last.end, window_starts, signals, axes)
    unfinished = options.plot.with_name(f".{options.plot.name}.part")
    try:
        if options.plot.suffix.lower() == ".html":
            unfinished.write_bytes(plot.page(*drawn, window=window))
        else:
            form: Literal["svg", "png"] = "svg" if options.plot.suffix.lower() == ".svg" else "png"
            unfinished.write_bytes(plot.picture(*drawn, form=form, window=window))
        unfinished.replace(options.plot)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise PictureError(f"Alvo is loaded, but {options.plot} is not written: {error.strerror}") from error
    print(f"drawn: {options.plot}")


def _run_range(
    options: argparse.Namespace,
    periods: Sequence[Period],
    results: Generator[tuple[Period, Future[Outcome]], None, None],
) -> int:
    """Run day after day; an empty one does not stop the range, another failure does. The first failure counts."""
    outcomes: list[Outcome] = []
    codes: dict[Period, int] = {}
    try:
        with command.progress(len(periods), "day") as (tell, aside):
            for period, future in results:
                error = backfill.failure(future)
                if error is None:
                    outcomes.append(future.result())
                    tell(outcome.line(period, outcomes[-1]))
                    continue
                with aside():
                    codes[period] = command.failed("etl.py", error, EXIT_CODES, debug=options.debug)
                tell(None)
                if isinstance(error, ClusterError) or not (options.keep_going or isinstance(error, EmptyPeriod)):
                    break
    except KeyboardInterrupt:
        # From here on Ctrl-C ends the process at once: the database rolls back what was in hand.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        rest = _again(options, periods[len(outcomes) + len(codes) :])
        print(f"etl.py: interrupted; finishing the day in hand. Go on with:\n  {rest}", file=sys.stderr, flush=True)
        return 130  # 128 + SIGINT, as a shell reports it
    finally:
        results.close()
    print(outcome.total(outcomes))
    failed = [period for period, code in codes.items() if code != EXIT_CODES[EmptyPeriod]]
    if failed and options.keep_going:
        print(
            f"etl.py: {outcome.days(len(failed))} failed. Run them again with:\n  {_again(options, failed)}",
            file=sys.stderr,
        )
    return next(iter(codes.values()), 0)


def _again(options: argparse.Namespace, periods: Sequence[Period]) -> str:
    """Return the commands that run these days with the same options."""
    same = ["--columns", *options.columns] if options.columns != COLUMNS else []
    same += ["--statistics", *options.statistics] if options.statistics != list(STATISTICS) else []
    same += ["--timezone", options.timezone.key] if options.timezone.key != "UTC" else []
    same += ["--days-at-once", str(options.days_at_once)] if options.days_at_once != DAYS_AT_ONCE else []
    same += ["--dask", options.dask] if options.dask else []
    same += ["--keep-going"] if options.keep_going else []
    days = [[str(first)] if first == last else [str(first), str(last)] for first, last in backfill.ranges(periods)]
    return "\n  ".join(shlex.join(["python", "etl.py", *dates, *same]) for dates in days)


def connector(given: str | None = None) -> AbstractContextManager[str]:
    """Give the base URL of the connector, which this process serves where FONTE_API_URL is unset.

    given: in place of FONTE_API_URL. Raises SettingsError and FonteError.
    """
    url = settings.fonte_api_url(given)
    if url is not None:
        return nullcontext(url)
    from fonte.embedded import served

    return served()


def _parser() -> command.Parser:
    description = (__doc__ or "").format(folder=embedded.FOLDER)
    parser = command.Parser(
        prog="etl.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("date", type=command.day, metavar="DATE", help="the day, YYYY-MM-DD")
    parser.add_argument("last_date", type=command.day, metavar="LAST_DATE", nargs="?", help="last day of a range")
    variables = "wind_speed (m/s), power (kW), ambient_temperature (degC); default: wind_speed power"
    parser.add_argument("--columns", nargs="+", metavar="NAME", default=COLUMNS, help=variables)
    wanted = f"some of {' '.join(ALL_STATISTICS)}; default: {' '.join(STATISTICS)}"
    parser.add_argument(
        "--statistics", nargs="+", metavar="NAME", choices=ALL_STATISTICS, default=list(STATISTICS), help=wanted
    )
    zone = "time zone whose days are meant, such as America/Sao_Paulo; default: UTC"
    parser.add_argument("--timezone", type=_zone, metavar="ZONE", default=ZoneInfo("UTC"), help=zone)
    at_once = f"days in hand at once, each with a connection to Fonte and one to Alvo; default: {DAYS_AT_ONCE}"
    parser.add_argument("--days-at-once", type=_positive, metavar="N", default=DAYS_AT_ONCE, help=at_once)
    resume = "leave out days of which Alvo already holds rows of every asked variable"
    parser.add_argument("--resume", action="store_true", help=resume)
    keep_going = "let no failed day stop a range, and tell at its end how to run those days again"
    parser.add_argument("--keep-going", action="store_true", help=keep_going)
    dask = "run the days on a Dask cluster, by its scheduler's address, such as tcp://10.0.0.1:8786; default: here"
    parser.add_argument("--dask", metavar="ADDRESS", help=dask)
    picture = "draw what Alvo then holds of the days into this file, which ends in .png, .svg or .html"
    parser.add_argument("--plot", type=_picture_file, metavar="FILE", help=picture)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise argparse.ArgumentTypeError(f"{name!r} is not a time zone: expected one such as Europe/Berlin") from None


def _picture_file(name: str) -> Path:
    file = Path(name)
    if file.suffix.lower() not in (".png", ".svg", ".html"):
        raise argparse.ArgumentTypeError(f"{name!r} is no picture: expected a file that ends in .png, .svg or .html")
    if not file.parent.is_dir() or file.is_dir():
        raise argparse.ArgumentTypeError(f"{name!r} is no file in a folder that is there")
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("a picture needs Matplotlib: python -m pip install '.[plot]'")
    return file


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100")
    return number


if __name__ == "__main__":
    # By its own name, under which a Dask worker imports what it is sent.
    from etl import main as imported_main

    sys.exit(imported_main())
