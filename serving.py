"""What the HTTP APIs share: how a period is asked for, and how they answer when something is wrong."""

import logging
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy.exc import SQLAlchemyError

from postgres import engine

FIRST = "First moment of the period, RFC 3339; without an offset it means UTC."
LAST = "First moment after the period, in the same form."
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


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(examples=["columns='wind': expected 'wind_speed', 'power' or 'ambient_temperature'"])


PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "The request names something that does not exist or cannot be."},
    503: {"model": Problem, "description": "The database does not answer; ask again later."},
}


def answer_problems(app: FastAPI, database: str) -> None:
    """Make an app answer 422 and 503 in one form: {"detail": "one line"}.

    database: its name in the answers. What the database said goes to the log, not to the client.
    """

    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse({"detail": "; ".join(map(_described, error.errors()))}, status_code=422)

    def unavailable(request: Request, error: Exception) -> JSONResponse:
        logging.getLogger("uvicorn.error").error("%s: %s", database, engine.reason(error))
        detail = f"{database} does not answer, or is not set up; ask again later"
        return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "1"})

    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(SQLAlchemyError, unavailable)


def _described(error: dict[str, Any]) -> str:
    location = error["loc"][1:]
    message = str(error["msg"]).removeprefix("Input should be ")
    if not location:
        return message
    if error["type"] == "extra_forbidden":
        return f"{location[0]}: no such parameter"
    expected = message if message.startswith("expected") else f"expected {message}"
    return f"{location[0]}={error['input']!r}: {expected}"
