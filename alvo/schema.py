"""Alvo's tables. `python -m alvo.schema` creates them as their owner.

Alvo is the database that ALVO_DATABASE_URL names; unset, it is the embedded one (see etl.py --help).
"""

import sys
from collections.abc import Sequence

if __name__ == "__main__":
    from fonte_alvo.command import begin

    begin("alvo.schema")

import sqlalchemy as sa

from fonte_alvo.engine import DatabaseError

metadata = sa.MetaData()

signal = sa.Table(
    "signal",
    metadata,
    sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True, comment="{variable}_{statistic}, such as wind_speed_mean"),
)

data = sa.Table(
    "data",
    metadata,
    sa.Column("timestamp", sa.DateTime(timezone=True), comment="Start of the 10-minute window"),
    sa.Column("signal_id", sa.Integer, sa.ForeignKey("signal.id")),
    sa.Column("value", sa.Double, nullable=False),
    # Signal first: a day's load and a reader's period of one signal are each one range of this index.
    sa.PrimaryKeyConstraint("signal_id", "timestamp"),
    sa.CheckConstraint("timestamp = date_bin('10 minutes', timestamp, TIMESTAMPTZ 'epoch')", name="data_on_window"),
    sa.CheckConstraint("value <> 'NaN'", name="data_not_nan"),
)


# The record of each load, which --resume and --incomplete read.
load = sa.Table(
    "load",
    metadata,
    sa.Column("period_start", sa.DateTime(timezone=True), primary_key=True),
    sa.Column("period_end", sa.DateTime(timezone=True), primary_key=True),
    sa.Column("variable", sa.Text, primary_key=True),
    sa.Column("statistics", sa.ARRAY(sa.Text), nullable=False),
    sa.Column("samples", sa.Integer, nullable=False),
    sa.Column("expected", sa.Integer, nullable=False),
    sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

# For queries by time alone, which the primary key does not serve.
by_time = sa.Index("data_by_time", data.c.timestamp, postgresql_using="brin")


def create_absent(connection: sa.Connection) -> None:
    """Create the tables and the index that are absent, in the caller's transaction.

    Raises DatabaseError for a table of one of these names that is not Alvo's; nothing is created then.
    """
    # Two simultaneous first loads would both find nothing and then collide: the second waits here.
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("alvo.schema"))))
    if foreign := _foreign(connection):
        raise DatabaseError(f"Alvo failed: {foreign}")
    metadata.create_all(connection)
    # Only the owner of a table may add an index to it.
    owned = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('data')"
    if connection.scalar(sa.text(owned)):
        by_time.create(connection, checkfirst=True)


def obstacle(engine: sa.Engine) -> str:
    """Return which table is absent or not Alvo's, and the remedy. Raises SQLAlchemyError."""
    with engine.connect() as connection:
        absent = next((table.name for table in (signal, data) if not _columns(connection, table)), None)
        if absent:
            return f"it has no table {absent}, which `python -m alvo.schema` makes"
        return _foreign(connection) or "it refuses the query; its log says why"


def _foreign(connection: sa.Connection) -> str | None:
    """Return which table lacks a column of ours, because it is another one of the same name."""
    for table in metadata.tables.values():
        held = _columns(connection, table)
        if held and (lacking := [column.name for column in table.columns if column.name not in held]):
            return f"its table {table.name} has no column {lacking[0]}, so it is not Alvo's: correct ALVO_DATABASE_URL"
    return None


def _columns(connection: sa.Connection, table: sa.Table) -> Sequence[str]:
    """Return the names of the table's columns; none where it is absent."""
    query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:name) AND attnum > 0"
    return connection.scalars(sa.text(query), {"name": table.name}).all()


def main(arguments: Sequence[str] = ()) -> int:
    """Create the tables in the database that ALVO_DATABASE_URL names; return an exit code like etl.py's."""
    from fonte_alvo import command, engine, settings

    options = command.Parser("python -m alvo.schema", __doc__).parse_args(arguments)

    def create() -> int:
        with engine.failures("Alvo", "check ALVO_DATABASE_URL"):
            with engine.create(settings.alvo_database_url(), "alvo.schema").begin() as connection:
                create_absent(connection)
        print("Alvo has the tables signal, data and load")
        return 0

    return command.run("alvo.schema", create, debug=options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
