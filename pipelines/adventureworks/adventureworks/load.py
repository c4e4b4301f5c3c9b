"""Loads the files into their tables, all of them or none.

Each file is staged in a temporary table; there PostgreSQL marks the rows that break a check or a key, and from there it
changes the tables, in the order of their foreign keys. A new table takes the rows of a plain file directly, and only
those without their parent are staged. One transaction holds everything: readers see the old rows or the new ones, and
memory does not grow with the files.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from adventureworks import model
from adventureworks.dialect import FileError
from adventureworks.settings import REJECT_LIMIT, Limits
from adventureworks.stage import Open, Report, run, stage

Mode = Literal["replace", "upsert"]
Reports = Mapping[sa.Table, Report]
Act = Callable[[str, Report], None]


class Plan(NamedTuple):
    """The files to load, and how; dialect: the event's settings for them; limits: the largest accepted shares."""

    files: Collection[str]
    mode: Mode = "replace"
    allow_shrink: bool = False
    dialect: Mapping[str, Any] = {}
    limits: Limits = Limits()


def load(engine: sa.Engine, plan: Plan, open_file: Open, tell: Act = lambda *_: None) -> dict[str, Report]:
    """Make the tables hold what the files hold, in one transaction.

    replace: remove rows that a file no longer holds, unless a table outside these files needs them; upsert: keep them.
    open_file: returns the bytes of a file in pieces, and does so again if the load reads it twice. tell: is called for
    each file before the load is committed or fails. Raises FileError, SQLAlchemyError or psycopg2.Error.
    """
    tables = [table for file, table in model.TABLES.items() if file in plan.files]
    with engine.begin() as connection:
        # Hash joins of a million rows stay in memory; small samples suffice to plan them.
        run(connection, "SET LOCAL work_mem = '64MB'; SET LOCAL default_statistics_target = 10")
        run(connection, "SELECT pg_advisory_xact_lock(hashtext('adventureworks.load'))")
        created = model.create_absent(connection)
        staging = partial(stage, connection, open_file=open_file, named=plan.dialect)
        reports = {table: staging(table, is_new=table in created) for table in tables}
        for table in tables:
            _mark(connection, table, reports, plan.mode)
        staged = {table: report for table, report in reports.items() if not report.is_direct}
        # Write before deleting: a row that stays may move away from a parent that is removed.
        for table, report in staged.items():
            report.before = _count(connection, table.fullname)
            run(connection, _write(table))
        for table in reversed(staged) if plan.mode == "replace" else ():
            reports[table].removed = _remove(connection, table, reports[table])
        model.complete(connection, created)
        for table, report in reports.items():
            _record(connection, table, report)
        files = {table.info["file"]: report for table, report in reports.items()}
        for act in (tell, partial(_refuse_above_limits, plan)):
            for file, report in files.items():
                act(file, report)
        return files


def _mark(connection: sa.Connection, table: sa.Table, reports: Reports, mode: Mode) -> None:
    """Mark each row that cannot be loaded with the reason; a row of a new table moves to its staging table."""
    report, name, names = reports[table], table.name, _names(table.columns)
    if (checks := table.info["checks"].items()) and not report.is_direct:
        reasons = " ".join(f"WHEN NOT ({check}) THEN $$breaks {rule}: {check}$$" for rule, check in checks)
        broken = " OR ".join(f"NOT ({check})" for _, check in checks)
        marks = f"UPDATE staged_{name} SET unreadable = true, reason = CASE {reasons} END"
        marked = run(connection, f"{marks} WHERE reason IS NULL AND ({broken})").rowcount
        report.unreadable += marked
        report.rejected += marked
    for key in model.enforced(connection, table):
        parent = reports.get(key.referred_table)
        # If the key can be added, no row breaks it.
        if report.is_direct and (not parent or parent.is_direct) and model.add(connection, key):
            continue
        absent = _absent(connection, key, reports, mode)
        values = " || ', ' || ".join(f"'{ours} ' || s.{ours}" for ours in key.column_keys)
        reason = f"{values} || ' is not in {key.referred_table.fullname}'"
        marks = f"UPDATE staged_{name} AS s SET reason = {reason} WHERE s.reason IS NULL AND {absent}"
        if report.is_direct:
            gone = f"DELETE FROM {table.fullname} AS s WHERE {absent} RETURNING s.ctid AS place, s.*"
            staged = f"SELECT line, {reason}, {names} FROM s JOIN line_{name} USING (place)"
            marks = f"WITH s AS ({gone}) INSERT INTO staged_{name} (line, reason, {names}) {staged}"
        report.rejected += run(connection, marks).rowcount
    distinct = f"SELECT count(DISTINCT ({_names(table.primary_key.columns)})) FROM staged_{name} WHERE reason IS NULL"
    if not report.is_direct and run(connection, distinct).scalar() != report.loaded:
        report.rejected += run(connection, _repeated_keys(table)).rowcount


def _repeated_keys(table: sa.Table) -> str:
    """Return SQL that rejects each loadable row whose key an earlier loadable row has."""
    first = f"min(line) OVER (PARTITION BY {_names(table.primary_key.columns)})"
    return f"""
        UPDATE staged_{table.name} AS s SET reason = 'repeats the key of line ' || n.first
        FROM (SELECT line, {first} AS first FROM staged_{table.name} WHERE reason IS NULL) AS n
        WHERE s.line = n.line AND n.first < n.line"""


def _absent(connection: sa.Connection, key: sa.ForeignKeyConstraint, reports: Reports, mode: Mode) -> str:
    """Return the condition that row s refers to a row that will be absent after the load."""
    parent, same, there, kept = key.referred_table, _refers(key, "s", "p"), [], "true"
    if (report := reports.get(parent)) and not report.is_direct:
        there.append(f"EXISTS (SELECT FROM staged_{parent.name} AS p WHERE p.reason IS NULL AND {same})")
        kept = _kept(connection, parent, report, "p") if mode == "replace" else kept
    if kept:
        there.append(f"EXISTS (SELECT FROM {parent.fullname} AS p WHERE {same} AND {kept})")
    named = [f"s.{ours} IS NOT NULL" for ours in key.column_keys]
    return " AND ".join([*named, *(f"NOT {condition}" for condition in there)])


def _kept(connection: sa.Connection, table: sa.Table, report: Report, alias: str) -> str:
    """Return the condition that a row of the table may be an unreadable row of the file; empty if the file has none.

    Such a row stays as it is. If even a key is unreadable, the condition holds for every row.
    """
    if not report.unreadable:
        return ""
    keys = table.primary_key.columns
    unreadable = f"SELECT FROM staged_{table.name} AS u WHERE u.unreadable"
    unknown = " OR ".join(f"u.{column.name} IS NULL" for column in keys)
    if run(connection, f"SELECT EXISTS ({unreadable} AND ({unknown}))").scalar():
        return "true"
    return f"EXISTS ({unreadable} AND {_equal(keys, 'u', alias)})"


def _write(table: sa.Table) -> str:
    """Return SQL that writes only new and changed rows; ON CONFLICT alone would rewrite unchanged ones too."""
    keys, others = table.primary_key.columns, [column for column in table.columns if not column.primary_key]
    rows = f"staged_{table.name} AS s LEFT JOIN {table.fullname} AS t ON {_equal(keys, 's', 't')}"
    differ = f"({_names(table.columns, 's')}) IS DISTINCT FROM ({_names(table.columns, 't')})"
    return f"""
        INSERT INTO {table.fullname} ({_names(table.columns)})
        SELECT {_names(table.columns, "s")} FROM {rows} WHERE s.reason IS NULL AND {differ}
        ON CONFLICT ({_names(keys)}) DO UPDATE SET {", ".join(f"{c.name} = excluded.{c.name}" for c in others)}"""


def _remove(connection: sa.Connection, table: sa.Table, report: Report) -> int:
    """Remove the rows that the file no longer holds, and return their number.

    Rows that tables outside the event refer to stay; tables within it have already lost their rows.
    """
    # Every row that is not rejected is in the table now.
    if _count(connection, table.fullname) == report.loaded:
        return 0
    good = f"SELECT FROM staged_{table.name} AS s WHERE s.reason IS NULL"
    conditions = [f"EXISTS ({good} AND {_equal(table.primary_key.columns, 's', 't')})"]
    conditions += [
        f"EXISTS (SELECT FROM {child.fullname} AS c WHERE {_refers(key, 'c', 't')})"
        for child in model.TABLES.values()
        for key in model.enforced(connection, child)
        if key.referred_table is table
    ]
    conditions += filter(None, [_kept(connection, table, report, "t")])
    stays = " AND ".join(f"NOT {condition}" for condition in conditions)
    return run(connection, f"DELETE FROM {table.fullname} AS t WHERE {stays}").rowcount


def _record(connection: sa.Connection, table: sa.Table, report: Report) -> None:
    """Replace what the table of rejects says of this file, and complete the report."""
    name = table.info["file"]
    run(connection, f"DELETE FROM load.reject WHERE file = '{name}'")
    if report.rejected:
        bad = f"SELECT '{name}', line, reason, false FROM staged_{table.name} WHERE reason IS NOT NULL"
        run(connection, f"INSERT INTO load.reject (file, line, reason, loaded) {bad}")
        first = run(connection, f"SELECT line, reason FROM load.reject WHERE file = '{name}' ORDER BY line LIMIT 3")
        report.reasons = tuple(f"line {row.line}: {row.reason}" for row in first)
    if flags := table.info["flags"]:
        rows = f"staged_{table.name} WHERE reason IS NULL"
        if report.is_direct:
            rows = f"{table.fullname} AS t JOIN line_{table.name} ON place = t.ctid"
        flagged = f"INSERT INTO load.reject (line, reason, file, loaded) SELECT *, '{name}', true FROM ({flags}) AS f"
        report.flagged = run(connection, flagged.format(rows)).rowcount


def _refuse_above_limits(plan: Plan, file: str, report: Report) -> None:
    """Raise FileError if too many rows are rejected, or the file lacks too many of its table, even ones that stay."""
    reject, shrink = plan.limits
    if report.rejected / report.rows > reject or not report.loaded:
        cannot = f"{report.rejected:,} rows of {report.rows:,} that cannot be loaded; the limit is {100 * reject:.3g} %"
        remedy = "nothing was written: correct the file" + f", or raise {REJECT_LIMIT}" * bool(report.loaded)
        raise FileError("; ".join([f"{file} has {cannot}", remedy, *report.reasons]))
    lacking = max(report.removed, report.before - report.rows) if plan.mode == "replace" else 0
    if lacking and lacking / report.before > shrink and not plan.allow_shrink:
        lacks = f"{lacking:,} rows of {report.before:,} of its table; the limit is {100 * shrink:.3g} %"
        remedy = 'nothing was written: if the file is whole, allow it in the event by "allow_shrink": true'
        raise FileError(f"{file} lacks {lacks}; {remedy}")


def _count(connection: sa.Connection, table: str) -> int:
    return int(run(connection, f"SELECT count(*) FROM {table}").scalar() or 0)


def _names(columns: Iterable[sa.Column[Any]], alias: str = "") -> str:
    return ", ".join(f"{alias}.{column.name}" if alias else column.name for column in columns)


def _equal(columns: Iterable[sa.Column[Any]], left: str, right: str) -> str:
    return " AND ".join(f"{left}.{column.name} = {right}.{column.name}" for column in columns)


def _refers(key: sa.ForeignKeyConstraint, child: str, parent: str) -> str:
    pairs = [(element.parent.name, element.column.name) for element in key.elements]
    return " AND ".join(f"{child}.{ours} = {parent}.{theirs}" for ours, theirs in pairs)
