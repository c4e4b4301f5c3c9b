"""The connector: the one door to Fonte's database, and a read-only one. Run by `uvicorn fonte.connector:app`."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum, auto
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import Engine, select

import settings
from fonte import arrow, schema
from postgres import copy, engine
from serving import PROBLEMS, STREAM_TIMEOUT_S, Period, Stream, accepted, answer_problems, begun, json_list, not_null

# Each stream holds a connection while it lasts; who finds none free within CONNECT_TIMEOUT_S is sent away.
POOL_SIZE = 40
# The other routes have connections of their own: they answer however many streams there are.
OTHER_POOL_SIZE = 5
COLUMNS = "The variables wanted, one parameter each; all of them where it is left out."
FORMAT = "The format of the answer; left out, the Accept header decides, and JSON where that names none of them."
Format = Literal["json", "csv", "arrow"]
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "csv": "text/csv", "arrow": arrow.MEDIA_TYPE}
COPY_OPTIONS = {"json": "FORMAT text", "csv": "FORMAT csv, HEADER", "arrow": "FORMAT binary"}


class ColumnName(StrEnum):
    """The variables of the table, in its order."""

    wind_speed = auto()
    power = auto()
    ambient_temperature = auto()


class DataQuery(Period):
    """What GET /data can be asked."""

    columns: list[ColumnName] = Field(
        list(ColumnName),
        description=COLUMNS,
        examples=[["wind_speed", "power"]],
        json_schema_extra={"uniqueItems": True},
    )

    format: Format | None = Field(None, description=FORMAT, json_schema_extra=not_null)

    @field_validator("columns")
    @classmethod
    def _each_once(cls, columns: list[ColumnName]) -> list[ColumnName]:
        if len(set(columns)) < len(columns):
            raise PydanticCustomError("repeated", "expected each column once")
        return columns


class Sample(BaseModel):
    """One minute: its timestamp and the requested variables, null where there is no finite value."""

    model_config = ConfigDict(extra="forbid")

    timestamp: datetime = Field(examples=["2024-05-20T00:00:00Z"])
    wind_speed: float | None = Field(None, description="m/s", examples=[8.31])
    power: float | None = Field(None, description="kW", examples=[1214.6])
    ambient_temperature: float | None = Field(None, description="degC", examples=[21.4])


class Variable(BaseModel):
    """A column of the data."""

    name: str = Field(examples=["wind_speed"])
    unit: str = Field(examples=["m/s"])
    description: str = Field(examples=["Wind speed at the nacelle"])


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Engine]]:
    url = settings.fonte_database_url()
    name = "fonte connector"
    pools = {
        "engine": engine.create(url, name, pool_size=OTHER_POOL_SIZE, check_pooled=True),
        "streams": engine.create(url, name, pool_size=POOL_SIZE, check_pooled=True, time_limit_s=STREAM_TIMEOUT_S),
    }
    yield {name: pool.execution_options(postgresql_readonly=True) for name, pool in pools.items()}
    for pool in pools.values():
        pool.dispose()


app = FastAPI(
    title="Fonte connector",
    summary="One-minute signals of a wind turbine: wind speed, power, ambient temperature.",
    description="Every period is half-open, [start, end). Timestamps are RFC 3339 in UTC, and so is one that is sent "
    "without an offset. Nothing here changes anything.",
    version="1",
    lifespan=_lifespan,
    generate_unique_id_function=lambda route: route.name,
    # A redirection would repeat the Host that the client names.
    redirect_slashes=False,
)
answer_problems(app, "Fonte's database")


def _to_data(**parameters: str) -> dict[str, Any]:
    """Describe that GET /data can be asked for what another answer tells."""
    return {"operationId": "data", "parameters": parameters}


@app.get(
    "/data",
    response_model=list[Sample],
    responses={**PROBLEMS, 200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}}},
    summary="Samples of a period, ordered by time",
)
async def data(
    request: Request,
    query: Annotated[DataQuery, Query()],
    accept: Annotated[tuple[str, ...], Header(include_in_schema=False)] = (),
) -> Stream:
    """Rows that hold `timestamp` and exactly the requested columns: a bare JSON list of flat records, CSV or Arrow.

    JSON answers NULL, NaN and infinity as null; in CSV and Arrow they are themselves.
    """
    form = query.format or accepted(",".join(accept), MEDIA_TYPES)
    bounds = {"start": query.start_timestamp, "end": query.end_timestamp}
    rows = copy.CopyOut(request.state.streams, _sql(query, form), bounds, COPY_OPTIONS[form])
    return Stream(rows, await begun(_pieces(iter(rows), query.columns, form)), MEDIA_TYPES[form])


@app.get(
    "/columns",
    responses={422: PROBLEMS[422], 200: {"links": {"data": _to_data(columns="$response.body#/0/name")}}},
    summary="The variables, with their units",
)
def columns() -> list[Variable]:
    """What `columns` of GET /data may name."""
    return [
        Variable(name=column.name, unit=column.info["unit"], description=str(column.comment))
        for column in schema.variables
    ]


@app.get(
    "/period",
    responses={**PROBLEMS, 200: {"links": {"data": _to_data(start_timestamp="$response.body#/first_timestamp")}}},
    summary="The period that Fonte holds",
)
def period(request: Request) -> schema.Extent:
    """First and last timestamp, null where there is none, and the number of rows."""
    return schema.extent(request.state.engine)


@app.get("/health", responses=PROBLEMS, summary="Whether the database answers")
def health(request: Request) -> dict[str, Literal["ok"]]:
    """Asks the database, not only this process."""
    with request.state.engine.connect() as connection:
        connection.execute(select(1))
    return {"status": "ok"}


def _sql(query: DataQuery, form: Format) -> str:
    timestamp = "to_json(timestamp AT TIME ZONE 'UTC') #>> '{}' || 'Z' AS timestamp"
    conditions = ["timestamp >= %(start)s"] * (query.start_timestamp is not None)
    conditions += ["timestamp < %(end)s"] * (query.end_timestamp is not None)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    if form == "arrow":
        # Without NULL all rows are of one length; which values are NULL is told apart from them.
        values = ", ".join(f"({name} IS NULL)::integer, coalesce({name}, 'NaN')" for name in query.columns)
        return f"SELECT timestamp, {values} FROM data {where} ORDER BY data.timestamp"
    if form == "csv":
        return f"SELECT {timestamp}, {', '.join(query.columns)} FROM data {where} ORDER BY data.timestamp"
    finite = "CASE WHEN {0} NOT IN ('NaN', 'Infinity', '-Infinity') THEN {0} END AS {0}"
    values = ", ".join(finite.format(name) for name in query.columns)
    records = f"SELECT {timestamp}, {values} FROM data {where} ORDER BY data.timestamp"
    return f"SELECT row_to_json(record) FROM ({records}) AS record"


def _pieces(copied: Iterator[bytes], columns: Sequence[str], form: Format) -> Iterator[bytes]:
    """Make the body's pieces of what COPY answers."""
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
