"""Shared by the HTTP APIs: periods, formats, the admin token, and error answers."""

import hmac
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from anyio import CapacityLimiter, move_on_after, to_thread
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from psycopg2 import Error as PostgresError
from pydantic import BaseModel, BeforeValidator, Field, SecretStr, ValidationInfo, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fonte_alvo import engine, settings
from fonte_alvo.command import Failure, clean
from fonte_alvo.copy import CopyOut
from fonte_alvo.embedded import EmbeddedServerError

# Each stream holds a connection; a request that finds none free within CONNECT_TIMEOUT_S is answered with 503.
POOL_SIZE = 40
# The other routes use a separate pool, so streams never block them.
OTHER_POOL_SIZE = 5
DAY, NEXT_DAY = "2024-05-20T00:00:00Z", "2024-05-21T00:00:00Z"
PERIODS = (
    "Every period is half-open, [start, end). Timestamps are RFC 3339 in UTC, and so is one that is sent without an "
    "offset."
)
FIRST = "First moment of the period, RFC 3339; without an offset it means UTC."
LAST = "First moment after the period, in the same form."
FORMAT = "The format of the answer; left out, the Accept header decides, and JSON where that names none of them."
ADMIN_TOKEN = "The admin token, which whoever runs this server has set."
# An SQL expression: the column timestamp in RFC 3339, whatever the time zone of the session.
TIMESTAMP = "to_json(timestamp::timestamptz AT TIME ZONE 'UTC') #>> '{}' || 'Z'"
_log = logging.getLogger("uvicorn.error")
Name = TypeVar("Name", bound=str)
# A slower reader would hold a connection that others need.
STREAM_TIMEOUT_S = 600.0
# RFC 3339, in which t and z may be small and a leap second is 60; seconds, offset and the whole time may be left out,
# and so may the colon of the offset, as generated clients of Python do it.
_HOUR = "(?:[01][0-9]|2[0-3])"
_TIME = f"({_HOUR}:[0-5][0-9])(?::([0-5][0-9]|60)([.][0-9]+)?)?([Zz]|[+-]{_HOUR}:?[0-5][0-9])?"
_TIMESTAMP = f"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})(?:[Tt ]{_TIME})?"
# SQLSTATE classes that a retry cannot fix: data that cannot be cast, and missing or forbidden objects.
_NOT_SET_UP = ("22", "42")
# The parameters that may be repeated.
LISTS = {"columns", "signals"}
_ERRORS_REPORTED = 5


def _timestamp(text: object) -> object:
    """Read a timestamp of RFC 3339, its time and offset optional, as UTC.

    Rounded up to the microseconds that rows have: as either bound of a half-open period that is exact.
    """
    if isinstance(text, datetime):
        return text  # a default, which some versions of FastAPI validate too
    try:
        if not isinstance(text, str) or not (found := re.fullmatch(_TIMESTAMP, text)):
            raise ValueError
        day, clock, seconds, fraction, offset = found.groups(default="")
        moment = datetime.fromisoformat(f"{day}T{clock or '00:00'}{offset.upper() or 'Z'}")
        microseconds = int(fraction[1:7].ljust(6, "0")) + bool(fraction[7:].strip("0"))
        return moment.astimezone(UTC) + timedelta(seconds=int(seconds or 0), microseconds=microseconds)
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "timestamp", "expected a timestamp such as 2024-05-20T00:00:00Z (the + of an offset is sent as %2B)"
        ) from None


def each_once(names: list[Name], field: ValidationInfo) -> list[Name]:
    """Validate that a list, such as columns, names nothing twice."""
    if len(set(names)) < len(names):
        raise PydanticCustomError("repeated", f"expected each {str(field.field_name).removesuffix('s')} once")
    return names


# The calendar of Python and of the tables begins with year 1.
_DESCRIBED = WithJsonSchema({"type": "string", "format": "date-time", "pattern": "^(?!0000)"})
Timestamp = Annotated[datetime, BeforeValidator(_timestamp), _DESCRIBED]


def not_null(schema: dict[str, Any]) -> None:
    """Describe a parameter that may be left out: null is no value of it."""
    schema |= next(each for each in schema.pop("anyOf") if each != {"type": "null"})


class Strict(BaseModel, extra="forbid"):
    """The parameters of a request: one that is not described is refused."""


class PeriodQuery(Strict):
    """The half-open period [start, end); a bound that is left out does not bound."""

    start_timestamp: Timestamp | None = Field(None, description=FIRST, examples=[DAY], json_schema_extra=not_null)
    end_timestamp: Timestamp | None = Field(None, description=LAST, examples=[NEXT_DAY], json_schema_extra=not_null)

    @model_validator(mode="after")
    def _start_is_before_end(self) -> "PeriodQuery":
        start, end = self.start_timestamp, self.end_timestamp
        if start is not None and end is not None and start >= end:
            raise PydanticCustomError("period", f"start_timestamp {start} is not before end_timestamp {end}")
        return self

    def condition(self) -> str:
        """Return the SQL condition that a row lies in the period; its parameters are those of bounds()."""
        conditions = ["timestamp >= %(start)s"] * (self.start_timestamp is not None)
        conditions += ["timestamp < %(end)s"] * (self.end_timestamp is not None)
        return " AND ".join(conditions) or "true"

    def bounds(self) -> dict[str, datetime | None]:
        """Return the parameters of condition()."""
        return {"start": self.start_timestamp, "end": self.end_timestamp}


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(examples=["columns='wind': expected 'wind_speed', 'power' or 'ambient_temperature'"])


def _problem(description: str, **headers: str) -> dict[str, Any]:
    described = {name.replace("_", "-"): {"schema": {"type": kind}} for name, kind in headers.items()}
    return {"model": Problem, "description": description, "headers": described}


CHALLENGE = 'Bearer realm="admin"'
PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: _problem("The request names something that does not exist or cannot be."),
    503: _problem("The database does not answer, or all connections to it are in use.", Retry_After="integer"),
}
PROBLEMS_OF_CHANGES: dict[int | str, dict[str, Any]] = {
    **PROBLEMS,
    401: _problem("The admin token is missing or wrong.", WWW_Authenticate="string"),
    403: _problem("This server was started without an admin: nobody can change anything."),
}
# How the routes that change something are described.
CHANGING: dict[str, Any] = {"tags": ["changing"], "responses": PROBLEMS_OF_CHANGES}
DESCRIBED: dict[str, Any] = {
    "version": "1",
    "docs_url": None,
    "redoc_url": None,
    # Relative to this description, wherever a proxy may serve it.
    "servers": [{"url": ".", "description": "This server"}],
    "openapi_tags": [
        {"name": "reading", "description": "Routes that only read."},
        {"name": "changing", "description": "Routes that change data, and need the admin token."},
    ],
    "contact": {"name": "The people who run this server"},
    "license_info": {"name": "MIT", "identifier": "MIT"},
}
# Sent with every answer. Pages may load only from their own server; Swagger UI's style sheet embeds its images.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CROSS_ORIGIN: dict[str, Any] = {
    "allow_methods": ["GET", "HEAD", "POST", "DELETE"],
    "allow_headers": ["Authorization"],
    "expose_headers": ["Retry-After", "WWW-Authenticate"],
}
ENCODINGS = {"identity": "identity", "gzip": "gzip"}
DOCS = Path(__file__).with_name("docs")


class Changed(BaseModel):
    """What a request changed."""

    rows: int = Field(description="The number of rows deleted or written.", examples=[1440])


@asynccontextmanager
async def engines(name: str, url: URL, admin: tuple[URL, SecretStr] | None) -> AsyncIterator[dict[str, Any]]:
    """Give the state of an app: two engines that only read, one of them for streams, and the one that may write.

    name: as the database is to know the app. admin: the URL and the token; without them nobody may write.
    """
    admin_url, token = admin or (None, None)
    readers = {
        "engine": engine.create(url, name, pool_size=OTHER_POOL_SIZE, check_pooled=True),
        "streams": engine.create(url, name, pool_size=POOL_SIZE, check_pooled=True, time_limit_s=STREAM_TIMEOUT_S),
    }
    writer = engine.create(admin_url, f"{name} admin", check_pooled=True) if admin_url else None
    read_only = {use: pool.execution_options(postgresql_readonly=True) for use, pool in readers.items()}
    yield {**read_only, "admin_engine": writer, "admin_token": token}
    for pool in (*readers.values(), writer):
        if pool:
            pool.dispose()


def _admin_engine(
    request: Request,
    sent: Annotated[
        HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False, description=ADMIN_TOKEN))
    ],
) -> Engine:
    """Return the engine that may write, or raise 401 or 403 (RFC 6750) unless the request has the admin token."""
    token: SecretStr | None = request.state.admin_token
    if token is None:
        raise _refused(request, 403, "nothing can be changed here: the server has no admin database and token")
    if sent is None:
        raise _refused(request, 401, "the admin token is missing", CHALLENGE)
    # As bytes, because a header can hold more than ASCII; in constant time, so that timing reveals nothing.
    if not hmac.compare_digest(sent.credentials.encode("latin-1"), token.get_secret_value().encode()):
        raise _refused(request, 401, "the admin token is wrong", f'{CHALLENGE}, error="invalid_token"')
    admin: Engine = request.state.admin_engine
    return admin


AdminEngine = Annotated[Engine, Depends(_admin_engine)]


def _refused(request: Request, status: int, why: str, challenge: str | None = None) -> HTTPException:
    audit(request, logging.WARNING, status=status, refused=why)
    return HTTPException(status, why, {"WWW-Authenticate": challenge} if challenge else None)


def audit(request: Request, level: int = logging.INFO, **facts: object) -> None:
    """Log on one line, in key=value, who asked for a change and what became of it. Facts are never secret."""
    client = request.client.host if request.client else None
    line = {"action": f"{request.method} {request.url.path}", "client": client, **facts}
    _log.log(level, "audit %s", " ".join(f"{name}={json.dumps(value, default=str)}" for name, value in line.items()))


def delete_rows(connection: Connection, period: PeriodQuery) -> int:
    """Delete the rows of a period and return their number; other writers wait until the caller's transaction ends."""
    connection.exec_driver_sql("LOCK TABLE data IN SHARE ROW EXCLUSIVE MODE")
    return connection.exec_driver_sql(f"DELETE FROM data WHERE {period.condition()}", period.bounds()).rowcount


def reading(media_types: Iterable[str] = (), **links: dict[str, Any]) -> dict[str, Any]:
    """Describe a route that reads: media types beside those of its model, and links from its answer to routes."""
    answer = {"content": {media_type: {} for media_type in media_types}, "links": links}
    return {"tags": ["reading"], "responses": PROBLEMS | {200: {name: held for name, held in answer.items() if held}}}


router = APIRouter()


@router.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    """Return the page that shows the API's description; its files come from this server too."""
    return FileResponse(DOCS / "docs.html")


@router.get("/health", **reading(), summary="Whether the database answers, and is set up")
def health(request: Request, query: Annotated[Strict, Query()]) -> dict[str, Literal["ok"]]:
    """Asks the database for each table and column that the API reads."""
    with request.state.engine.connect() as connection:
        connection.exec_driver_sql(request.app.state.probe)
    return {"status": "ok"}


class LogLine(logging.Formatter):
    """Writes a record as one line of key=value, the message quoted as in JSON; for uvicorn's --log-config log.json."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = super().format(record)
        return f"time={moment} level={record.levelname} logger={record.name} message={json.dumps(message)}"


def make_app(
    side: str,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[dict[str, Any]]],
    probe: str,
    obstacle: Callable[[Engine], str],
    **described: str,
) -> FastAPI:
    """Make an app with the routes that both have; it answers every problem in one form: {"detail": "one line"}.

    side: Fonte or Alvo, whose database's own messages go to the log, not to the client. probe: SQL that fails where
    the database is not set up; obstacle then says why. described: title, summary and description.
    """
    database = f"{side}'s database"

    @asynccontextmanager
    async def started(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        allowed = {"origins": settings.allowed_origins(side), "hosts": settings.allowed_hosts(side)}
        async with lifespan(app) as state:
            yield {**state, **allowed}

    # All handlers are async: a sync handler needs a thread, and an overloaded machine has none left.
    async def unavailable(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s: %s", database, engine.reason(error))
        if (getattr(getattr(error, "orig", error), "pgcode", None) or "")[:2] in _NOT_SET_UP:
            with suppress(SQLAlchemyError):
                detail = f"{database} is not set up: {await _in_own_thread(obstacle, request.state.engine)}"
                return JSONResponse({"detail": detail}, status_code=503)
        in_use, away = f"all connections to {database} are in use", f"{database} does not answer"
        detail = f"{in_use if isinstance(error, PoolTimeoutError) else away}; ask again later"
        return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "1"})

    handlers: dict[Any, Any] = {404: _not_found, 405: _not_allowed, RequestValidationError: _invalid, Failure: _failed}
    handlers |= dict.fromkeys((OSError, RuntimeError), _overloaded)
    handlers |= dict.fromkeys((SQLAlchemyError, PostgresError, EmbeddedServerError, UnicodeDecodeError), unavailable)
    app = FastAPI(
        lifespan=started,
        exception_handlers=handlers,
        middleware=[Middleware(_Front), Middleware(_Gzip, compresslevel=6)],
        generate_unique_id_function=lambda route: route.name,
        # A redirection would repeat the Host that the client names.
        redirect_slashes=False,
        dependencies=[Depends(_scalars_once)],
        **DESCRIBED | described,
    )
    app.state.probe = probe
    app.include_router(router)
    app.mount("/docs", StaticFiles(directory=DOCS, packages=[("fastapi_offline", "static")]))
    return app


class _Front:
    """Refuses hosts and origins, answers HEAD as GET, whose body the server leaves out, and adds HEADERS."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self.app
        if scope["type"] == "http":
            # Made for each request, because these settings are read when a server starts.
            origins, hosts = scope["state"]["origins"], scope["state"]["hosts"]
            app = CORSMiddleware(app, origins, **CROSS_ORIGIN) if origins else app
            app = TrustedHostMiddleware(app, hosts or ["*"], www_redirect=False)
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET", "head": True}
        await app(scope, receive, with_headers)


class _Gzip(GZipMiddleware):
    """Compresses an answer where the client prefers that, by the quality values of RFC 9110, section 12.5.3."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = MutableHeaders(scope=scope)
            headers["Accept-Encoding"] = accepted(",".join(headers.getlist("Accept-Encoding")), ENCODINGS)
        await super().__call__(scope, receive, send)


async def _overloaded(request: Request, error: Exception) -> JSONResponse:
    # Python has no type of its own for a thread that cannot be started.
    if isinstance(error, RuntimeError) and "start new thread" not in str(error):
        raise error
    _log.error("%s", error)
    detail = "this machine has no thread or descriptor left; ask again later"
    return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "1"})


async def _failed(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s", error)
    return JSONResponse({"detail": str(error)}, status_code=503)


async def _not_found(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "no such path: /docs describes those that exist"}, status_code=404)


async def _not_allowed(request: Request, error: Exception) -> Response:
    # Starlette's answer would list only the methods of the first route with this path.
    path = request.url.path
    route = path.removeprefix(request.scope.get("root_path", ""))
    methods = {method.upper() for method in request.app.openapi()["paths"].get(route, ["get"])}
    methods |= {"OPTIONS", *(["HEAD"] if "GET" in methods else [])}
    allow = {"Allow": ", ".join(sorted(methods))}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    detail = f"{clean(request.method)} {path}: expected {' or '.join(sorted(methods))}"
    return JSONResponse({"detail": detail}, status_code=405, headers=allow)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Each route takes its parameters as one model.
    fields = request.scope["route"].dependant.query_params
    known = [name for field in fields for name in field.field_info.annotation.model_fields]
    reported = [_described(error, known) for error in error.errors()[:_ERRORS_REPORTED]]
    return JSONResponse({"detail": "; ".join(reported)}, status_code=422)


async def _scalars_once(request: Request) -> None:
    """Refuse a repeated parameter, of which FastAPI would take the last, unless it is a list."""
    for name in request.query_params:
        values = request.query_params.getlist(name)
        if len(values) > 1 and name not in LISTS:
            error = {"type": "repeated", "loc": ("query", name), "msg": "expected it once", "input": values}
            raise RequestValidationError([error])


def accepted(accept: str, offered: Mapping[Name, str]) -> Name:
    """Return the key of offered, media types by name, that an Accept header prefers; the first where it names none.

    Content codings by name are chosen likewise by Accept-Encoding.

    Of several ranges that hold a media type the most specific counts (RFC 9110, section 12.5.1).
    """
    ranges: dict[str, tuple[float, int]] = {}
    for position, part in enumerate(accept.lower().split(",")):
        media_range, *parameters = map(str.strip, part.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        weight = float(quality) if re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", quality) else 0.0
        ranges.setdefault(media_range, (weight, -position))

    def preference(name: Name) -> tuple[float, int]:
        media_type = offered[name]
        holding = (media_type, media_type.split("/")[0] + "/*", "*/*", "*")
        weight, position = next((ranges[each] for each in holding if each in ranges), (0.0, 0))
        return (weight, position) if weight else (0.0, 0)

    return max(offered, key=preference)


def json_list(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Turn lines of JSON, in pieces that may end anywhere, into a JSON list."""
    begin, held = b"[", b""
    for piece in pieces:
        text = held + piece.replace(b"\n", b",")
        # The comma after the last line is not to be sent.
        text, held = (text[:-1], b",") if text.endswith(b",") else (text, b"")
        yield begin + text
        begin = b""
    yield begin + b"]"


class Stream(StreamingResponse):
    """A response that is sent while the database is still copying rows out.

    A slow client slows the query down; a client that disconnects ends it.
    """

    def __init__(self, media_type: str, copied: Callable[[], CopyOut], make: Callable[..., Iterator[bytes]]) -> None:
        """Start nothing yet: copied starts the query, make turns what it copies into the pieces of the body."""
        super().__init__((), media_type=media_type, headers={"Vary": "Accept"})
        self._copied, self._make = copied, make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the body; the rows are closed in any case."""
        rows = self._copied()
        try:
            pieces = self._make(iter(rows))
            # If the database fails here, the answer is 503; if it fails later, the stream breaks off.
            first = await _in_own_thread(next, pieces)
            self.body_iterator = _drawn(None if "head" in scope else first, pieces)
            try:
                with move_on_after(STREAM_TIMEOUT_S) as limit:
                    await super().__call__(scope, receive, send)
            except Exception as error:
                # Its reader notices, for the body does not end as it should.
                _log.error("an answer was broken off: %s", engine.reason(error))
            if limit.cancelled_caught:
                client = scope["client"][0]
                _log.warning("%s took longer than %s s to read an answer: broken off", client, STREAM_TIMEOUT_S)
        finally:
            rows.close()


async def _drawn(piece: bytes | None, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece is not None:
        yield piece
        piece = await _in_own_thread(next, pieces, None)


async def _in_own_thread(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
    """Call a blocking function in an extra thread, so that streams do not occupy the threads of other routes.

    If the client disconnects, nobody waits for the thread; closing the rows ends it.
    """
    return await to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=CapacityLimiter(1))


def _described(error: dict[str, Any], known: Sequence[str]) -> str:
    """Return what is wrong with a parameter; known: those that the route has."""
    location = error["loc"][1:]
    if not location:
        return str(error["msg"])
    name = ascii(location[0])[1:-1]
    if error["type"] == "missing":
        return f"{name}: expected, and missing"
    if error["type"] == "extra_forbidden":
        near = get_close_matches(name[:80], known, n=1, cutoff=0.35)
        meant = f"; did you mean {_form(near[0])}?" if near else ""
        return f"{name:.80}: no such parameter, expected {', '.join(known) or 'none'}{meant}"
    message = re.sub("^(Input|String) should (be|have) ", "", str(error["msg"]))
    expected = message if message.startswith("expected") else f"expected {message}"
    several = f"; several are sent as {_form(name)}" if name in LISTS and "," in str(error["input"]) else ""
    return clean(f"{name}={error['input']!r:.200}: {expected}{several}", 1000)


def _form(name: str) -> str:
    return f"{name}=A&{name}=B" if name in LISTS else name
