"""Fonte's table: one row a minute, named as the brief names it (its ambient_temprature is spelled out)."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import CheckConstraint, Column, Connection, DateTime, Double, Engine, MetaData, Table, func, select

# PostgreSQL's timestamps reach further than anybody's who reads them, and to infinity.
_YEARS_1_TO_9999 = "timestamp >= '0001-01-01 00:00Z' AND timestamp < '10000-01-01 00:00Z'"

metadata = MetaData()

data = Table(
    "data",
    metadata,
    Column("timestamp", DateTime(timezone=True), primary_key=True),
    Column("wind_speed", Double, info={"unit": "m/s"}, comment="Wind speed at the nacelle"),
    Column("power", Double, info={"unit": "kW"}, comment="Active power; negative while the turbine consumes"),
    Column("ambient_temperature", Double, info={"unit": "degC"}, comment="Air temperature outside the nacelle"),
    CheckConstraint(_YEARS_1_TO_9999, name="data_timestamp_has_four_digit_year"),
)

variables = tuple(column for column in data.columns if not column.primary_key)


@dataclass(frozen=True)
class Extent:
    """What the table holds; the timestamps are None where it holds nothing."""

    first_timestamp: datetime | None
    last_timestamp: datetime | None
    rows: int


def extent(pool: Engine) -> Extent:
    """Return the first and last timestamp and the number of rows."""
    timestamp = data.c.timestamp
    with pool.connect() as connection:
        return Extent(*connection.execute(select(func.min(timestamp), func.max(timestamp), func.count())).one())


def create_absent(connection: Connection) -> bool:
    """Create the table where it is absent, in the caller's transaction; tell whether it was."""
    # Two first runs at once would both find nothing and then collide: the second waits here and finds the table.
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("fonte.schema"))))
    absent: bool = connection.scalar(select(func.to_regclass("data").is_(None))) is True
    if absent:
        metadata.create_all(connection, checkfirst=False)
    return absent
