"""Alvo over HTTP: what its signals are and what they hold. Run by `uvicorn alvo.api:app --port 8080`.

Its routes only read, but for DELETE /data, which needs the admin token and another role's connection.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Engine, select

import serving
import settings
from alvo import schema
from postgres.copy import CopyOut
from serving import PROBLEMS, Period, Stream

SIGNALS = "The signals wanted, one parameter each; all of them where it is left out."
Format = Literal["json", "csv"]
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "csv": "text/csv"}
COPY_OPTIONS = {"json": "FORMAT text", "csv": "FORMAT csv, HEADER"}


class DataQuery(Period):
    """What GET /data can be asked."""

    signals: Annotated[list[str], AfterValidator(serving.each_once)] = Field(
        [], description=SIGNALS, examples=[["wind_speed_mean", "power_mean"]], json_schema_extra={"uniqueItems": True}
    )

    format: Format | None = Field(None, description=serving.FORMAT, json_schema_extra=serving.not_null)


class Signal(BaseModel):
    """A statistic of a variable."""

    name: str = Field(description="{variable}_{statistic}", examples=["wind_speed_mean"])


class Value(BaseModel):
    """A statistic of one window, null where it is not finite."""

    model_config = ConfigDict(extra="forbid")

    timestamp: datetime = Field(description="Start of the 10-minute window", examples=["2024-05-20T00:00:00Z"])
    signal: str = Field(examples=["wind_speed_mean"])
    value: float | None = Field(description="In the unit of the variable", examples=[8.31])


def _lifespan(app: FastAPI) -> AbstractAsyncContextManager[dict[str, Any]]:
    return serving.engines("alvo api", settings.alvo_database_url(), settings.alvo_admin())


app = FastAPI(
    title="Alvo",
    summary="Ten-minute statistics of a wind turbine's signals.",
    description="Every period is half-open, [start, end). Timestamps are RFC 3339 in UTC, and so is one that is sent "
    "without an offset. One route changes something, and needs the admin token.",
    version="1",
    lifespan=_lifespan,
    generate_unique_id_function=lambda route: route.name,
    # A redirection would repeat the Host that the client names.
    redirect_slashes=False,
)
serving.answer_problems(app, "Alvo's database")
app.include_router(serving.router)


@app.get("/signals", responses=PROBLEMS, summary="The signals that Alvo knows, by name")
def signals(request: Request) -> list[Signal]:
    """What `signals` of GET /data may name."""
    return [Signal(name=name) for name in sorted(_signal_ids(request.state.engine))]


@app.get(
    "/data",
    response_model=list[Value],
    responses={**PROBLEMS, 200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}}},
    summary="Values of a period, ordered by time and signal",
)
async def data(
    request: Request,
    query: Annotated[DataQuery, Query()],
    accept: Annotated[tuple[str, ...], Header(include_in_schema=False)] = (),
) -> Stream:
    """Records of one value each, as Alvo holds them: a window without a value of a signal has no record of it."""
    form = query.format or serving.accepted(",".join(accept), MEDIA_TYPES)
    signal_ids = await to_thread.run_sync(_asked_ids, request.state.engine, query.signals)
    parameters = query.bounds() | {"signal_ids": signal_ids}
    rows = CopyOut(request.state.streams, _sql(query, form), parameters, COPY_OPTIONS[form])
    pieces = serving.json_list(iter(rows)) if form == "json" else iter(rows)
    return Stream(rows, await serving.begun(pieces), MEDIA_TYPES[form])


def _signal_ids(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            name: signal_id for name, signal_id in connection.execute(select(schema.signal.c.name, schema.signal.c.id))
        }


def _asked_ids(engine: Engine, names: Sequence[str]) -> list[int]:
    """Return the ids of signals, of all where none is named. Raises RequestValidationError where one is unknown."""
    ids = _signal_ids(engine)
    for name in names:
        if name not in ids:
            known = ", ".join(map(repr, sorted(ids))) or "none, for Alvo knows no signal yet"
            raise RequestValidationError(
                [{"loc": ("query", "signals"), "type": "unknown_signal", "input": name, "msg": f"expected {known}"}]
            )
    return [ids[name] for name in names or ids]


def _sql(query: DataQuery, form: Format) -> str:
    value = "value" if form == "csv" else "CASE WHEN abs(value) < 'Infinity' THEN value END AS value"
    # By signal too, also where all are wanted: the primary key begins with it.
    rows = f"""
        SELECT {serving.TIMESTAMP} AS timestamp, name AS signal, {value} FROM data JOIN signal ON signal.id = signal_id
        WHERE signal_id = ANY(%(signal_ids)s) AND {query.condition()} ORDER BY data.timestamp, name COLLATE "C"
    """
    return rows if form == "csv" else f"SELECT row_to_json(row) FROM ({rows}) AS row"
