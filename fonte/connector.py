"""The connector: the ETL's only access to Fonte's database. Run it with `uvicorn fonte.connector:app --http h11`.

All routes read, except two, which need the admin token and connect as another role.
"""

import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import RedirectResponse
from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from fonte import arrow, schema, seeding
from fonte_alvo import copy, serving, settings
from fonte_alvo.admin import CHANGING, AdminEngine, Changed, audit, delete_rows
from fonte_alvo.command import did_you_mean
from fonte_alvo.engine import YEARS_1_TO_9999
from fonte_alvo.parameters import END_TEXT, FORMAT, START_TEXT, PeriodQuery, Strict, Timestamp, each_once, not_null
from fonte_alvo.streaming import TIMESTAMP, Stream, accepted, json_list

# JSON knows neither NaN nor infinity.
FINITE = "CASE WHEN {0} NOT IN ('NaN', 'Infinity', '-Infinity') THEN {0} END AS {0}"
NAMES = [each.name for each in schema.VARIABLES]
COLUMNS = "The variables to return, one parameter each; by default all of them."
Format = Literal["json", "csv", "arrow"]
STEP = "Minutes from one sample to the next, the first at the period's first whole minute."
SEED = "The same seed gives the same values; if omitted, the server picks one and returns it."
PROFILE = "Plausible values of a turbine, or plain random ones."
MOST_DAYS = 366
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "csv": "text/csv", "arrow": arrow.MEDIA_TYPE}
# OpenAPI links: GET /data accepts these values of other answers as parameters.
COLUMN_LINK = {"operationId": "data", "parameters": {"columns": "$response.body#/0/name"}}
START_LINK = {"operationId": "data", "parameters": {"start_timestamp": "$response.body#/first_timestamp"}}
COPY_OPTIONS = {"json": "FORMAT text", "csv": "FORMAT csv, HEADER", "arrow": "FORMAT binary"}


def _known(name: str) -> str:
    if name not in NAMES:
        meant = "" if "," in name else did_you_mean(name[:80], NAMES)
        expected = ", ".join(map(repr, NAMES)) + meant
        raise PydanticCustomError("column", "expected {names}", {"names": expected})
    return name


ColumnName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": NAMES})]


class DataQuery(PeriodQuery):
    """The parameters of GET /data."""

    columns: Annotated[list[ColumnName], AfterValidator(each_once)] = Field(
        NAMES, description=COLUMNS, examples=[["wind_speed", "power"]], json_schema_extra={"uniqueItems": True}
    )

    format: Format | None = Field(None, description=FORMAT, json_schema_extra=not_null)


class RandomizeQuery(PeriodQuery):
    """The parameters of POST /data/randomize."""

    most = timedelta(days=MOST_DAYS)
    start_timestamp: Timestamp = Field(datetime.combine(seeding.START, time(), UTC), description=START_TEXT)
    end_timestamp: Timestamp = Field(
        datetime.combine(seeding.START + timedelta(days=seeding.DAYS), time(), UTC), description=END_TEXT
    )
    step_minutes: int = Field(1, ge=1, le=1440, description=STEP)
    profile: Literal["turbine", "uniform"] = Field("turbine", description=PROFILE)
    random_seed: int = Field(default_factory=lambda: secrets.randbits(32), ge=0, lt=2**32, description=SEED)


class Randomized(Changed):
    """The number of rows written, and their seed."""

    random_seed: int = Field(description="The seed that gives the same values again.", examples=[2024])


# One minute: its timestamp and the requested variables, null where there is no finite value.
_FIELDS: dict[str, Any] = {
    each.name: (float | None, Field(None, description=f"{each.description}, {each.unit}")) for each in schema.VARIABLES
}
Sample = create_model(
    "Sample",
    __config__=ConfigDict(extra="forbid"),
    timestamp=(datetime, Field(examples=["2024-05-20T00:00:00Z"])),
    **_FIELDS,
)


app = serving.make_app(
    "Fonte",
    lambda app: serving.engines("fonte connector", settings.fonte_database_url(), settings.admin("Fonte")),
    probe=f"SELECT timestamp, {', '.join(NAMES)} FROM data LIMIT 0",
    obstacle=schema.obstacle,
    title="Fonte connector",
    summary="One-minute signals of a wind turbine: wind speed, power, ambient temperature.",
)


@app.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """Redirect a browser to the description, also behind a prefix."""
    return RedirectResponse("docs")


@app.get(
    "/data",
    response_model=list[Sample],  # type: ignore[valid-type]
    **serving.reading(MEDIA_TYPES.values()),
    summary="Samples of a period, ordered by time",
)
async def data(request: Request, query: Annotated[DataQuery, Query()]) -> Stream:
    """Rows that hold `timestamp` and exactly the requested columns: a bare JSON list of flat records, CSV or Arrow.

    JSON answers NULL, NaN and infinity as null; CSV and Arrow keep them apart.
    """
    form = query.format or accepted(",".join(request.headers.getlist("Accept")), MEDIA_TYPES)
    asked = (request.state.streams, _sql(query, form), query.bounds(), COPY_OPTIONS[form])
    return Stream(MEDIA_TYPES[form], partial(copy.CopyOut, *asked), partial(_pieces, query.columns, form))


@app.get("/columns", **serving.reading(data=COLUMN_LINK), summary="The variables, with their units")
def columns(query: Annotated[Strict, Query()]) -> list[schema.Variable]:
    """The names that `columns` of GET /data accepts."""
    return list(schema.VARIABLES)


@app.delete("/data", **CHANGING, summary="Delete the rows of a period")
def delete_data(request: Request, admin: AdminEngine, query: Annotated[PeriodQuery, Query()]) -> Changed:
    """Delete every row of the period in one transaction; without bounds, every row. Answers their number."""
    with admin.begin() as connection:
        rows = delete_rows(connection, query)
    audit(request, rows=rows, **query.model_dump())
    return Changed(rows=rows)


@app.get("/period", **serving.reading(data=START_LINK), summary="The period that Fonte holds")
def period(request: Request, query: Annotated[Strict, Query()]) -> schema.Extent:
    """First and last timestamp, null where there is none, and the number of rows."""
    return schema.extent(request.state.engine)


@app.post("/data/randomize", **CHANGING, summary="Fill a period with random samples")
def randomize(request: Request, admin: AdminEngine, query: Annotated[RandomizeQuery, Query()]) -> Randomized:
    """Overwrite a period, 366 days at most, with random samples, one every step_minutes.

    The same transaction deletes the old samples of the period, so readers see either the old or the new ones. Without
    bounds, the period is the ten days that `seed.py` fills.
    """
    with admin.begin() as connection:
        delete_rows(connection, query)
        period, made = (query.start_timestamp, query.end_timestamp), (query.profile, query.random_seed)
        rows = seeding.fill_synthetic(connection, *period, *made, step_minutes=query.step_minutes).inserted
    audit(request, rows=rows, **query.model_dump())
    return Randomized(rows=rows, random_seed=query.random_seed)


def _sql(query: DataQuery, form: Format) -> str:
    casts = ", ".join(f"data.{name}::float8 AS {name}" for name in query.columns)
    # The casts accept other column types. The transaction's time zone is UTC, so a timestamp without a zone means UTC.
    rows = f"""(
        SELECT data.timestamp::timestamptz AS timestamp, {casts} FROM data
        WHERE {YEARS_1_TO_9999} AND {query.condition()} ORDER BY data.timestamp
    ) AS sample"""
    if form == "arrow":
        # Without NULL all rows have the same length; a flag beside each value says whether it was NULL.
        values = ", ".join(f"({name} IS NULL)::integer, coalesce({name}, 'NaN')" for name in query.columns)
        return f"SELECT timestamp, {values} FROM {rows}"
    timestamp = f"{TIMESTAMP} AS timestamp"
    if form == "csv":
        return f"SELECT {timestamp}, {', '.join(query.columns)} FROM {rows}"
    values = ", ".join(FINITE.format(name) for name in query.columns)
    return f"SELECT row_to_json(record) FROM (SELECT {timestamp}, {values} FROM {rows}) AS record"


def _pieces(columns: Sequence[str], form: Format, copied: Iterator[bytes]) -> Iterator[bytes]:
    """Make the body's pieces from the answer of COPY."""
    if form == "json":
        return json_list(copied)
    if form == "csv":
        return copied
    return arrow.encode(_batches(copied, columns), columns)


def _batches(copied: Iterator[bytes], columns: Sequence[str]) -> Iterator[arrow.Batch]:
    types = {"timestamp": "datetime64[us]"}
    for name in columns:
        types |= {f"{name} is null": "int32", name: "float64"}
    for rows in copy.decode(copied, types):
        yield rows["timestamp"], {name: (rows[name], rows[f"{name} is null"] == 1) for name in columns}
