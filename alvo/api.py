"""Alvo over HTTP, and the page that shows it. Run by `uvicorn alvo.api:app --http h11 --port 8080`.

Its routes only read, except two DELETEs, which need the admin token and connect as another role. The API's description
omits the routes that only the page uses.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import Engine
from starlette.routing import Route
from starlette.types import Scope

from alvo import load, schema, screen
from fonte import client
from fonte.client import FonteError, RequestRefused
from fonte_alvo import serving, settings
from fonte_alvo.copy import CopyOut
from fonte_alvo.serving import CHANGING, AdminEngine, Changed, PeriodQuery, Stream, Strict, Timestamp

SIGNAL = "The name of the one signal wanted; all of them where it is left out, none where Alvo does not know it."
SIGNALS = "The signals wanted, one parameter each; all of them where it is left out."
Format = Literal["json", "csv"]
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "csv": "text/csv"}
COPY_OPTIONS = {"json": "FORMAT text", "csv": "FORMAT csv, HEADER"}
PAGE = Path(__file__).with_name("page")
MOST_SAMPLES = timedelta(days=2)
# How many views, and how many downloads of samples, are in hand at once; the others wait.
VIEWS, FETCHES = 8, 4
# Of all signals together, in the buckets of one view: more signals, fewer buckets.
MOST_VALUES = 100_000
FONTE_PATIENCE_S = 2.0


SignalName = Annotated[str, Field(min_length=1)]


class SignalsQuery(Strict):
    """The parameters of GET /signals."""

    name: SignalName | None = Field(
        None, description=SIGNAL, examples=["wind_speed_mean"], json_schema_extra=serving.not_null
    )


class DataQuery(PeriodQuery):
    """The parameters of GET /data."""

    signals: Annotated[list[SignalName], AfterValidator(serving.each_once)] = Field(
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


class ShownPeriod(PeriodQuery):
    """A period that a screen shows: both bounds are needed."""

    start_timestamp: Timestamp
    end_timestamp: Timestamp


class ViewQuery(ShownPeriod):
    """The parameters of GET /view."""

    # How many buckets the screen has room for; there are as many at most.
    points: int = Field(1000, ge=1, le=5000)


class SamplesQuery(ShownPeriod):
    """The parameters of GET /samples."""

    columns: Annotated[list[str], AfterValidator(serving.each_once)] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_not_too_long(self) -> "SamplesQuery":
        if self.end_timestamp - self.start_timestamp > MOST_SAMPLES:
            raise PydanticCustomError("period", f"expected a period of {MOST_SAMPLES.days} days at most")
        return self


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    url = settings.fonte_api_url(app.state.fonte_api_url)
    async with serving.engines("alvo api", settings.alvo_database_url(), settings.alvo_admin()) as state:
        with client.connect(url, FONTE_PATIENCE_S) if url else nullcontext() as fonte:
            limits = {"views": CapacityLimiter(VIEWS), "fetches": CapacityLimiter(FETCHES)}
            yield {**state, **limits, "fonte": fonte, "units": {}}


app = serving.make_app(
    "Alvo",
    _lifespan,
    probe="SELECT name, value, timestamp FROM data JOIN signal ON signal.id = signal_id LIMIT 0",
    obstacle=schema.obstacle,
    title="Alvo",
    summary="Ten-minute statistics of a wind turbine's signals.",
    description=f"{serving.PERIODS} Two routes change something, and need the admin token.",
)
# In place of FONTE_API_URL, where this process serves the connector.
app.state.fonte_api_url = None


@app.get("/signals", **serving.reading(), summary="The signals that Alvo knows, by name")
def signals(request: Request, query: Annotated[SignalsQuery, Query()]) -> list[Signal]:
    """The names that `signals` of GET /data takes."""
    names = sorted(_signal_ids(request.state.engine))
    return [Signal(name=name) for name in names if query.name in (None, name)]


@app.get(
    "/data",
    response_model=list[Value],
    **serving.reading(MEDIA_TYPES.values()),
    summary="Values of a period, ordered by time and signal",
)
async def data(request: Request, query: Annotated[DataQuery, Query()]) -> Stream:
    """Records of one value each, as Alvo holds them: a window without a value of a signal has no record of it."""
    form = query.format or serving.accepted(",".join(request.headers.getlist("Accept")), MEDIA_TYPES)
    signal_ids = await to_thread.run_sync(_asked_ids, request.state.engine, query.signals)
    parameters = query.bounds() | {"signal_ids": signal_ids}
    asked = (request.state.streams, _sql(query, form), parameters, COPY_OPTIONS[form])
    return Stream(MEDIA_TYPES[form], partial(CopyOut, *asked), serving.json_list if form == "json" else iter)


@app.delete("/signals", **CHANGING, summary="Delete the signals that have no value")
def delete_signals(request: Request, admin: AdminEngine, query: Annotated[Strict, Query()]) -> Changed:
    """Delete every signal that has no value in any period, in one transaction; answers their number."""
    with admin.begin() as connection:
        rows = load.delete_unused_signals(connection)
    serving.audit(request, rows=rows)
    return Changed(rows=rows)


@app.delete("/data", **CHANGING, summary="Delete the values of a period")
def delete_data(request: Request, admin: AdminEngine, query: Annotated[PeriodQuery, Query()]) -> Changed:
    """Delete every value of the period; without bounds, every value. In one transaction; answers their number."""
    with admin.begin() as connection:
        rows = serving.delete_rows(connection, query)
        load.forget(connection, query.start_timestamp or "-infinity", query.end_timestamp or "infinity")
    serving.audit(request, rows=rows, **query.model_dump())
    return Changed(rows=rows)


@app.get("/period", include_in_schema=False)
def period(request: Request, query: Annotated[Strict, Query()]) -> dict[str, datetime | bool | None]:
    """Return the starts of the first and the last window of any signal, null where there is none; see screen.live."""
    ids = _signal_ids(request.state.engine).values()
    with request.state.engine.connect() as connection:
        last, first = screen.neighbours(connection, ids, screen.LAST, screen.FIRST)
        return {"first_timestamp": first, "last_timestamp": last, "live": screen.live(connection)}


@app.get("/variables", include_in_schema=False)
async def variables(request: Request, query: Annotated[Strict, Query()]) -> list[dict[str, str | None]]:
    """Return name and unit of each variable; the unit is null where the connector reports none."""

    def read() -> list[dict[str, str | None]]:
        names = screen.variables(_signal_ids(request.state.engine))
        units = request.state.units
        if not units and request.state.fonte:
            units.update({name: each.unit for name, each in client.variables(request.state.fonte).items()})
        return [{"name": name, "unit": units.get(name)} for name in names]

    return await to_thread.run_sync(read, limiter=request.state.fetches)


@app.get("/view", include_in_schema=False)
async def view(request: Request, query: Annotated[ViewQuery, Query()]) -> Response:
    """Return mean, minimum, maximum and std of every variable in buckets; every extreme stays visible.

    Bucket i begins i * bucket_s after start_timestamp; one without windows is null.
    """

    def read() -> Response:
        signal_ids = _signal_ids(request.state.streams)
        names, bounds = screen.variables(signal_ids), (query.start_timestamp, query.end_timestamp)
        with request.state.streams.connect() as connection:
            points = max(1, min(query.points, MOST_VALUES // (len(signal_ids) or 1)))
            origin, length, shown = screen.buckets(connection, signal_ids, names, *bounds, points)
            previous, following = screen.neighbours(connection, signal_ids.values(), *bounds)
        content = {
            "start_timestamp": origin,
            "bucket_s": int(length.total_seconds()),
            "variables": {
                name: {s: screen.finite(each[s]) for s in each} | {"windows": each["windows"].astype(int).tolist()}
                for name, each in shown.items()
            },
            "previous_timestamp": previous,
            "next_timestamp": following,
        }
        return _json(content)

    return await to_thread.run_sync(read, limiter=request.state.views)


@app.get("/power-curve", include_in_schema=False)
async def power_curve(request: Request, query: Annotated[ShownPeriod, Query()]) -> Response:
    """Return mean power against mean wind speed, and how many windows each point stands for."""

    def read() -> Response:
        ids = _signal_ids(request.state.streams)
        x, y = ids.get("wind_speed_mean"), ids.get("power_mean")
        with request.state.streams.connect() as connection:
            points = screen.curve(connection, x, y, query.start_timestamp, query.end_timestamp)
        wind_speed, power, windows = zip(*points, strict=True) if points else ((), (), ())
        return _json({"wind_speed": wind_speed, "power": power, "windows": windows})

    return await to_thread.run_sync(read, limiter=request.state.views)


@app.get("/samples", include_in_schema=False)
async def samples(request: Request, query: Annotated[SamplesQuery, Query()]) -> Response:
    """Fetch 1-minute samples from the connector, for two days at most."""
    if request.state.fonte is None:
        raise HTTPException(503, "FONTE_API_URL is unset where this server runs: set it, and start the server again")

    def fetch() -> Response:
        http = request.state.fonte
        start, end = query.start_timestamp, query.end_timestamp
        timestamps, columns = client.fetch(str(http.base_url), start, end, query.columns, http)
        seconds = (timestamps.astype("int64") / 1e6).tolist()
        return _json({"timestamps": seconds, "columns": {n: screen.finite(values) for n, values in columns.items()}})

    try:
        return await to_thread.run_sync(fetch, limiter=request.state.fetches)
    except RequestRefused as error:
        raise HTTPException(422, f"Fonte refused the request: {error.__cause__}") from error
    except FonteError as error:
        logging.getLogger("uvicorn.error").error("%s", error)
        raise HTTPException(503, "Fonte does not answer as it should; ask again later", {"Retry-After": "1"}) from error


class _Page(StaticFiles):
    """The files of the page: a browser asks whether they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


app.mount("/page", _Page(directory=PAGE))
# A plain Starlette route, because the page is not part of the API.
app.router.routes.append(Route("/", _Page(directory=PAGE, html=True)))


def _json(content: Mapping[str, Any]) -> Response:
    body = json.dumps(content, separators=(",", ":"), allow_nan=False, default=_rfc_3339)
    return Response(body, media_type="application/json")


def _rfc_3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _signal_ids(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return screen.signal_ids(connection)


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
