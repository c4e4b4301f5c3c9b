"""Create Fonte, fill it, and print the period that it holds."""

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from psycopg2 import Error as PostgresError
from sqlalchemy.exc import SQLAlchemyError

import command
import settings
from fonte import seeding
from postgres import engine
from postgres.embedded import EmbeddedServerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.start.toordinal() + options.days - 1 > date.max.toordinal():
        parser.error(f"{options.days} days from {options.start} on: the last day lies beyond {date.max}")
    try:
        filled, extent = _seed(options)
    except (settings.SettingsError, seeding.CsvError) as error:
        print(f"seed.py: {error}", file=sys.stderr)
        return 2
    except (SQLAlchemyError, PostgresError, EmbeddedServerError) as error:
        print(
            f"seed.py: Fonte's database failed: {engine.reason(error)}; nothing was written; check FONTE_DATABASE_URL",
            file=sys.stderr,
        )
        return 3
    print(f"{filled.inserted:,} rows inserted, {filled.kept:,} were there already and keep their values")
    print(f"Fonte holds {extent.rows:,} rows from {_shown(extent.first)} to {_shown(extent.last)}")
    return 0


def _seed(options: argparse.Namespace) -> tuple[seeding.Filled, seeding.Extent]:
    pool = engine.create(settings.fonte_database_url(), "seed.py")
    if options.csv:
        filled = seeding.fill_from_csv(pool, options.csv)
    else:
        filled = seeding.fill_synthetic(
            pool, options.start, options.days, options.profile, options.random_seed, lambda done: _progress(done, options.days)
        )
    return filled, seeding.extent(pool)


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="seed.py",
        description=__doc__ + " Rows that are there already keep their values.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="FONTE_DATABASE_URL names the database; unset, it is the embedded server's (see etl.py --help). "
        "Exit codes: 0 done, 2 bad input, 3 Fonte's database failed.",
    )
    parser.add_argument("--start", type=command.day, default=seeding.START, metavar="DATE", help="first UTC day, YYYY-MM-DD")
    parser.add_argument("--days", type=command.positive, default=seeding.DAYS, metavar="N", help="number of days")
    parser.add_argument("--profile", choices=list(seeding.PROFILES), default="turbine", help="kind of synthetic values")
    parser.add_argument("--random-seed", type=command.natural, default=seeding.RANDOM_SEED, metavar="N", help="same seed, same values")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="load this file instead: header timestamp and some of the variables"
    )
    return parser


def _progress(done: int, days: int) -> None:
    if sys.stderr.isatty() and days > seeding.DAYS_PER_COPY:
        print(f"\r{done:,} of {days:,} days", end="\n" if done == days else "", file=sys.stderr)


def _shown(moment: object) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "nothing"


if __name__ == "__main__":
    sys.exit(main())
