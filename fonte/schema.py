"""Fonte's table, and the one list of its variables. For synthetic values of a new one, see fonte/synthetic.py."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from fonte_alvo.command import clean
from fonte_alvo.engine import YEARS_1_TO_9999


@dataclass(frozen=True)
class Variable:
    """A column of the data: its unit, and the range outside which a value is implausible."""

    name: str
    unit: str
    description: str
    lowest: float
    highest: float


# The names of the brief, with its ambient_temprature spelled correctly.
VARIABLES = (
    Variable("wind_speed", "m/s", "Wind speed at the nacelle", 0, 75),
    Variable("power", "kW", "Active power; negative while the turbine consumes", -500, 9000),
    Variable("ambient_temperature", "degC", "Air temperature outside the nacelle", -60, 60),
)

# The type to which the connector casts each column.
_CASTS = {"timestamp": "timestamptz", **{each.name: "float8" for each in VARIABLES}}

_VIEW = sa.text("SELECT relkind IN ('v', 'm') FROM pg_class WHERE oid = to_regclass('data')")

_REQUIRED = sa.text("""
    SELECT quote_ident(attname) FROM pg_attribute
    WHERE attrelid = to_regclass('data') AND attnum > 0 AND NOT attisdropped AND attname <> ALL(:ours)
        AND attnotnull AND NOT atthasdef AND attidentity = ''
""")

_UNFIT = sa.text("""
    SELECT attname, format_type(atttypid, atttypmod), atttypid = ANY ('{time,timetz,money,oid}'::regtype[])
    FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
    WHERE attrelid = to_regclass('data') AND attname = ANY(:ours)
        AND (typcategory <> CASE attname WHEN 'timestamp' THEN 'D' ELSE 'N' END
            OR atttypid = ANY ('{date,time,timetz,money,oid}'::regtype[]))
""")

_KEYED = sa.text("""
    SELECT count(*) FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
    WHERE indrelid = to_regclass('data') AND indisunique AND indimmediate AND indisvalid AND indnkeyatts = 1
        AND indpred IS NULL AND attname = 'timestamp'
""")

metadata = sa.MetaData()

data = sa.Table(
    "data",
    metadata,
    sa.Column("timestamp", sa.DateTime(timezone=True), primary_key=True),
    *(sa.Column(each.name, sa.Double, comment=f"{each.description}, {each.unit}") for each in VARIABLES),
    sa.CheckConstraint(YEARS_1_TO_9999, name="data_timestamp_has_four_digit_year"),
)


@dataclass(frozen=True)
class Extent:
    """The first and last timestamp of the table, None where it holds nothing, and its number of rows."""

    first_timestamp: datetime | None
    last_timestamp: datetime | None
    rows: int


def extent(engine: sa.Engine) -> Extent:
    """Return the first and last timestamp and the number of rows."""
    bounds = "min(timestamp)::timestamptz, max(timestamp)::timestamptz"
    query = f"SELECT {bounds}, count(*) FROM data WHERE {YEARS_1_TO_9999}"
    with engine.connect() as connection:
        return Extent(*connection.execute(sa.text(query)).one())


def obstacle(engine: sa.Engine) -> str:
    """Return why the table cannot be read, and the statement or command that fixes it. Raises SQLAlchemyError."""
    with engine.connect() as connection:
        held = _columns(connection)
    if not held:
        return "it has no table data, which `python seed.py` makes"
    if absent := _absent(held):
        return absent
    for name, kind in _CASTS.items():
        try:
            with engine.connect() as connection:
                below = f"count(*) FILTER (WHERE data.{name} < 'infinity'::{kind})"
                connection.execute(sa.text(f"SELECT max(data.{name}::{kind}), {below} FROM data"))
        except sa.exc.DBAPIError as error:
            # A numeric may have more digits than a message shows, before the reason.
            said = clean(re.sub(r"(\d{20})\d+\.?", r"\1...", str(error.orig)))
            return f"its column {name} ({held[name]}) cannot be read as {kind}: {said}"
    return "it refuses the query; its log says why"


def _columns(connection: sa.Connection) -> dict[str, str]:
    """Return the type of each column of the table, by its name; empty where the table is absent."""
    types = "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass('data')"
    return {name: kind for name, kind in connection.execute(sa.text(f"{types} AND attnum > 0"))}


def _absent(held: Mapping[str, str]) -> str | None:
    name = next((name for name in _CASTS if name not in held), None)
    if name is None:
        return None
    if "signal_id" in held:
        return "its table data is Alvo's: correct FONTE_DATABASE_URL"
    mend = f"ADD COLUMN {name} {_CASTS[name]}"
    if name == "ambient_temperature" and "ambient_temprature" in held:
        mend = "RENAME COLUMN ambient_temprature TO ambient_temperature"
    return f"its table data has no column {name}; as its owner: ALTER TABLE data {mend}"


def obstacle_to_rows(connection: sa.Connection) -> str | None:
    """Return why the table cannot take our rows, and the statement that fixes it; None if it can.

    The table may have more columns than ours. Raises SQLAlchemyError.
    """
    if connection.scalar(_VIEW):
        return "data is a view: write to the table that it reads"
    if absent := _absent(_columns(connection)):
        return absent
    if unfit := connection.execute(_UNFIT, {"ours": list(_CASTS)}).first():
        name, kind, castless = unfit
        using = "..." if castless else f"{name}::{_CASTS[name]}"
        # The cast to timestamptz takes the session's zone.
        zone = "SET timezone = 'UTC'; " * (name == "timestamp")
        mend = f"{zone}ALTER TABLE data ALTER {name} TYPE {_CASTS[name]} USING {using}"
        return f"its column {name} is of type {kind}; as its owner: {mend}"
    if required := connection.scalars(_REQUIRED, {"ours": list(_CASTS)}).first():
        mend = f"ALTER TABLE data ALTER {required} SET DEFAULT"
        return f"its column {required} needs a value in each row, and has no default; as its owner: {mend} ..."
    if not connection.scalar(_KEYED):
        return "its column timestamp is no key; as its owner: ALTER TABLE data ADD UNIQUE (timestamp)"
    return None


def create_absent(connection: sa.Connection) -> bool:
    """Create the table where it is absent, in the caller's transaction; return whether it was."""
    # Not to_regclass: in one transaction it may repeat an old answer.
    if sa.inspect(connection).has_table("data"):
        return False
    # Two simultaneous first runs would both find nothing and then collide: the second waits here.
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("fonte.schema"))))
    if sa.inspect(connection).has_table("data"):
        return False
    metadata.create_all(connection, checkfirst=False)
    return True
