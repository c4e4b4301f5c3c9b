"""Loads the files into their tables, all of them or none.

Each file is copied as a stream into a temporary table; there PostgreSQL marks the rows that break a check or a key, and
from there it changes the tables, in the order of their foreign keys. One transaction holds everything: readers see the
old rows or the new ones, and memory does not grow with the files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from psycopg2 import Error as PostgresError

from adventureworks import dialect, model

# Large pieces make few system calls.
PIECE_CHARACTERS = 256 * 1024

Mode = Literal["replace", "upsert"]
Open = Callable[[str], Iterable[bytes]]


class Report(NamedTuple):
    """What became of a file's rows: read, in the table now, left out, in the table though something is missing."""

    rows: int
    loaded: int
    rejected: int
    flagged: int


def load(engine: sa.Engine, files: Sequence[str], mode: Mode, open_file: Open) -> dict[str, Report]:
    """Make the tables hold what the files hold, in one transaction.

    files: names such as Sales.Customer. replace: rows of which a file holds nothing go, unless a table outside these
    files needs them; upsert: they stay.
    open_file gives the bytes of a file in pieces. Raises FileError, SQLAlchemyError or psycopg2.Error.
    """
    tables = [table for file, table in model.TABLES.items() if file in files]
    with engine.begin() as connection:
        model.create_absent(connection)
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('adventureworks.load'))"))
        for table in tables:
            _stage(connection, table, open_file)
        replaced = {table.fullname for table in tables if mode == "replace"}
        staged = {table.fullname for table in tables}
        for table in tables:
            _mark(connection, table, staged, replaced)
            _refuse_if_all_broken(connection, table)
        # Before the deletes: a row that stays may leave a parent that goes.
        for table in tables:
            connection.execute(sa.text(_upsert(table)))
        for table in reversed(tables) if mode == "replace" else ():
            connection.execute(sa.text(_delete(table)))
        return {table.info["file"]: _report(connection, table) for table in tables}


def _stage(connection: sa.Connection, table: sa.Table, open_file: Open) -> None:
    """Copy a file into a temporary table, which has its line numbers and the reasons to reject rows as well."""
    kinds = f"CAST(NULL AS bigint) AS line, CAST(NULL AS text) AS reason, {_names(table.columns, table.name)}"
    definition = f"SELECT {kinds} FROM {table.fullname} WITH NO DATA"
    connection.execute(sa.text(f"CREATE TEMP TABLE {_staged(table)} ON COMMIT DROP AS {definition}"))
    file = table.info["file"]
    try:
        _copy(connection, f"COPY {_staged(table)} FROM STDIN", dialect.copy_rows(open_file(file), list(table.columns)))
    except dialect.FileError as error:
        raise dialect.FileError(f"{file} {error}") from error
    connection.execute(sa.text(f"ANALYZE {_staged(table)}"))


class _Stream:
    """A file for psycopg2 to read: pieces of text, in order."""

    def __init__(self, rows: Iterator[str]) -> None:
        self.error: Exception | None = None
        self._pieces = _pieces(rows)

    def read(self, _: int) -> bytes:
        try:
            return next(self._pieces, b"")
        except Exception as error:
            self.error = error
            raise


def _pieces(rows: Iterator[str]) -> Iterator[bytes]:
    held, characters = [], 0
    for row in rows:
        held.append(row)
        characters += len(row)
        if characters >= PIECE_CHARACTERS:
            yield "".join(held).encode()
            held, characters = [], 0
    yield "".join(held).encode()


def _copy(connection: sa.Connection, command: str, rows: Iterator[str]) -> None:
    stream = _Stream(rows)
    with closing(connection.connection.cursor()) as cursor:
        try:
            cursor.copy_expert(command, stream)
        except PostgresError as error:
            if stream.error:
                # PostgreSQL only tells that the client gave up.
                raise stream.error from None
            if cursor.connection.closed:
                # A rollback, which SQLAlchemy would try, fails too, and would hide why the connection was lost.
                connection.invalidate(error)
            raise


def _mark(connection: sa.Connection, table: sa.Table, staged: set[str], replaced: set[str]) -> None:
    """Write into each staged row that cannot be loaded the reason why."""
    for statement, parameters in _broken_checks(table):
        connection.execute(sa.text(statement), parameters)
    for key in model.enforced(table):
        connection.execute(sa.text(_broken_reference(table, key, staged, replaced)))
    connection.execute(sa.text(_repeated_keys(table)))


def _refuse_if_all_broken(connection: sa.Connection, table: sa.Table) -> None:
    """Raise FileError where no row is left: a file that was written in another way is no reason to empty a table."""
    whole = f"SELECT FROM {_staged(table)} WHERE reason IS NULL"
    first = f"SELECT line, reason FROM {_staged(table)} WHERE NOT EXISTS ({whole}) ORDER BY line LIMIT 1"
    if broken := connection.execute(sa.text(first)).first():
        told = "holds no row that can be loaded, which is no reason to empty a table; its line"
        raise dialect.FileError(f"{table.info['file']} {told} {broken.line}: {broken.reason}")


def _broken_checks(table: sa.Table) -> Iterator[tuple[str, Mapping[str, Any]]]:
    checks = [check for check in table.constraints if isinstance(check, sa.CheckConstraint)]
    for check in sorted(checks, key=lambda check: str(check.name)):
        condition = f"reason IS NULL AND NOT ({check.sqltext})"
        reason = {"reason": f"breaks {check.name}: {check.sqltext}"}
        yield f"UPDATE {_staged(table)} SET reason = :reason WHERE {condition}", reason


def _repeated_keys(table: sa.Table) -> str:
    """Let the first row of a key stand, of those that nothing else breaks."""
    key = _names(table.primary_key.columns)
    repeated = f"SELECT {key}, min(line) AS first FROM {_staged(table)} WHERE reason IS NULL GROUP BY {key}"
    return f"""
        UPDATE {_staged(table)} AS s SET reason = 'repeats the key of line ' || r.first
        FROM ({repeated} HAVING count(*) > 1) AS r
        WHERE s.reason IS NULL AND s.line > r.first AND {_equal(table.primary_key.columns, "s", "r")}"""


def _broken_reference(table: sa.Table, key: sa.ForeignKeyConstraint, staged: set[str], replaced: set[str]) -> str:
    """Mark the rows that refer to a row which will not be there when all tables are written."""
    parent = key.referred_table
    same = _refers(key, "s", "p")
    there = []
    if parent.fullname in staged:
        there.append(f"EXISTS (SELECT FROM {_staged(parent)} AS p WHERE p.reason IS NULL AND {same})")
    if parent.fullname not in replaced:
        there.append(f"EXISTS (SELECT FROM {parent.fullname} AS p WHERE {same})")
    shown = " || ', ' || ".join(f"'{ours} ' || s.{ours}" for ours in key.column_keys)
    absent = " AND ".join(f"NOT {condition}" for condition in there)
    named = " AND ".join(f"s.{ours} IS NOT NULL" for ours in key.column_keys)
    return f"""
        UPDATE {_staged(table)} AS s SET reason = {shown} || ' is not in {parent.fullname}'
        WHERE s.reason IS NULL AND {named} AND {absent}"""


def _delete(table: sa.Table) -> str:
    """Keep the rows that are referred to: by tables outside the event, for those within it lose their rows first."""
    same = _equal(table.primary_key.columns, "s", "t")
    keys = [(child, key) for child in model.TABLES.values() for key in model.enforced(child)]
    needed = [
        f"AND NOT EXISTS (SELECT FROM {child.fullname} AS c WHERE {_refers(key, 'c', 't')})"
        for child, key in keys
        if key.referred_table is table
    ]
    return f"""
        DELETE FROM {table.fullname} AS t
        WHERE NOT EXISTS (SELECT FROM {_staged(table)} AS s WHERE s.reason IS NULL AND {same}) {" ".join(needed)}"""


def _upsert(table: sa.Table) -> str:
    """Write the rows that differ only: ON CONFLICT alone would lock, and so write, every row that it meets."""
    others = [column.name for column in table.columns if not column.primary_key]
    changes = ", ".join(f"{name} = excluded.{name}" for name in others)
    same_key = _equal(table.primary_key.columns, "s", "t")
    return f"""
        INSERT INTO {table.fullname} ({_names(table.columns)})
        SELECT {_names(table.columns, "s")} FROM {_staged(table)} AS s LEFT JOIN {table.fullname} AS t ON {same_key}
        WHERE s.reason IS NULL AND ({_names(table.columns, "s")}) IS DISTINCT FROM ({_names(table.columns, "t")})
        ON CONFLICT ({_names(table.primary_key.columns)}) DO UPDATE SET {changes}"""


# An order is loaded without its customer's name: question 3 then leaves it out, and this tells of it.
_NAMELESS = f"""
    INSERT INTO load.reject (file, line, reason, loaded)
    SELECT :file, s.line, concat('customer_id ', s.customer_id, ' has no name: ',
        coalesce('person_id ' || c.person_id || ' is not in person.person', 'it names no person')), true
    FROM {{staged}} AS s JOIN {model.customer.fullname} AS c USING (customer_id)
    WHERE s.reason IS NULL
        AND NOT EXISTS (SELECT FROM {model.person.fullname} AS p WHERE p.business_entity_id = c.person_id)"""


def _report(connection: sa.Connection, table: sa.Table) -> Report:
    """Replace what the table of rejects says of this file, and count."""
    file = {"file": table.info["file"]}
    connection.execute(sa.text("DELETE FROM load.reject WHERE file = :file"), file)
    rejected = f"SELECT :file, line, reason, false FROM {_staged(table)} WHERE reason IS NOT NULL"
    left_out = connection.execute(sa.text(f"INSERT INTO load.reject (file, line, reason, loaded) {rejected}"), file)
    flagged = 0
    if table is model.sales_order_header:
        flagged = connection.execute(sa.text(_NAMELESS.format(staged=_staged(table))), file).rowcount
    rows = connection.scalar(sa.text(f"SELECT count(*) FROM {_staged(table)}")) or 0
    return Report(rows, rows - left_out.rowcount, left_out.rowcount, flagged)


def _staged(table: sa.Table) -> str:
    return f"staged_{table.name}"


def _names(columns: Iterable[sa.Column[Any]], alias: str = "") -> str:
    return ", ".join(f"{alias}.{column.name}" if alias else column.name for column in columns)


def _equal(columns: Iterable[sa.Column[Any]], left: str, right: str) -> str:
    return " AND ".join(f"{left}.{column.name} = {right}.{column.name}" for column in columns)


def _refers(key: sa.ForeignKeyConstraint, child: str, parent: str) -> str:
    pairs = [(element.parent.name, element.column.name) for element in key.elements]
    return " AND ".join(f"{child}.{ours} = {parent}.{theirs}" for ours, theirs in pairs)
