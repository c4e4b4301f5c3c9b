"""Fonte's table: one row a minute, named as the brief names it (its ambient_temprature is spelled out)."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

# PostgreSQL's timestamps reach further than anybody's who reads them, and to infinity.
_YEARS_1_TO_9999 = "timestamp >= '0001-01-01 00:00Z' AND timestamp < '10000-01-01 00:00Z'"

metadata = sa.MetaData()

data = sa.Table(
    "data",
    metadata,
    sa.Column("timestamp", sa.DateTime(timezone=True), primary_key=True),
    sa.Column("wind_speed", sa.Double, info={"unit": "m/s"}, comment="Wind speed at the nacelle"),
    sa.Column("power", sa.Double, info={"unit": "kW"}, comment="Active power; negative while the turbine consumes"),
    sa.Column("ambient_temperature", sa.Double, info={"unit": "degC"}, comment="Air temperature outside the nacelle"),
    sa.CheckConstraint(_YEARS_1_TO_9999, name="data_timestamp_has_four_digit_year"),
)

variables = tuple(column for column in data.columns if not column.primary_key)


@dataclass(frozen=True)
class Extent:
    """What the table holds; the timestamps are None where it holds nothing."""

    first_timestamp: datetime | None
    last_timestamp: datetime | None
    rows: int


def extent(pool: sa.Engine) -> Extent:
    """Return the first and last timestamp and the number of rows."""
    query = f"SELECT min(timestamp), max(timestamp), count(*) FROM data WHERE {_YEARS_1_TO_9999}"
    with pool.connect() as connection:
        return Extent(*connection.execute(sa.text(query)).one())


def create_absent(connection: sa.Connection) -> bool:
    """Create the table where it is absent, in the caller's transaction; tell whether it was."""
    # Two first runs at once would both find nothing and then collide: the second waits here and finds the table.
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("fonte.schema"))))
    absent: bool = connection.scalar(sa.select(sa.func.to_regclass("data").is_(None))) is True
    if absent:
        metadata.create_all(connection, checkfirst=False)
    return absent
