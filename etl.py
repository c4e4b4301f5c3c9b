"""A day from Fonte to Alvo: extract 1-minute samples, aggregate them to 10-minute statistics, replace the day.

  python etl.py 2024-05-20                           a day of wind speed and power
  python etl.py yesterday --columns power            one variable alone; the others stay as they are
  python etl.py 2024-05-20 2024-05-29 --resume       ten days, without those that are loaded already

exit codes:
  0  done
  1  the Dask cluster failed, or anything unexpected
  2  bad input: arguments, settings, or a request that Fonte refuses
  3  Fonte failed
  4  Alvo failed
  5  no finite sample in the whole day; Alvo stays as it was
  6  Alvo is loaded, but the picture of --plot or standard output cannot be written
  130  interrupted; 141  the reader of a pipe is gone

environment (the file {home}/.env serves too; FONTE_ALVO_HOME names another folder):
  FONTE_API_URL      the connector; unset, this process serves it on a free loopback port
  ALVO_DATABASE_URL  the target, postgresql://USER:PASSWORD@HOST:PORT/DATABASE; unset, the embedded PostgreSQL

The embedded PostgreSQL runs while a command uses it, and keeps its data in
  {folder}
To start anew, delete that folder while no command runs.
"""

import argparse
import atexit
import gc
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from uuid import uuid4
from zoneinfo import ZoneInfo

if __name__ == "__main__":
    # First, because the other imports may fail or be interrupted.
    try:
        from fonte_alvo.command import begin
    except ImportError:
        print("etl.py: the project is not installed: run python -m pip install . in its folder", file=sys.stderr)
        sys.exit(2)
    begin("etl.py")
    started = perf_counter()
    # The imports make many objects and no garbage. Collections now and at the end would take half as long again.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    # HTTPX would also load its command line, with Click and Rich.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]

from sqlalchemy import Engine

from alvo import load
from alvo.aggregation import ALL_STATISTICS, STATISTICS
from fonte import local
from fonte.client import Client, connect, period, variables
from fonte_alvo import command, engine, settings
from orchestration import day, days
from orchestration.day import COLUMNS, Day, EmptyPeriod, Outcome

QUERY = 'python -m alvo "SELECT timestamp, name, value FROM data JOIN signal ON id = signal_id ORDER BY 1, 2 LIMIT 8"'
# More steps than a picture can show would hide the mean in its own zigzag.
PLOT_POINTS = 360


class PictureError(command.Failure):
    """The picture cannot be written."""

    exit_code = 6


def main(arguments: Sequence[str] | None = None, started: float | None = None) -> int:
    """Run the command, which started at this time of perf_counter; return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(words)
    options.words, options.started = words, started or perf_counter()
    for name, given in (("columns", options.columns), ("statistics", options.statistics)):
        if len(set(given)) < len(given):
            parser.error(f"argument --{name}: {' '.join(given)}: expected each name once")
    try:
        # The date of today depends on the zone.
        dates = [command.day(text, options.timezone) for text in (options.date, options.last_date or options.date)]
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    return command.run("etl.py", lambda: _run(options, *dates), debug=options.debug)


def _run(options: argparse.Namespace, first: date, last: date) -> int:
    asked = list(days.between(first, last, options.timezone))
    with local.base_url() as base_url:
        with engine.failures("Alvo", "set ALVO_DATABASE_URL, or correct what the message names"):
            alvo = engine.create(settings.alvo_database_url(), "etl.py", pool_size=options.days_at_once)
            wanted, note = _wanted(options, asked, alvo)
        with connect(base_url) as fonte:
            code = _load(options, wanted, len(asked) - len(wanted), alvo, fonte)
            if note:
                print(note)
            if options.plot and code in (0, EmptyPeriod.exit_code):
                try:
                    _plot(options, asked, alvo, fonte)
                except command.Failure as error:
                    undrawn = command.failed("etl.py", error, debug=options.debug)
                    return code or undrawn
            elif options.plot:
                command.complain(f"etl.py: {options.plot} is not drawn: not all days are loaded")
            return code


def _wanted(options: argparse.Namespace, asked: Sequence[Day], alvo: Engine) -> tuple[Sequence[Day], str]:
    """Return the days to run, and a note on the incomplete days that --resume leaves out."""
    if not (options.resume or options.incomplete):
        return asked, ""
    periods = [(each.start, each.end) for each in asked]
    records = dict(zip(asked, load.recorded(alvo, periods, options.columns, options.statistics), strict=True))
    if options.incomplete:
        return [each for each in asked if records[each].incomplete], ""
    wanted = [each for each in asked if not records[each].loaded]
    incomplete = [each.date for each in asked if all(records[each])]
    if not incomplete:
        return wanted, ""
    again = _again(options, [(incomplete[0], incomplete[-1])], "--incomplete")
    left_out = command.count(len(incomplete), "day")
    return wanted, f"{left_out} left out with fewer samples than expected. Load them again with:\n  {again}"


def _load(options: argparse.Namespace, wanted: Sequence[Day], left_out: int, alvo: Engine, fonte: Client) -> int:
    if not wanted:
        print(f"{command.count(left_out, 'day')} left out: nothing to do")
        return 0
    if options.last_date or options.dask:
        return _run_range(options, wanted, left_out, alvo, fonte)
    began = perf_counter()
    try:
        done = day.run(fonte, alvo, wanted[0], options.columns, options.statistics)
    except EmptyPeriod as error:
        return command.failed("etl.py", _explained(error, fonte), debug=options.debug)
    seconds = {"start": began - options.started} | done.seconds
    print(day.summary(wanted[0], done._replace(seconds=seconds)) + _notes(options, [done], alvo))
    return 0


def _notes(options: argparse.Namespace, outcomes: Sequence[Outcome], alvo: Engine) -> str:
    """Warn of removed statistics, or after the first load say where the embedded Alvo is."""
    if any(outcome.report.removed for outcome in outcomes) and not set(STATISTICS) <= set(options.statistics):
        asked = " ".join(options.statistics)
        return f"\nAlvo keeps only these statistics of these variables: {asked}"
    new = [outcome for outcome in outcomes if not outcome.report.unchanged]
    # The days are loaded: if Alvo is lost now, they have not failed.
    with suppress(*engine.ERRORS):
        if new and settings.database_is_embedded("Alvo") and load.recorded_periods(alvo) == len(new):
            folder = settings.embedded_folder()
            where = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
            return f"\nAlvo is an embedded PostgreSQL in {where}. See what it holds:\n  {QUERY}"
    return ""


def _explained(error: EmptyPeriod, fonte: Client) -> EmptyPeriod:
    """Add the period that Fonte holds."""
    held = period(fonte)
    return EmptyPeriod(f"{error}; {held}") if held else error


def _run_range(options: argparse.Namespace, wanted: Sequence[Day], left_out: int, alvo: Engine, fonte: Client) -> int:
    """Run day after day, empty ones too; return the exit code of the first failure, or else of an empty day."""
    outcomes: list[Outcome] = []
    codes: dict[Day, int] = {}
    how = (options.columns, options.statistics, fonte, alvo, options.days_at_once, options.dask)
    with days.running(wanted, *how, options.days_per_request) as results, command.progress(len(wanted), "day") as bar:
        try:
            for each, result in results:
                bar.update()
                if isinstance(result, Outcome):
                    outcomes.append(result)
                    # On a terminal the bar replaces the lines of plain days.
                    if bar.disable or not sys.stdout.isatty() or day.oddities(result):
                        with bar.external_write_mode():
                            command.say(day.line(each, result))
                    continue
                if isinstance(result, EmptyPeriod) and not codes:
                    result = _explained(result, fonte)
                with bar.external_write_mode(file=sys.stderr):
                    codes[each] = command.failed(f"etl.py: {each.date}", result, debug=options.debug)
                if isinstance(result, days.ClusterError) or not (options.keep_going or isinstance(result, EmptyPeriod)):
                    break
        except KeyboardInterrupt:
            # A second Ctrl-C ends the process at once, and the database rolls back the running days.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            bar.close()
            fonte.give_up()
            rest = _again(options, days.ranges(_left(wanted, outcomes, codes)))
            where = "; on Dask, tasks that run finish all their days" if options.dask else ""
            command.complain(f"etl.py: interrupted; finishing the running days{where}. Continue with:\n  {rest}")
            return 130  # 128 + SIGINT, as a shell reports it
    left = _left(wanted, outcomes, codes)
    not_run = len(wanted) - len(outcomes) - len(codes)
    empty = list(codes.values()).count(EmptyPeriod.exit_code)
    counts = (empty, len(codes) - empty, not_run, left_out)
    command.say(days.total(outcomes, *counts) + _notes(options, outcomes, alvo))
    if left and options.keep_going:
        again = _again(options, days.ranges(left))
        command.complain(f"etl.py: {command.count(len(left), 'day')} not loaded. Run them again with:\n  {again}")
    # A failure matters more than a day without data.
    failures = [code for code in codes.values() if code != EmptyPeriod.exit_code]
    return next(iter([*failures, *codes.values()]), 0)


def _left(wanted: Sequence[Day], outcomes: Sequence[Outcome], codes: Mapping[Day, int]) -> list[Day]:
    """Return the days that failed, apart from empty ones, and those that did not run."""
    failed = [each for each, code in codes.items() if code != EmptyPeriod.exit_code]
    return failed + list(wanted[len(outcomes) + len(codes) :])


def _plot(options: argparse.Namespace, asked: Sequence[Day], alvo: Engine, fonte: Client) -> None:
    """Draw these days, as Alvo holds them, into the file; a failure leaves the file as it was."""
    # Imported here, because Matplotlib takes longer than the day.
    try:
        from alvo import plot, screen
    except ValueError as error:
        raise PictureError(
            f"{options.plot} is not drawn: {error}; check MPLBACKEND; Alvo keeps what it holds"
        ) from error

    first, last = asked[0], asked[-1]
    with engine.failures("Alvo", "the picture is not drawn: check ALVO_DATABASE_URL and run again"):
        shown = screen.signals(alvo, options.columns, first.start, last.end, PLOT_POINTS)
    if shown is None:
        print(f"{options.plot} is not drawn: Alvo holds nothing yet")
        return
    window_starts, signals, window = shown
    known = variables(fonte)
    axes = {name: f"{name} ({known[name].unit})" if name in known else name for name in options.columns}
    title = f"{first.date} {first.zone}" if first == last else f"{first.date} to {last.date} {first.zone}"
    form = options.plot.suffix[1:].lower()
    drawn = plot.picture(title, first.start, last.end, window_starts, signals, axes, form, window)
    # A link stays one; a random name is nobody else's.
    file = options.plot.resolve()
    unfinished = file.with_name(f".{uuid4().hex}.part")
    try:
        unfinished.write_bytes(drawn)
        unfinished.replace(file)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise PictureError(f"{options.plot} is not written: {error.strerror}; Alvo keeps what it holds") from error
    print(f"drawn: {options.plot}")


def _again(options: argparse.Namespace, ranges: Sequence[tuple[date, date]], *more: str) -> str:
    """Return the commands that run these dates with the same options, and more."""
    left_out = ("--", "--resume", "--incomplete", options.date, options.last_date)
    same = [word for word in options.words if word not in left_out]
    dates = [[str(first)] if first == last else [str(first), str(last)] for first, last in ranges]
    return "\n  ".join(shlex.join(["python", "etl.py", *each, *same, *more]) for each in dates)


def _parser() -> command.Parser:
    description = (__doc__ or "").format(home=settings.home(), folder=settings.embedded_folder())
    parser = command.Parser(prog="etl.py", description=description)
    parser.add_argument("date", metavar="DATE", help="the day, YYYY-MM-DD, today or yesterday")
    parser.add_argument("last_date", metavar="LAST_DATE", nargs="?", help="last day of a range")
    variables = "wind_speed (m/s), power (kW), ambient_temperature (degC); default: wind_speed power"
    parser.add_argument("--columns", nargs="+", metavar="NAME", default=COLUMNS, help=variables)
    wanted = f"some of {' '.join(ALL_STATISTICS)}; default: {' '.join(STATISTICS)}"
    parser.add_argument(
        "--statistics", nargs="+", metavar="NAME", choices=ALL_STATISTICS, default=list(STATISTICS), help=wanted
    )
    zones = "time zone whose days are meant, such as America/Sao_Paulo; default: UTC"
    parser.add_argument("--timezone", type=command.zone, metavar="ZONE", default=ZoneInfo("UTC"), help=zones)
    per_request = f"days per request to Fonte, fewer if their data are large; default: {days.PER_REQUEST}"
    parser.add_argument("--days-per-request", type=_positive, metavar="N", default=days.PER_REQUEST, help=per_request)
    at_once = f"days loaded at once, each with a connection to Alvo; on Dask, requests at once; default: {days.AT_ONCE}"
    parser.add_argument("--days-at-once", type=_positive, metavar="N", default=days.AT_ONCE, help=at_once)
    chosen = parser.add_mutually_exclusive_group()
    resume = "leave out days that Alvo records as loaded with these variables and statistics, after their end"
    chosen.add_argument("--resume", action="store_true", help=resume)
    incomplete = "take only days that Alvo records with fewer samples than expected, or before their end"
    chosen.add_argument("--incomplete", action="store_true", help=incomplete)
    keep_going = "continue a range after a failed day, and print at its end how to run those days again"
    parser.add_argument("--keep-going", action="store_true", help=keep_going)
    dask = "run the days on a Dask cluster: its scheduler's address, as in tcp://10.0.0.1:8786; default: this process"
    parser.add_argument("--dask", metavar="ADDRESS", help=dask)
    picture = "draw the days, as Alvo then holds them, into this file, which ends in .png or .svg"
    parser.add_argument("--plot", type=_picture_file, metavar="FILE", help=picture)
    return parser


def _picture_file(name: str) -> Path:
    file = Path(name)
    if file.suffix.lower() not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{name!r} is no picture: expected a file that ends in .png or .svg")
    try:
        # Python 3.14's is_dir() hides that a name is too long, or a folder closed.
        with suppress(FileNotFoundError):
            file.stat()
        if not file.parent.is_dir() or (file.exists() and not file.is_file()):
            raise argparse.ArgumentTypeError(f"{name!r} is no file, or its folder is missing")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name!r} cannot be written: {error.strerror}") from error
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("a picture needs Matplotlib: python -m pip install '.[plot]'")
    return file


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100")
    return number


if __name__ == "__main__":
    sys.exit(main(started=started))
