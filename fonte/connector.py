"""The connector: the one door to Fonte's database, and a read-only one. Run by `uvicorn fonte.connector:app`."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum, auto
from itertools import chain
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import Engine, select, text

import settings
from fonte import schema
from postgres import engine
from serving import PROBLEMS, Period, answer_problems

# FastAPI answers in 40 threads; each holds a connection while it streams.
POOL_SIZE = 40
ROWS_PER_CHUNK = 2000
COLUMNS = "The variables wanted, one parameter each; all of them where it is left out."


class ColumnName(StrEnum):
    """The variables of the table, in its order."""

    wind_speed = auto()
    power = auto()
    ambient_temperature = auto()


class DataQuery(Period):
    """What GET /data can be asked."""

    columns: list[ColumnName] = Field(list(ColumnName), description=COLUMNS, examples=[["wind_speed", "power"]])

    @field_validator("columns")
    @classmethod
    def _each_once(cls, columns: list[ColumnName]) -> list[ColumnName]:
        if len(set(columns)) < len(columns):
            raise PydanticCustomError("repeated", "expected each column once")
        return columns


class Sample(BaseModel):
    """One minute: its timestamp and the requested variables, null where there is no finite value."""

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
    pool = engine.create(url, "fonte connector", pool_size=POOL_SIZE, check_pooled=True)
    yield {"engine": pool.execution_options(postgresql_readonly=True)}
    pool.dispose()


app = FastAPI(
    title="Fonte connector",
    summary="One-minute signals of a wind turbine: wind speed, power, ambient temperature.",
    description="Every period is half-open, [start, end). Timestamps are RFC 3339 in UTC, and so is one that is sent "
    "without an offset. NULL, NaN and infinity are all answered as null. Nothing here changes anything.",
    version="1",
    lifespan=_lifespan,
)
answer_problems(app, "Fonte's database")


@app.get("/data", response_model=list[Sample], responses=PROBLEMS, summary="Samples of a period, ordered by time")
def data(request: Request, query: Annotated[DataQuery, Query()]) -> StreamingResponse:
    """A bare JSON list of flat records, each with `timestamp` and exactly the requested columns."""
    chunks = _json_chunks(request.state.engine, query)
    # The query runs before the answer starts: a database that is away is a 503 here, and a broken stream later.
    first = next(chunks)
    return StreamingResponse(chain([first], chunks), media_type="application/json")


@app.get("/columns", summary="The variables, with their units")
def columns() -> list[Variable]:
    """What `columns` of GET /data may name."""
    return [
        Variable(name=column.name, unit=column.info["unit"], description=str(column.comment))
        for column in schema.variables
    ]


@app.get("/period", responses={503: PROBLEMS[503]}, summary="The period that Fonte holds")
def period(request: Request) -> schema.Extent:
    """First and last timestamp, null where there is none, and the number of rows."""
    return schema.extent(request.state.engine)


@app.get("/health", responses={503: PROBLEMS[503]}, summary="Whether the database answers")
def health(request: Request) -> dict[str, Literal["ok"]]:
    """Asks the database, not only this process."""
    with request.state.engine.connect() as connection:
        connection.execute(select(1))
    return {"status": "ok"}


def _json_chunks(pool: Engine, query: DataQuery) -> Iterator[str]:
    """Yield the JSON list in chunks, its records written by PostgreSQL and read through a server-side cursor."""
    with pool.connect() as connection:
        streaming = connection.execution_options(yield_per=ROWS_PER_CHUNK)
        bounds = {"start": query.start_timestamp, "end": query.end_timestamp}
        records = streaming.execute(text(_records_sql(query)), bounds).scalars()
        separator = "["
        for partition in records.partitions(ROWS_PER_CHUNK):
            yield separator + ",".join(partition)
            separator = ","
    yield "[]" if separator == "[" else "]"


def _records_sql(query: DataQuery) -> str:
    finite = "CASE WHEN {0} NOT IN ('NaN', 'Infinity', '-Infinity') THEN {0} END AS {0}"
    return f"""
        SELECT row_to_json(record)::text
        FROM (
            SELECT to_json(timestamp AT TIME ZONE 'UTC') #>> '{{}}' || 'Z' AS timestamp,
                {", ".join(finite.format(name) for name in query.columns)}
            FROM data
            WHERE (CAST(:start AS timestamptz) IS NULL OR timestamp >= :start)
                AND (CAST(:end AS timestamptz) IS NULL OR timestamp < :end)
            ORDER BY data.timestamp
        ) AS record
    """
