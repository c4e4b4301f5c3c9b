"""Fonte's table, and the one list of its variables. A variable is added here, and in synthetic.RANGES."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa


class Variable(NamedTuple):
    """A column of the table: its unit, and the range outside which a value is implausible."""

    name: str
    unit: str
    description: str
    lowest: float
    highest: float


# Named as the brief names them; its ambient_temprature is spelled correctly.
VARIABLES = (
    Variable("wind_speed", "m/s", "Wind speed at the nacelle", 0, 75),
    Variable("power", "kW", "Active power; negative while the turbine consumes", -500, 9000),
    Variable("ambient_temperature", "degC", "Air temperature outside the nacelle", -60, 60),
)

# PostgreSQL's timestamps reach further than anybody's who reads them, and to infinity.
_YEARS_1_TO_9999 = "timestamp >= '0001-01-01 00:00Z' AND timestamp < '10000-01-01 00:00Z'"

metadata = sa.MetaData()

data = sa.Table(
    "data",
    metadata,
    sa.Column("timestamp", sa.DateTime(timezone=True), primary_key=True),
    *(sa.Column(each.name, sa.Double, comment=f"{each.description}, {each.unit}") for each in VARIABLES),
    sa.CheckConstraint(_YEARS_1_TO_9999, name="data_timestamp_has_four_digit_year"),
)


@dataclass(frozen=True)
class Extent:
    """The first and last timestamp of the table, None where it holds nothing, and its number of rows."""

    first_timestamp: datetime | None
    last_timestamp: datetime | None
    rows: int


def extent(engine: sa.Engine) -> Extent:
    """Return the first and last timestamp and the number of rows."""
    query = f"SELECT min(timestamp), max(timestamp), count(*) FROM data WHERE {_YEARS_1_TO_9999}"
    with engine.connect() as connection:
        return Extent(*connection.execute(sa.text(query)).one())


def create_absent(connection: sa.Connection) -> bool:
    """Create the table where it is absent, in the caller's transaction; return whether it was."""
    # Two first runs at once would both find nothing and then collide: the second waits here and finds the table.
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("fonte.schema"))))
    absent: bool = connection.scalar(sa.select(sa.func.to_regclass("data").is_(None))) is True
    if absent:
        metadata.create_all(connection, checkfirst=False)
    return absent
