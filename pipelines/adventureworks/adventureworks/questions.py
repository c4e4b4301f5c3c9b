"""Print the answers to the five questions of queries/.

ADVENTUREWORKS_DATABASE_URL names the database; unset, it is the embedded PostgreSQL that `make run` fills.
Exit codes: 0 done, 2 bad input, 4 the database failed, 6 standard output cannot be written, 141 the reader of its pipe
is gone.
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from adventureworks import settings
from fonte_alvo import command, engine

# All rows of question 2.
ROWS = 11


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = command.Parser(prog="adventureworks.questions", description=__doc__)
    parser.add_argument("--rows", type=int, metavar="N", default=ROWS, help="rows per question (default: %(default)s)")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="also write the whole answers, as q1.csv to q5.csv")
    options = parser.parse_args(arguments)
    if options.rows < 0:
        parser.error(f"argument --rows: {options.rows}: expected 0 or more")
    return command.run(parser.prog, lambda: show(settings.database_url(or_embedded=True), options.rows, options.csv))


def answers(pool: sa.Engine) -> Iterator[tuple[str, str, Sequence[str], Sequence[tuple[Any, ...]]]]:
    """Yield each query's name and title with the columns and rows of its answer."""
    with pool.connect() as connection:
        for file in sorted((Path(__file__).resolve().parents[1] / "queries").glob("q*.sql")):
            sql = file.read_text()
            title, answer = sql.split("\n", 1)[0].removeprefix("-- "), connection.exec_driver_sql(sql)
            yield file.stem, title, list(answer.keys()), [tuple(row) for row in answer]


def show(url: sa.URL, most: int, folder: Path | None) -> int:
    """Print the first rows of each answer; write the whole answers into the folder, if given; return 0.

    Raises DatabaseError and SettingsError.
    """
    with engine.failures("the database", "check ADVENTUREWORKS_DATABASE_URL, and that the files are loaded"):
        pool = engine.create(url, "adventureworks.questions")
        # All of them first: while `| less` waits, the server would end an idle transaction.
        for name, title, columns, rows in list(answers(pool)):
            print(f"{name}  {title}", *_table([columns, *rows[:most]]), f"    {len(rows):,} rows\n", sep="\n")
            if folder:
                _write(folder / f"{name}.csv", [columns, *rows])
        pool.dispose()
    return 0


def _write(file: Path, rows: Sequence[Sequence[Any]]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)
    except OSError as error:
        raise settings.SettingsError(f"{file} cannot be written: {error.strerror}; name another folder") from error


def _table(rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    texts = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        yield "    " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


if __name__ == "__main__":
    command.begin("adventureworks.questions")
    sys.exit(main())
