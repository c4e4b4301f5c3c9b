"""The tables of tables.toml, one per file, and the table of rejected rows.

A column's `info["name"]` is its name in the file. Its type also says how the file writes a value: money usually with a
decimal comma, any other number with a decimal point, codes padded with blanks.
"""

import re
import tomllib
from collections.abc import Collection, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
ONCE_WHOLE = "references_once_whole"


class Money(sa.Numeric[Decimal]):
    """An exact amount, which the files usually write with a decimal comma."""


class Code(sa.String):
    """A short code, which the files pad with blanks; the table holds it without padding."""


# A column in tables.toml: NAME TYPE, and a question mark if it may be NULL.
_COLUMN = re.compile(r"(\w+) (\w+)(?:\(([0-9,]+)\))?(\??)")
_TYPES: dict[str, Any] = {**vars(sa), "Money": Money, "Code": Code}


def _column(name: str, kind: str, sizes: str, optional: str) -> sa.Column[Any]:
    """Make a column with its name in snake case: SalesOrderID becomes sales_order_id."""
    made = _TYPES[kind](*map(int, re.findall("[0-9]+", sizes)))
    return sa.Column(_lower(name), made, nullable=bool(optional), autoincrement=False, info={"name": name})


def _lower(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _table(file: str, declared: Mapping[str, Any]) -> sa.Table:
    schema, name = map(_lower, file.split("."))
    columns = _COLUMN.findall(f"{declared['columns']}, rowguid Uuid, ModifiedDate DateTime")
    info = {"file": file, "checks": declared.get("checks", {}), "flags": declared.get("flags")}
    rules = [sa.CheckConstraint(condition, name) for name, condition in info["checks"].items()]
    rows = [*(_column(*column) for column in columns), sa.PrimaryKeyConstraint(*declared["key"])]
    table = sa.Table(name, metadata, *rows, *rules, schema=schema, info=info)
    for kind in ("references", ONCE_WHOLE):
        for ours, parent in declared.get(kind, {}).items():
            theirs, names = TABLES[parent].primary_key.columns, ours.split(", ")
            foreign = sa.ForeignKeyConstraint(names, list(theirs), f"{name}_{'_'.join(names)}", info={kind: True})
            table.append_constraint(foreign)
    for index in declared.get("indexes", ()):
        sa.Index(f"{name}_{'_'.join(index)}_index", *(table.c[column] for column in index))
    return table


# In the order of their foreign keys: parents first.
TABLES: dict[str, sa.Table] = {}
for _file, _declared in tomllib.loads(Path(__file__).with_name("tables.toml").read_text("utf-8")).items():
    TABLES[_file] = _table(_file, _declared)

reject = sa.Table(
    "reject",
    metadata,
    sa.Column("file", sa.Text, primary_key=True),
    # line: where the row begins; the column names are line 1.
    sa.Column("line", sa.BigInteger, primary_key=True, autoincrement=False),
    # loaded: whether the row is in its table all the same.
    *(sa.Column("reason", sa.Text, nullable=False), sa.Column("loaded", sa.Boolean, nullable=False)),
    schema="load",
)


def enforced(connection: sa.Connection, table: sa.Table) -> list[sa.ForeignKeyConstraint]:
    """Return the foreign keys that rows must not break."""
    keys = sorted(table.foreign_key_constraints, key=lambda key: list(key.column_keys))
    return [key for key in keys if ONCE_WHOLE not in key.info or _is_there(connection, table, key)]


def create_absent(connection: sa.Connection) -> list[sa.Table]:
    """Create the absent schemas and tables; returns the tables, whose foreign keys `complete` adds."""
    name = sa.text("SELECT name FROM unnest(:names) AS name WHERE to_regclass(name) IS NULL")
    absent = set(connection.scalars(name, {"names": list(metadata.tables)}))
    created = [table for table in metadata.sorted_tables if table.fullname in absent]
    for schema in sorted({str(table.schema) for table in created}):
        connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
    for table in created:
        connection.execute(sa.schema.CreateTable(table, include_foreign_key_constraints=[]))
    return created


def complete(connection: sa.Connection, created: Collection[sa.Table]) -> None:
    """Add the indexes and foreign keys of new tables: after the rows, PostgreSQL builds them faster.

    A key in references_once_whole is added when no row breaks it, if the role owns the table.
    """
    for index in (index for table in created for index in table.indexes):
        connection.execute(sa.schema.CreateIndex(index))
    for table in TABLES.values():
        for key in table.foreign_key_constraints:
            is_absent = not _is_there(connection, table, key)
            if is_absent and (_is_due(connection, table, key) if ONCE_WHOLE in key.info else table in created):
                connection.execute(sa.schema.AddConstraint(key, isolate_from_table=False))


def add(connection: sa.Connection, key: sa.ForeignKeyConstraint) -> bool:
    """Add a foreign key to its table, unless a row breaks it; return whether it was added."""
    with suppress(sa.exc.IntegrityError), connection.begin_nested():
        connection.execute(sa.schema.AddConstraint(key, isolate_from_table=False))
        return True
    return False


def _is_there(connection: sa.Connection, table: sa.Table, key: sa.ForeignKeyConstraint) -> bool:
    there = "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass(:table) AND conname = :key)"
    return bool(connection.scalar(sa.text(there), {"table": table.fullname, "key": key.name}))


def _is_due(connection: sa.Connection, table: sa.Table, key: sa.ForeignKeyConstraint) -> bool:
    """Tell whether the table holds rows, none of which breaks the key, and the role may alter it."""
    [element], rows = key.elements, f"SELECT FROM {table.fullname} AS c"
    parents = f"SELECT FROM {key.referred_table.fullname} AS p WHERE p.{element.column.name} = c.{element.parent.name}"
    broken = f"{rows} WHERE c.{element.parent.name} IS NOT NULL AND NOT EXISTS ({parents})"
    due = f"SELECT pg_has_role(relowner, 'USAGE') AND EXISTS ({rows}) AND NOT EXISTS ({broken}) FROM pg_class"
    return bool(connection.scalar(sa.text(f"{due} WHERE oid = to_regclass(:table)"), {"table": table.fullname}))
