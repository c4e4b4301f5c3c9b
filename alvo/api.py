"""Alvo over HTTP, and the page that shows it. Run by `uvicorn alvo.api:app --http h11 --port 8080`.

Its routes only read, except two DELETEs, which need the admin token and connect as another role. The API's description
omits the routes that only the page uses.
"""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import to_json
from sqlalchemy import Engine
from starlette.routing import Route
from starlette.types import Scope

from alvo import load, schema, screen
from fonte import client
from fonte.client import AnswerRefused, FonteError, RequestRefused
from fonte_alvo import serving, settings
from fonte_alvo.admin import CHANGING, AdminEngine, Changed, audit, delete_rows
from fonte_alvo.copy import CopyOut
from fonte_alvo.engine import YEARS_1_TO_9999
from fonte_alvo.parameters import FORMAT, PeriodQuery, Strict, Timestamp, each_once, not_null, refusal
from fonte_alvo.streaming import TIMESTAMP, Stream, accepted, json_list

SIGNAL = "Lists only the signal of this name; the list is empty if Alvo does not know it."
SIGNALS = "The signals to return, one parameter each; by default all of them."
Format = Literal["json", "csv"]
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "csv": "text/csv"}
# FORMAT text would double each backslash. JSON escapes control characters: \x01 and \x02 are never in it.
COPY_OPTIONS = {"json": r"FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02'", "csv": "FORMAT csv, HEADER"}
PAGE = Path(__file__).with_name("page")
# At most this many views, and requests to Fonte, run at once; the others wait.
VIEWS, FETCHES = 8, 4
# The buckets of one view hold at most this many values, so with more signals there are fewer buckets.
MOST_VALUES = 100_000
FONTE_PATIENCE_S = 2.0
SignalName = Annotated[str, Field(min_length=1)]


class SignalsQuery(Strict):
    """The parameters of GET /signals."""

    name: SignalName | None = Field(None, description=SIGNAL, examples=["wind_speed_mean"], json_schema_extra=not_null)


class DataQuery(PeriodQuery):
    """The parameters of GET /data."""

    signals: Annotated[list[SignalName], AfterValidator(each_once)] = Field(
        [], description=SIGNALS, examples=[["wind_speed_mean", "power_mean"]], json_schema_extra={"uniqueItems": True}
    )
    format: Format | None = Field(None, description=FORMAT, json_schema_extra=not_null)


class Signal(BaseModel):
    """A statistic of a variable."""

    name: str = Field(description="{variable}_{statistic}", examples=["wind_speed_mean"])


class Value(BaseModel):
    """A statistic of one window, null where it is not finite."""

    model_config = ConfigDict(extra="forbid")

    timestamp: datetime = Field(description="Start of the 10-minute window", examples=["2024-05-20T00:00:00Z"])
    signal: str = Field(examples=["wind_speed_mean"])
    value: float | None = Field(description="In the unit of the variable", examples=[8.31])


class ShownPeriod(PeriodQuery):
    """A period that a screen shows; it needs both bounds."""

    start_timestamp: Timestamp
    end_timestamp: Timestamp


class ViewQuery(ShownPeriod):
    """The parameters of GET /view."""

    # The number of buckets that the screen can show.
    points: int = Field(1000, ge=1, le=5000)


class SamplesQuery(ShownPeriod):
    """The parameters of GET /samples."""

    most = timedelta(days=2)
    columns: Annotated[list[str], AfterValidator(each_once)] = Field(min_length=1)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    url = settings.fonte_api_url(app.state.fonte_api_url)
    async with serving.engines("alvo api", settings.alvo_database_url(), settings.admin("Alvo")) as state:
        with client.connect(url, FONTE_PATIENCE_S) if url else nullcontext() as fonte:
            limits = {"views": CapacityLimiter(VIEWS), "fetches": CapacityLimiter(FETCHES)}
            yield {**state, **limits, "fonte": fonte}


app = serving.make_app(
    "Alvo",
    _lifespan,
    probe="SELECT signal.id, signal.name, data.timestamp, data.signal_id, data.value FROM signal, data LIMIT 0",
    obstacle=schema.obstacle,
    title="Alvo",
    summary="Ten-minute statistics of a wind turbine's signals.",
)
# `python -m alvo`, which may serve the connector itself, sets this instead of FONTE_API_URL.
app.state.fonte_api_url = None


def check_client(fonte_api_url: str) -> None:
    """Raise FonteError if no client of this URL can be made, for example with an invalid proxy."""
    client.connect(fonte_api_url).close()


@app.get("/signals", **serving.reading(), summary="The signals that Alvo knows, by name")
def signals(request: Request, query: Annotated[SignalsQuery, Query()]) -> list[Signal]:
    """The names that `signals` of GET /data takes."""
    return [Signal(name=name) for name in sorted(_signal_ids(request.state.engine)) if query.name in (None, name)]


@app.get(
    "/data",
    response_model=list[Value],
    **serving.reading(MEDIA_TYPES.values()),
    summary="Values of a period, ordered by time and signal",
)
async def data(request: Request, query: Annotated[DataQuery, Query()]) -> Stream:
    """Records of one value each; a window without a value of a signal has no record of it."""
    form = query.format or accepted(",".join(request.headers.getlist("Accept")), MEDIA_TYPES)
    signal_ids = await to_thread.run_sync(_asked_ids, request.state.engine, query.signals)
    parameters = query.bounds() | {"signal_ids": signal_ids}
    asked = (request.state.streams, _sql(query, form), parameters, COPY_OPTIONS[form])
    return Stream(MEDIA_TYPES[form], partial(CopyOut, *asked), json_list if form == "json" else iter)


@app.delete("/signals", **CHANGING, summary="Delete the signals that have no value")
def delete_signals(request: Request, admin: AdminEngine, query: Annotated[Strict, Query()]) -> Changed:
    """Delete every signal that has no value in any period, in one transaction; return their number."""
    with admin.begin() as connection:
        rows = load.delete_unused_signals(connection)
    audit(request, rows=rows)
    return Changed(rows=rows)


@app.delete("/data", **CHANGING, summary="Delete the values of a period")
def delete_data(request: Request, admin: AdminEngine, query: Annotated[PeriodQuery, Query()]) -> Changed:
    """Delete every value of the period, without bounds every value, in one transaction; return their number."""
    with admin.begin() as connection:
        rows = delete_rows(connection, query)
        load.forget(connection, query.start_timestamp or "-infinity", query.end_timestamp or "infinity")
    audit(request, rows=rows, **query.model_dump())
    return Changed(rows=rows)


@app.get("/period", include_in_schema=False)
def period(request: Request, query: Annotated[Strict, Query()]) -> dict[str, datetime | bool | None]:
    """Return the starts of the first and the last window of any signal, or null; for `live` see screen.live."""
    with request.state.engine.connect() as connection:
        last, first = screen.neighbours(connection, screen.shown_ids(connection).values(), screen.LAST, screen.FIRST)
        return {"first_timestamp": first, "last_timestamp": last, "live": screen.live(connection)}


@app.get("/variables", include_in_schema=False)
async def variables(request: Request, query: Annotated[Strict, Query()]) -> list[dict[str, str | None]]:
    """Return name and unit of each variable; the unit is null where the connector reports none."""

    def read() -> list[dict[str, str | None]]:
        names = screen.variables(_signal_ids(request.state.engine))
        fonte = request.state.fonte
        if fonte:
            # The client also remembers an empty answer: it asks again.
            fonte.variables = fonte.variables or None
        known = client.variables(fonte) if fonte else {}
        return [{"name": name, "unit": known[name].unit if name in known else None} for name in names]

    return await to_thread.run_sync(read, limiter=request.state.fetches)


@app.get("/view", include_in_schema=False)
async def view(request: Request, query: Annotated[ViewQuery, Query()]) -> Response:
    """Return mean, minimum, maximum and std of every variable in buckets; every extreme stays visible.

    Bucket i begins i * bucket_s after start_timestamp; one without windows is null.
    """

    def read() -> Response:
        bounds = (query.start_timestamp, query.end_timestamp)
        with request.state.streams.connect() as connection:
            ids = screen.shown_ids(connection)
            points = max(1, min(query.points, MOST_VALUES // (len(ids) or 1)))
            origin, length, shown = screen.buckets(connection, ids, screen.variables(ids), *bounds, points)
            previous, following = screen.neighbours(connection, ids.values(), *bounds)
        content = {name: {key: values.tolist() for key, values in each.items()} for name, each in shown.items()}
        grid = {"start_timestamp": origin, "bucket_s": length // timedelta(seconds=1)}
        return _json({**grid, "variables": content, "previous_timestamp": previous, "next_timestamp": following})

    return await to_thread.run_sync(read, limiter=request.state.views)


@app.get("/power-curve", include_in_schema=False)
async def power_curve(request: Request, query: Annotated[ShownPeriod, Query()]) -> Response:
    """Return points of mean power against mean wind speed, and the number of windows in each."""

    def read() -> Response:
        with request.state.streams.connect() as connection:
            ids = screen.signal_ids(connection)
            x, y = ids.get("wind_speed_mean"), ids.get("power_mean")
            points = screen.curve(connection, x, y, query.start_timestamp, query.end_timestamp)
        wind_speed, power, windows = zip(*points, strict=True) if points else ((), (), ())
        return _json({"wind_speed": wind_speed, "power": power, "windows": windows})

    return await to_thread.run_sync(read, limiter=request.state.views)


@app.get("/samples", include_in_schema=False)
async def samples(request: Request, query: Annotated[SamplesQuery, Query()]) -> Response:
    """Fetch the samples of at most two days from the connector."""
    if request.state.fonte is None:
        raise HTTPException(503, "FONTE_API_URL is unset where this server runs: set it, and start the server again")

    def fetch() -> Response:
        http = request.state.fonte
        start, end = query.start_timestamp, query.end_timestamp
        timestamps, columns = client.fetch(str(http.base_url), start, end, query.columns, http)
        seconds = (timestamps.astype("int64") / 1e6).tolist()
        return _json({"timestamps": seconds, "columns": {n: values.tolist() for n, values in columns.items()}})

    try:
        return await to_thread.run_sync(fetch, limiter=request.state.fetches)
    except RequestRefused as error:
        raise HTTPException(422, f"Fonte refused the request: {error.__cause__}") from error
    except FonteError as error:
        logging.getLogger("uvicorn.error").error("%s", error)
        if isinstance(error, AnswerRefused):
            raise HTTPException(503, f"Fonte's answer cannot be used: {error.__cause__}") from error
        raise HTTPException(503, "Fonte does not answer as it should; ask again later", {"Retry-After": "1"}) from error


class _Page(StaticFiles):
    """The files of the page; no-cache makes a browser ask whether they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


app.mount("/page", _Page(directory=PAGE))
# A plain Starlette route, because the page is not part of the API.
app.router.routes.append(Route("/", _Page(directory=PAGE, html=True)))


def _json(content: Mapping[str, Any]) -> Response:
    return Response(to_json(content, inf_nan_mode="null"), media_type="application/json")


def _signal_ids(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return screen.signal_ids(connection)


def _asked_ids(engine: Engine, names: Sequence[str]) -> list[int]:
    """Return the ids of these signals, or of all. Raises RequestValidationError for an unknown one."""
    ids = _signal_ids(engine)
    for name in names:
        if name not in ids:
            known = ", ".join(map(repr, sorted(ids))) or "none, for Alvo knows no signal yet"
            raise refusal("signals", name, f"expected {known}")
    return [ids[name] for name in names or ids]


def _sql(query: DataQuery, form: Format) -> str:
    value = "value" if form == "csv" else "CASE WHEN abs(value) < 'Infinity' THEN value END AS value"
    # The primary key begins with the signal, so the query names the signals even if it wants all.
    rows = f"""
        SELECT {TIMESTAMP} AS timestamp, name AS signal, {value}
        FROM (
            SELECT signal_id, timestamp, value FROM data
            WHERE signal_id = ANY(%(signal_ids)s) AND {YEARS_1_TO_9999} AND {query.condition()}
        ) AS held JOIN (SELECT id, name FROM signal) AS known ON id = signal_id
        ORDER BY held.timestamp, name COLLATE "C"
    """
    return rows if form == "csv" else f"SELECT row_to_json(row) FROM ({rows}) AS row"
