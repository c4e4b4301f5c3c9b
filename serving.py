"""What the HTTP APIs share: periods and formats, who may change data, and what is said when something is wrong."""

import hmac
import json
import logging
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import chain
from typing import Annotated, Any, Literal, TypeVar

from anyio import CancelScope, CapacityLimiter, move_on_after, to_thread
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from psycopg2 import Error as PostgresError
from pydantic import BaseModel, BeforeValidator, Field, SecretStr, ValidationInfo, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import URL, Connection, Engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.types import Receive, Scope, Send

from postgres import engine
from postgres.copy import CopyOut

# Each stream holds a connection while it lasts; who finds none free within CONNECT_TIMEOUT_S is sent away.
POOL_SIZE = 40
# The other routes have connections of their own: they answer however many streams there are.
OTHER_POOL_SIZE = 5
FIRST = "First moment of the period, RFC 3339; without an offset it means UTC."
LAST = "First moment after the period, in the same form."
FORMAT = "The format of the answer; left out, the Accept header decides, and JSON where that names none of them."
ADMIN_TOKEN = "The admin token, which whoever runs this server has set."
# The column timestamp as SQL writes it in RFC 3339, in a session whose time zone is of no account.
TIMESTAMP = "to_json(timestamp AT TIME ZONE 'UTC') #>> '{}' || 'Z'"
_log = logging.getLogger("uvicorn.error")
Name = TypeVar("Name", bound=str)
# Who reads more slowly than this would keep a connection to the database from others.
STREAM_TIMEOUT_S = 600.0
_DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_HOUR = "([01][0-9]|2[0-3])"
_TIME = f"{_HOUR}:[0-5][0-9](:[0-5][0-9]([.][0-9]{{1,6}})?)?(Z|[+-]{_HOUR}:[0-5][0-9])?"
_TIMESTAMP = f"^{_DATE}([T ]{_TIME})?$"
# A list that a client repeats by the thousand is not repeated to it.
_ERRORS_TOLD = 5


def _timestamp(text: object) -> object:
    """Read a timestamp of RFC 3339, its time and offset optional, as UTC."""
    if isinstance(text, datetime):
        return text  # a default, which some versions of FastAPI validate too
    try:
        if not isinstance(text, str) or not re.fullmatch(_TIMESTAMP, text):
            raise ValueError
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "timestamp", "expected a timestamp such as 2024-05-20T00:00:00Z (the + of an offset is sent as %2B)"
        ) from None


def each_once(names: list[Name], field: ValidationInfo) -> list[Name]:
    """Validate that a list, such as columns, names nothing twice."""
    if len(set(names)) < len(names):
        raise PydanticCustomError("repeated", f"expected each {str(field.field_name).removesuffix('s')} once")
    return names


Timestamp = Annotated[datetime, BeforeValidator(_timestamp), WithJsonSchema({"type": "string", "pattern": _TIMESTAMP})]


def not_null(schema: dict[str, Any]) -> None:
    """Describe a parameter that may be left out: null is no value of it."""
    schema |= next(each for each in schema.pop("anyOf") if each != {"type": "null"})


class Period(BaseModel):
    """The half-open period [start, end); a bound that is left out does not bound."""

    start_timestamp: Timestamp | None = Field(
        None, description=FIRST, examples=["2024-05-20T00:00:00Z"], json_schema_extra=not_null
    )
    end_timestamp: Timestamp | None = Field(
        None, description=LAST, examples=["2024-05-21T00:00:00Z"], json_schema_extra=not_null
    )

    @model_validator(mode="after")
    def _start_is_before_end(self) -> "Period":
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


PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "The request names something that does not exist or cannot be."},
    503: {
        "model": Problem,
        "description": "The database does not answer, or all connections to it are in use; ask again later.",
        "headers": {"Retry-After": {"description": "After how many seconds.", "schema": {"type": "integer"}}},
    },
}

CHALLENGE = 'Bearer realm="admin"'
_CHALLENGE_HEADER = {"WWW-Authenticate": {"description": CHALLENGE, "schema": {"type": "string"}}}
PROBLEMS_OF_CHANGES: dict[int | str, dict[str, Any]] = {
    **PROBLEMS,
    401: {"model": Problem, "description": "The admin token is missing or wrong.", "headers": _CHALLENGE_HEADER},
    403: {"model": Problem, "description": "This server was started without an admin: nobody can change anything."},
}


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
    """Return the engine that may write, to who sends the admin token; what RFC 6750 says to everybody else."""
    token: SecretStr | None = request.state.admin_token
    if token is None:
        raise _refused(request, 403, "nothing can be changed here: the server has no admin database and token")
    if sent is None:
        raise _refused(request, 401, "the admin token is missing", CHALLENGE)
    # As bytes, for a header can hold more than ASCII; in constant time, for the time must not tell how much is right.
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


def delete_rows(connection: Connection, period: Period) -> int:
    """Delete the rows of a period in the caller's transaction, until whose end nobody else writes; return how many."""
    connection.exec_driver_sql("LOCK TABLE data IN SHARE ROW EXCLUSIVE MODE")
    return connection.exec_driver_sql(f"DELETE FROM data WHERE {period.condition()}", period.bounds()).rowcount


router = APIRouter()


@router.get("/health", responses=PROBLEMS, summary="Whether the database answers")
def health(request: Request) -> dict[str, Literal["ok"]]:
    """Asks the database, not only this process."""
    with request.state.engine.connect() as connection:
        connection.execute(select(1))
    return {"status": "ok"}


@router.delete("/data", responses=PROBLEMS_OF_CHANGES, summary="Delete the rows of a period")
def delete_data(request: Request, admin: AdminEngine, period: Annotated[Period, Query()]) -> Changed:
    """Delete every row of the period; without bounds, every row. In one transaction; answers their number."""
    with admin.begin() as connection:
        rows = delete_rows(connection, period)
    audit(request, rows=rows, **period.model_dump())
    return Changed(rows=rows)


class LogLine(logging.Formatter):
    """Writes a record as one line of key=value, the message quoted as in JSON; for uvicorn's --log-config log.json."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = super().format(record)
        return f"time={moment} level={record.levelname} logger={record.name} message={json.dumps(message)}"


def answer_problems(app: FastAPI, database: str) -> None:
    """Make an app answer 422 and 503 in one form: {"detail": "one line"}; to be called before routes are added.

    A parameter that a route's description does not name, or that is repeated and no list, is refused on every route.
    database: its name in the answers. What the database said goes to the log, not to the client.
    """

    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        told = [_described(error) for error in error.errors()[:_ERRORS_TOLD]]
        return JSONResponse({"detail": "; ".join(told)}, status_code=422)

    def unavailable(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s: %s", database, engine.reason(error))
        detail = f"{database} does not answer, or is not set up; ask again later"
        if isinstance(error, PoolTimeoutError):
            detail = f"all connections to {database} are in use; ask again later"
        return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "1"})

    def not_allowed(request: Request, error: Exception) -> JSONResponse:
        # Each route knows its own methods alone: Starlette's answer would name those of the first.
        described = app.openapi()["paths"].get(request.url.path, ["get"])
        methods = sorted(map(str.upper, described))
        detail = f"{request.method} {request.url.path}: expected {' or '.join(methods)}"
        return JSONResponse({"detail": detail}, status_code=405, headers={"Allow": ", ".join(methods)})

    app.router.dependencies.append(Depends(_only_described))
    app.add_exception_handler(405, not_allowed)
    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(SQLAlchemyError, unavailable)
    app.add_exception_handler(PostgresError, unavailable)


async def _only_described(request: Request) -> None:
    path = request.app.openapi()["paths"].get(request.scope["route"].path, {})
    described = path.get(request.method.lower(), {}).get("parameters", [])
    is_list = {each["name"]: each["schema"].get("type") == "array" for each in described if each["in"] == "query"}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        if name not in is_list:
            raise RequestValidationError([{"type": "unknown", "loc": ("query", name)}])
        if len(values) > 1 and not is_list[name]:
            raise RequestValidationError(
                [{"type": "repeated", "loc": ("query", name), "msg": "expected it once", "input": values}]
            )


def accepted(accept: str, offered: Mapping[Name, str]) -> Name:
    """Return the key of offered, media types by name, that an Accept header prefers; the first where it names none.

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
        holding = (media_type, media_type.split("/")[0] + "/*", "*/*")
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
    """A body that is made while it is sent, from rows that the database copies out meanwhile.

    Who reads slowly slows the database down; who goes away ends its query.
    """

    def __init__(self, rows: CopyOut, pieces: Iterator[bytes], media_type: str) -> None:
        """Send pieces, which are made of rows."""
        super().__init__(_drawn(pieces), media_type=media_type, headers={"Vary": "Accept"})
        self._rows = rows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the body; the rows are closed in any case."""
        try:
            with move_on_after(STREAM_TIMEOUT_S) as limit:
                await super().__call__(scope, receive, send)
            if limit.cancelled_caught:
                client = scope["client"][0]
                _log.warning("%s took longer than %s s to read an answer: broken off", client, STREAM_TIMEOUT_S)
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(self._rows.close, limiter=_own_thread())


async def begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Make the first piece now: a database that is away is a 503 here, and a broken stream later."""
    return chain([await to_thread.run_sync(next, pieces, limiter=_own_thread())], pieces)


async def _drawn(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    # A thread that waits for the database is left behind when the client goes; closing the rows ends it.
    while (
        piece := await to_thread.run_sync(next, pieces, None, abandon_on_cancel=True, limiter=_own_thread())
    ) is not None:
        yield piece


def _own_thread() -> CapacityLimiter:
    """Streams wait for the database in threads that are none of the few in which the other routes answer."""
    return CapacityLimiter(1)


def _described(error: dict[str, Any]) -> str:
    location = error["loc"][1:]
    if not location:
        return str(error["msg"])
    name = ascii(location[0])[1:-1]
    if error["type"] == "unknown":
        return f"{name:.80}: no such parameter"
    message = str(error["msg"]).removeprefix("Input should be ")
    expected = message if message.startswith("expected") else f"expected {message}"
    return f"{name}={error['input']!r:.200}: {expected}"
