"""Create Fonte, fill it, and print the period that it holds. Rows that are there already keep their values.

FONTE_DATABASE_URL names the database; unset, it is the embedded PostgreSQL's (see etl.py --help).
Exit codes: 0 done, 2 bad input, 3 Fonte's database failed, 6 done, but standard output cannot be written. Nothing is
written unless all is.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path

if __name__ == "__main__":
    # Before the imports that may fail, or be interrupted.
    try:
        from fonte_alvo.command import begin
    except ImportError:
        print("seed.py: the project is not installed: run python -m pip install . in its folder", file=sys.stderr)
        sys.exit(2)
    begin("seed.py")

from fonte import schema, seeding
from fonte.client import FonteError
from fonte_alvo import command, engine, settings

# Decades of minutes are one transaction.
TIME_LIMIT_S = 3600


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    most = date.max.toordinal() - options.start.toordinal() + 1
    if not 1 <= options.days <= most:
        parser.error(f"argument --days: {options.days} from {options.start} on: expected 1 to {most}")
    if options.random_seed < 0:
        parser.error(f"argument --random-seed: {options.random_seed}: expected 0 or more")
    return command.run("seed.py", lambda: _seed(options), debug=options.debug)


def _seed(options: argparse.Namespace) -> int:
    with engine.failures("Fonte's database", "nothing was written: check FONTE_DATABASE_URL", FonteError):
        pool = engine.create(settings.fonte_database_url(), "seed.py", time_limit_s=TIME_LIMIT_S)
        with pool.begin() as connection:
            if options.once and not schema.create_absent(connection):
                print("Fonte has its table: nothing was written")
                return 0
            if options.csv:
                filled = seeding.fill_from_csv(connection, options.csv)
            else:
                filled = seeding.fill_synthetic(
                    connection, options.start, options.days, options.profile, options.random_seed, _show_progress
                )
        extent = schema.extent(pool)
    print(f"{filled.inserted:,} rows inserted, {filled.kept:,} were there already and keep their values")
    print(f"Fonte holds {extent.rows:,} rows from {_shown(extent.first_timestamp)} to {_shown(extent.last_timestamp)}")
    return 0


def _show_progress(done: int, days: int) -> None:
    if sys.stderr and sys.stderr.isatty():
        print(f"\r{done:,} of {days:,} days", end="\n" if done == days else "", file=sys.stderr, flush=True)


def _shown(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "nothing"


def _parser() -> command.Parser:
    parser = command.Parser(prog="seed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    start = "first UTC day, YYYY-MM-DD (default: %(default)s)"
    days = "number of days (default: %(default)s)"
    profile = "plausible values of a turbine, or plain random ones (default: %(default)s)"
    seed = "the same seed gives the same values (default: %(default)s)"
    parser.add_argument("--start", type=command.day, metavar="DATE", default=seeding.START, help=start)
    parser.add_argument("--days", type=int, metavar="N", default=seeding.DAYS, help=days)
    parser.add_argument("--profile", choices=list(seeding.PROFILES), default="turbine", help=profile)
    parser.add_argument("--random-seed", type=int, metavar="N", default=seeding.RANDOM_SEED, help=seed)
    parser.add_argument("--once", action="store_true", help="do nothing where Fonte has its table already")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="load this file instead")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


if __name__ == "__main__":
    sys.exit(main())
