"""Alvo's tables. `python -m alvo.schema` creates them as their owner."""

import sys

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
    select,
)

metadata = MetaData()

signal = Table(
    "signal",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True, comment="{variable}_{statistic}, such as wind_speed_mean"),
)

data = Table(
    "data",
    metadata,
    Column("timestamp", DateTime(timezone=True), comment="Start of the 10-minute window"),
    Column("signal_id", Integer, ForeignKey("signal.id")),
    Column("value", Double, nullable=False),
    # Signal first: a day's replace and a reader's period of one signal are both one range of this index.
    PrimaryKeyConstraint("signal_id", "timestamp"),
    CheckConstraint(
        "timestamp = date_bin('10 minutes', timestamp, TIMESTAMPTZ '2000-01-01 00:00:00Z')",
        name="data_timestamp_on_window",
    ),
    CheckConstraint("value <> 'NaN'", name="data_value_not_nan"),
)


def create_absent(connection: Connection) -> None:
    """Create the tables that are absent, in the caller's transaction."""
    # Two first loads at once would both find nothing and then collide: the second waits here and finds the tables.
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("alvo.schema"))))
    metadata.create_all(connection)


def main() -> int:
    """Create the tables in the database that ALVO_DATABASE_URL names; returns an exit code as etl.py's."""
    from sqlalchemy.exc import SQLAlchemyError

    import settings
    from postgres import engine
    from postgres.embedded import EmbeddedServerError

    try:
        with engine.create(settings.alvo_database_url(), "alvo.schema").begin() as connection:
            create_absent(connection)
    except settings.SettingsError as error:
        print(f"alvo.schema: {error}", file=sys.stderr)
        return 2
    except (SQLAlchemyError, EmbeddedServerError) as error:
        print(f"alvo.schema: Alvo failed: {engine.reason(error)}; check ALVO_DATABASE_URL", file=sys.stderr)
        return 4
    print("Alvo has the tables signal and data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
