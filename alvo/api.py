"""Alvo over HTTP, and the page that shows it. Run by `uvicorn alvo.api:app --port 8080`.

Its routes only read, but for DELETE /data, which needs the admin token and another role's connection.
`python -m alvo.api` serves it on this machine, with the embedded databases where none are named.
"""

import gzip
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import Engine
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route
from starlette.types import Scope

import command
import serving
import settings
from alvo import schema, screen
from fonte import client
from fonte.client import FonteError, RequestRefused
from postgres import engine
from postgres.copy import CopyOut
from serving import PROBLEMS, Period, Stream, Timestamp

SIGNALS = "The signals wanted, one parameter each; all of them where it is left out."
Format = Literal["json", "csv"]
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "csv": "text/csv"}
COPY_OPTIONS = {"json": "FORMAT text", "csv": "FORMAT csv, HEADER"}
PAGE = Path(__file__).with_name("page")
# The page asks this server alone, whatever comes to stand in it.
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
POINTS = "How many buckets the screen has room for; there are as many at most."
MOST_SAMPLES = timedelta(days=2)
# How many views, and how many downloads of samples, are in hand at once; the others wait.
VIEWS, FETCHES = 8, 4


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


class ShownPeriod(Period):
    """A period that a screen shows: both bounds are needed."""

    start_timestamp: Timestamp = Field(description=serving.FIRST, examples=["2024-05-20T00:00:00Z"])
    end_timestamp: Timestamp = Field(description=serving.LAST, examples=["2024-05-21T00:00:00Z"])


class ViewQuery(ShownPeriod):
    """What GET /view can be asked."""

    points: int = Field(1000, ge=1, le=5000, description=POINTS)


class SamplesQuery(ShownPeriod):
    """What GET /samples can be asked."""

    columns: Annotated[list[str], AfterValidator(serving.each_once)] = Field(
        min_length=1,
        description="The variables wanted, one parameter each.",
        examples=[["wind_speed", "power"]],
        json_schema_extra={"uniqueItems": True},
    )

    @model_validator(mode="after")
    def _is_not_too_long(self) -> "SamplesQuery":
        if self.end_timestamp - self.start_timestamp > MOST_SAMPLES:
            raise PydanticCustomError("period", f"expected a period of {MOST_SAMPLES.days} days at most")
        return self


class Extent(BaseModel):
    """What Alvo holds; null where it holds nothing."""

    first_timestamp: datetime | None = Field(description="Start of the first window", examples=["2024-05-20T00:00:00Z"])
    last_timestamp: datetime | None = Field(description="Start of the last window", examples=["2024-05-29T23:50:00Z"])


class Variable(BaseModel):
    """A variable of which Alvo holds statistics."""

    name: str = Field(examples=["wind_speed"])
    unit: str | None = Field(description="As the connector tells it; null where it does not.", examples=["m/s"])


class Buckets(BaseModel):
    """A variable's statistics, one a bucket; a statistic that Alvo does not know is left out."""

    mean: list[float | None] = Field([], description="Mean of the windows' means", examples=[[8.31, None]])
    min: list[float | None] = Field([], description="Lowest minimum", examples=[[6.02, None]])
    max: list[float | None] = Field([], description="Highest maximum", examples=[[11.9, None]])
    std: list[float | None] = Field(
        [], description="Standard deviation of the samples, every window weighing the same", examples=[[1.13, None]]
    )
    windows: list[int] = Field(description="How many windows have a value", examples=[[1, 0]])


class View(BaseModel):
    """A period as a screen can show it. Bucket i begins i * bucket_s after the start; one without windows is null."""

    start_timestamp: datetime = Field(description="Start of the first bucket", examples=["2024-05-20T00:00:00Z"])
    bucket_s: int = Field(description="Length of a bucket in seconds: 600 is a window", examples=[600])
    variables: dict[str, Buckets]
    previous_timestamp: datetime | None = Field(description="Last window before the period; null where there is none")
    next_timestamp: datetime | None = Field(description="First window after the period; null where there is none")


class PowerCurve(BaseModel):
    """Mean power against mean wind speed. Each point stands for the windows of one cell of a grid."""

    wind_speed: list[float] = Field(description="Ascending; mean of the point's windows", examples=[[8.31]])
    power: list[float] = Field(examples=[[1214.6]])
    windows: list[int] = Field(description="How many windows the point stands for", examples=[[3]])


class Samples(BaseModel):
    """Fonte's 1-minute samples."""

    timestamps: list[float] = Field(description="Seconds since 1970-01-01T00:00:00Z", examples=[[1716163200.0]])
    columns: dict[str, list[float | None]] = Field(examples=[{"power": [1214.6]}])


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    url = settings.fonte_api_url(app.state.fonte_api_url)
    async with serving.engines("alvo api", settings.alvo_database_url(), settings.alvo_admin()) as state:
        with client.connect(url) if url else nullcontext() as fonte:
            limits = {"views": CapacityLimiter(VIEWS), "fetches": CapacityLimiter(FETCHES)}
            yield {**state, **limits, "fonte": fonte, "units": {}}


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
# In place of FONTE_API_URL, where this process serves the connector.
app.state.fonte_api_url = None
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


@app.get("/period", responses=PROBLEMS, summary="The period that Alvo holds")
def period(request: Request) -> Extent:
    """Of whatever signal: from the first window to the last."""
    ids = _signal_ids(request.state.engine).values()
    with request.state.engine.connect() as connection:
        last, first = screen.neighbours(connection, ids, screen.LAST, screen.FIRST)
    return Extent(first_timestamp=first, last_timestamp=last)


@app.get("/variables", responses=PROBLEMS, summary="The variables that Alvo knows, with their units")
async def variables(request: Request) -> list[Variable]:
    """Their units are the connector's to tell."""

    def read() -> list[Variable]:
        names = screen.variables(_signal_ids(request.state.engine))
        units = request.state.units
        if not units and request.state.fonte:
            units.update(client.units(request.state.fonte))
        return [Variable(name=name, unit=units.get(name)) for name in names]

    return await to_thread.run_sync(read, limiter=request.state.fetches)


@app.get("/view", response_model=View, responses=PROBLEMS, summary="A period, reduced to what a screen can show")
async def view(request: Request, query: Annotated[ViewQuery, Query()]) -> Response:
    """Mean, minimum, maximum and standard deviation of every variable; no bucket hides an extreme of its windows."""

    def read() -> Response:
        signal_ids = _signal_ids(request.state.streams)
        names, bounds = screen.variables(signal_ids), (query.start_timestamp, query.end_timestamp)
        with request.state.streams.connect() as connection:
            origin, length, shown = screen.buckets(connection, signal_ids, names, *bounds, query.points)
            previous, following = screen.neighbours(connection, signal_ids.values(), *bounds)
        content = {
            "start_timestamp": origin,
            "bucket_s": int(length.total_seconds()),
            "variables": {name: {s: screen.finite(each[s]) for s in each} for name, each in shown.items()},
            "previous_timestamp": previous,
            "next_timestamp": following,
        }
        return _packed(request, content)

    return await to_thread.run_sync(read, limiter=request.state.views)


@app.get("/power-curve", response_model=PowerCurve, responses=PROBLEMS, summary="Mean power against mean wind speed")
async def power_curve(request: Request, query: Annotated[ShownPeriod, Query()]) -> Response:
    """Windows that lie close together are one point; empty where Alvo knows one of the two variables only."""

    def read() -> Response:
        ids = _signal_ids(request.state.streams)
        x, y = ids.get("wind_speed_mean"), ids.get("power_mean")
        with request.state.streams.connect() as connection:
            points = screen.curve(connection, x, y, query.start_timestamp, query.end_timestamp)
        wind_speed, power, windows = zip(*points, strict=True) if points else ((), (), ())
        return _packed(request, {"wind_speed": wind_speed, "power": power, "windows": windows})

    return await to_thread.run_sync(read, limiter=request.state.views)


@app.get(
    "/samples",
    response_model=Samples,
    responses={**PROBLEMS, 503: {**PROBLEMS[503], "description": "Fonte does not answer, or FONTE_API_URL is unset."}},
    summary="Fonte's 1-minute samples of a short period",
)
async def samples(request: Request, query: Annotated[SamplesQuery, Query()]) -> Response:
    """Asked of the connector, like anyone else does; two days at most."""
    if request.state.fonte is None:
        raise HTTPException(503, "FONTE_API_URL is unset where this server runs: set it, and start the server again")

    def fetch() -> Response:
        http = request.state.fonte
        start, end = query.start_timestamp, query.end_timestamp
        timestamps, columns = client.fetch(str(http.base_url), start, end, query.columns, http)
        seconds = (timestamps.astype("int64") / 1e6).tolist()
        return _packed(
            request, {"timestamps": seconds, "columns": {n: screen.finite(values) for n, values in columns.items()}}
        )

    try:
        return await to_thread.run_sync(fetch, limiter=request.state.fetches)
    except RequestRefused as error:
        raise HTTPException(422, f"Fonte refused the request: {error.__cause__}") from error
    except FonteError as error:
        logging.getLogger("uvicorn.error").error("%s", error)
        raise HTTPException(503, "Fonte does not answer as it should; ask again later", {"Retry-After": "1"}) from error


class _Page(StaticFiles):
    """The files of the page: a browser asks whether they have changed, and nothing in them reaches another host."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


app.mount("/page", GZipMiddleware(_Page(directory=PAGE)))
# No route of FastAPI's, for it is no part of the API.
app.router.routes.append(Route("/", GZipMiddleware(_Page(directory=PAGE, html=True))))


def _packed(request: Request, content: Mapping[str, Any]) -> Response:
    """Return JSON, compressed where the client takes that."""
    body = json.dumps(content, separators=(",", ":"), allow_nan=False, default=_rfc_3339).encode()
    headers = {"Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        body = gzip.compress(body, 6)
        headers["Content-Encoding"] = "gzip"
    return Response(body, headers=headers, media_type="application/json")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page on this machine until Ctrl-C; returns an exit code as etl.py's."""
    parser = command.Parser(prog="python -m alvo.api", description="Serve Alvo's page and API on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=8080, help="where the browser finds the page; default: 8080")
    port = parser.parse_args(arguments).port
    codes = {settings.SettingsError: 2, FonteError: 3, engine.DatabaseError: 4}
    return command.run("alvo.api", lambda: _serve(port), codes)


def _serve(port: int) -> int:
    # Loaded here, because uvicorn alone needs neither.
    import uvicorn

    import etl

    settings.alvo_admin()
    with etl.connector() as base_url:
        with engine.failures("Alvo", "set ALVO_DATABASE_URL, or mend what the message says"):
            with engine.create(settings.alvo_database_url(), "alvo api").begin() as connection:
                schema.create_absent(connection)
        app.state.fonte_api_url = base_url
        try:
            listener = socket.create_server(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise settings.SettingsError(f"port {port} cannot be used: {error}; choose another by --port") from error
        logging.basicConfig(format="%(levelname)s: %(message)s")
        print(f"Alvo: http://127.0.0.1:{listener.getsockname()[1]} until Ctrl-C", flush=True)
        with listener, suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=10)).run([listener])
    return 130  # 128 + SIGINT, as a shell reports it


if __name__ == "__main__":
    # By its own name, under which the app is one and the same.
    from alvo.api import main as imported_main

    sys.exit(imported_main())
