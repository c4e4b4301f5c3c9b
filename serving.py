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

from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from psycopg2 import Error as PostgresError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import URL, Connection, Engine, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Receive, Scope, Send

from postgres import engine
from postgres.copy import CopyOut

# FastAPI answers in 40 threads; each stream holds a connection.
POOL_SIZE = 40
FIRST = "First moment of the period, RFC 3339; without an offset it means UTC."
LAST = "First moment after the period, in the same form."
FORMAT = "The format of the answer; left out, the Accept header decides, and JSON where that names none of them."
ACCEPT = "The formats that the client takes, by their media types."
ADMIN_TOKEN = "The admin token, which whoever runs this server has set."
# The column timestamp as SQL writes it in RFC 3339, in a session whose time zone is of no account.
TIMESTAMP = "to_json(timestamp AT TIME ZONE 'UTC') #>> '{}' || 'Z'"
_log = logging.getLogger("uvicorn.error")
Name = TypeVar("Name", bound=str)
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?)?")


def _timestamp(text: object) -> object:
    """Read a timestamp of RFC 3339, its time and offset optional, as UTC."""
    try:
        if not isinstance(text, str) or not _TIMESTAMP.fullmatch(text):
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


Timestamp = Annotated[datetime, BeforeValidator(_timestamp)]


class Period(BaseModel):
    """The half-open period [start, end); a bound that is left out does not bound."""

    model_config = ConfigDict(extra="forbid")

    start_timestamp: Timestamp | None = Field(None, description=FIRST, examples=["2024-05-20T00:00:00Z"])
    end_timestamp: Timestamp | None = Field(None, description=LAST, examples=["2024-05-21T00:00:00Z"])

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
    503: {"model": Problem, "description": "The database does not answer; ask again later."},
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
    """Give the state of an app: an engine that only reads, and one that may write with the token that opens it.

    name: as the database is to know the app. admin: the URL and the token; without them nobody may write.
    """
    admin_url, token = admin or (None, None)
    reader = engine.create(url, name, pool_size=POOL_SIZE, check_pooled=True)
    writer = engine.create(admin_url, f"{name} admin", check_pooled=True) if admin_url else None
    yield {"engine": reader.execution_options(postgresql_readonly=True), "admin_engine": writer, "admin_token": token}
    reader.dispose()
    if writer:
        writer.dispose()


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
    return request.state.admin_engine  # type: ignore[no-any-return]


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


@router.get("/health", responses={503: PROBLEMS[503]}, summary="Whether the database answers")
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


def answer_problems(app: FastAPI, database: str) -> None:
    """Make an app answer 422 and 503 in one form: {"detail": "one line"}.

    database: its name in the answers. What the database said goes to the log, not to the client.
    """

    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse({"detail": "; ".join(map(_described, error.errors()))}, status_code=422)

    def unavailable(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s: %s", database, engine.reason(error))
        detail = f"{database} does not answer, or is not set up; ask again later"
        return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "1"})

    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(SQLAlchemyError, unavailable)
    app.add_exception_handler(PostgresError, unavailable)


def accepted(accept: str, offered: Mapping[Name, str]) -> Name:
    """Return the key of offered, media types by name, that an Accept header prefers; the first where it names none."""
    ranges: list[tuple[float, str]] = []
    for part in accept.split(","):
        media_range, *parameters = part.replace(" ", "").lower().split(";")
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        ranges.append((float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 0.0, media_range))
    for weight, media_range in sorted(ranges, key=lambda pair: -pair[0]):
        for name, media_type in offered.items():
            if weight > 0 and media_range in (media_type, media_type.split("/")[0] + "/*", "*/*"):
                return name
    return next(iter(offered))


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
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                # A limit of its own: those that wait for the rows may hold all threads of the common one.
                await to_thread.run_sync(self._rows.close, limiter=CapacityLimiter(1))


def begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Make the first piece now: a database that is away is a 503 here, and a broken stream later."""
    return chain([next(pieces)], pieces)


async def _drawn(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    # A thread that waits for the database is left behind when the client goes; closing the rows ends it.
    while (piece := await to_thread.run_sync(next, pieces, None, abandon_on_cancel=True)) is not None:
        yield piece


def _described(error: dict[str, Any]) -> str:
    location = error["loc"][1:]
    message = str(error["msg"]).removeprefix("Input should be ")
    if not location:
        return message
    if error["type"] == "extra_forbidden":
        return f"{location[0]}: no such parameter"
    expected = message if message.startswith("expected") else f"expected {message}"
    return f"{location[0]}={error['input']!r}: {expected}"
