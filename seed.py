"""Create Fonte, fill it, and print the period that it holds. A value that is there stays; a missing one is filled.

FONTE_DATABASE_URL names the database; unset, it is the embedded PostgreSQL's (see etl.py --help).
A run writes everything or nothing; --live commits each minute.

  python seed.py                                     ten days of a turbine, from 2024-05-20 on
  python seed.py --csv scada.csv --dry-run           what a file holds, without loading it
  python seed.py --live                              each minute as it comes, until Ctrl-C

A CSV file has a header, a column `timestamp` in ISO 8601, and a column for each variable that it holds; options
describe any other form. docs/your-own-data.md shows five kinds of files, each with its command.

Exit codes: 0 done, 1 an unexpected failure, 2 bad input, 3 Fonte's database failed, 6 done, but standard output cannot
be written, 130 interrupted, 141 the reader of a pipe is gone.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Event

if __name__ == "__main__":
    # First, because the other imports may fail or be interrupted.
    try:
        from fonte_alvo.command import begin
    except ImportError:
        print("seed.py: the project is not installed: run python -m pip install . in its folder", file=sys.stderr)
        sys.exit(2)
    begin("seed.py")

from sqlalchemy import Connection

from fonte import schema, seeding
from fonte.client import FonteError
from fonte.seeding import Merged
from fonte_alvo import command, engine, settings
from fonte_alvo.command import count

# Decades of minutes are one transaction, whose merge may take long.
TIME_LIMIT_S = 3600
# Bounds the memory of a long seed.
DAYS_PER_COPY = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser, of_files = _parser()
    options = parser.parse_args(arguments)
    most = date.max.toordinal() - options.start.toordinal()
    if not most:
        parser.error(f"argument --start: {options.start}: expected 9999-12-30 or earlier")
    if not 1 <= options.days <= most:
        parser.error(f"argument --days: {options.days} from {options.start} on: expected 1 to {most}")
    if options.random_seed < 0:
        parser.error(f"argument --random-seed: {options.random_seed}: expected 0 or more")
    strays = [each.option_strings[0] for each in of_files if getattr(options, each.dest) != each.default]
    if strays and not options.csv:
        parser.error(f"argument {strays[0]}: belongs to --csv FILE")
    if repeated := Counter(name for name, _ in options.column) - Counter(dict(options.column).keys()):
        parser.error(f"argument --column: {next(iter(repeated))}: expected each variable once")
    if twice := Counter(options.csv) - Counter({Path(name).absolute(): name for name in options.csv or []}.values()):
        parser.error(f"argument --csv: {next(iter(twice))}: expected each file once")
    if options.interval and options.label != "end":
        parser.error("argument --interval: belongs to --label end")
    if (options.csv or options.live) and (options.start, options.days) != (seeding.START, seeding.DAYS):
        parser.error("--start and --days choose synthetic days: leave them out with --csv and with --live")
    return command.run("seed.py", lambda: _seed(options), debug=options.debug)


def _seed(options: argparse.Namespace) -> int:
    if options.dry_run:
        _load(None, options, ExitStack())
        print("nothing was loaded, because of --dry-run")
        return 0
    with engine.failures("Fonte's database", "check FONTE_DATABASE_URL and run again", FonteError):
        # A pipe may send rows for days.
        limit_s = TIME_LIMIT_S * 24 * 7 if options.csv else TIME_LIMIT_S
        pool = engine.create(settings.fonte_database_url(), "seed.py", check_pooled=True, time_limit_s=limit_s)
        if options.live:
            command.notice("filling Fonte to now, from ten days ago at most; then a row each minute, until Ctrl-C")
            for merged in seeding.live(pool, options.profile, options.random_seed, Event()):
                _report(merged, schema.extent(pool), options)
            return 0
        # Its callbacks run after the transaction, and receive its exception.
        with ExitStack() as after, pool.begin() as connection:
            if not schema.create_absent(connection) and options.once:
                print("Fonte has its table: nothing was written")
                return 0
            if options.csv:
                # A pipe may pause for longer than the limit.
                connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            merged = _load(connection, options, after) if options.csv else _fill(connection, options)
        _report(merged, schema.extent(pool), options)
    return 0


def _fill(connection: Connection, options: argparse.Namespace) -> Merged:
    """Merge the synthetic days."""
    merged = []
    with command.progress(options.days, "day") as bar:
        for done in range(0, options.days, DAYS_PER_COPY):
            days = min(DAYS_PER_COPY, options.days - done)
            bounds = seeding.midnight(options.start, done), seeding.midnight(options.start, done + days)
            merged.append(seeding.fill_synthetic(connection, *bounds, options.profile, options.random_seed))
            bar.update(days)
    return seeding.total(merged)


def _load(connection: Connection | None, options: argparse.Namespace, after: ExitStack) -> Merged:
    """Merge the files; without a connection only report what they hold. `after` keeps or removes their bad rows."""
    # Imported here, because pandas takes longer than a day of etl.py.
    from fonte import files

    merged, left_out = [], set[Path]()
    for name in options.csv:
        with files.opened(name, options) as file:
            after.push(file.keep_bad_rows)
            command.say(file.form)
            if connection is None:
                command.say(files.look(file))
            else:
                merged.append(seeding.merge(connection, file, name, replace=options.replace))
        if file.bad_rows:
            if file.left_out in left_out:
                raise files.FileError(f"{name}: {file.left_out} is that of another file too: load one at a time")
            left_out.add(file.left_out)
            where = ""
            if connection:
                where = f", and written to {file.left_out}: correct it, and load it with --decimal {file.decimal}"
            if connection and options.label == "end":
                where += f" --interval {file.interval.item().total_seconds() / 60:.15g}"
            command.say(f"{name}: {count(file.bad_rows, 'bad row')} left out{where}")
    return seeding.total(merged)


def _report(merged: Merged, extent: schema.Extent, options: argparse.Namespace) -> None:
    filled = f"{merged.filled:,} had missing values filled"
    differing = f"{merged.differing:,} that differ {'are overwritten' if options.replace else 'keep their values'}"
    print(f"{count(merged.inserted, 'row')} inserted, {merged.present:,} were there already: {filled}, {differing}")
    first, last = (each and f"{each:%Y-%m-%d %H:%M} UTC" for each in (extent.first_timestamp, extent.last_timestamp))
    print(f"Fonte holds {count(extent.rows, 'row')} from {first or 'nothing'} to {last or 'nothing'}", flush=True)


def _parser() -> tuple[command.Parser, list[argparse.Action]]:
    """Return the parser, and the options that need --csv."""
    parser = command.Parser(prog="seed.py", description=__doc__)
    start = "first UTC day, YYYY-MM-DD, yesterday or today (default: %(default)s)"
    days = "number of days (default: %(default)s)"
    profile = "plausible values of a turbine, or plain random ones (default: %(default)s)"
    seed = "the same seed gives the same values (default: %(default)s)"
    parser.add_argument("--start", type=command.day, metavar="DATE", default=seeding.START, help=start)
    parser.add_argument("--days", type=int, metavar="N", default=seeding.DAYS, help=days)
    parser.add_argument("--profile", choices=list(seeding.PROFILES), default="turbine", help=profile)
    parser.add_argument("--random-seed", type=int, metavar="N", default=seeding.RANDOM_SEED, help=seed)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--once", action="store_true", help="do nothing where Fonte has its table already")
    live = "fill from the last row, ten days back at most, to now; then add a row each minute, until Ctrl-C"
    what.add_argument("--live", action="store_true", help=live)
    what.add_argument("--csv", nargs="+", type=_file, metavar="FILE", help="load these files, - for standard input")
    return parser, _of_files(parser.add_argument_group("with --csv").add_argument)


def _of_files(add: Callable[..., argparse.Action]) -> list[argparse.Action]:
    columns = "columns of the variables (default: those with their names)"
    times = "columns whose texts, joined by a blank, are the time; =1999 is the text 1999 (default: timestamp)"
    interval = "averaging interval with --label end (default: the most frequent step of the first rows)"
    markers = "texts that mean no value, besides NA, NULL and the like; --missing=-9999,9 or --missing=--- too"
    header = "header's line; 0: none, columns are named 1, 2, 3 (default: the first line that is not empty)"
    # The header and first row lie in fonte.files.HEAD_LINES.
    lines = _within(0, 999)
    delimiters = ["comma", "semicolon", "tab", "bar", "blanks"]
    return [
        add("--dry-run", action="store_true", help="show what the files hold, and load nothing"),
        add("--column", nargs="+", action="extend", type=_column, default=[], metavar="NAME=HEADER", help=columns),
        add("--timestamp", nargs="+", default=["timestamp"], metavar="HEADER", help=times),
        add("--timestamp-format", metavar="FORMAT", help="as in '%%d.%%m.%%Y %%H:%%M' (default: ISO 8601)"),
        add("--csv-timezone", type=command.zone, metavar="ZONE", help="zone of times without offset (default: UTC)"),
        add("--label", choices=["start", "end"], default="start", help="which end of its interval a time names"),
        add("--interval", type=_within(0.001, 1440, float), metavar="MINUTES", help=interval),
        add("--missing", nargs="+", action="extend", default=[], metavar="MARKER", help=markers),
        add("--delimiter", choices=delimiters, help="(default: the one that fits)"),
        add("--decimal", choices=[".", ","], help="decimal mark (default: the one that fits)"),
        add("--encoding", metavar="NAME", help="such as latin-1 (default: utf-8, or utf-16 if the file has its mark)"),
        add("--comment", metavar="MARK", help="leave out lines that begin with it"),
        add("--header-line", type=lines, metavar="N", help=header),
        add("--first-row", type=lines, default=0, metavar="N", help="first row's line (default: after the header)"),
        add("--index-column", action="store_true", help="rows begin with a column that the header leaves out"),
        add("--skip-bad-rows", action="store_true", help="load the others; FILE.bad receives the bad ones"),
        add("--replace", action="store_true", help="overwrite values that differ"),
    ]


def _file(name: str) -> str:
    held = version("pandas") if find_spec("pandas") else ""
    # An older one reads 0.30000000000000004 as 0.3.
    if not held or [int(part) for part in held.split(".")[:2]] < [3, 1]:
        said = f"files are read with pandas 3.1 or newer{held and f', not {held}'}"
        raise argparse.ArgumentTypeError(f"{said}: python -m pip install '.[files]'")
    return name


def _within(least: float, most: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"{text}: expected {least} to {most}")
        return kind(text)

    return number


def _column(text: str) -> tuple[str, str]:
    name, _, header = text.partition("=")
    names = [each.name for each in schema.VARIABLES]
    if name not in names or not header:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=HEADER, NAME one of {', '.join(names)}")
    return name, header


if __name__ == "__main__":
    sys.exit(main())
