"""Query parameters: periods and their timestamps, and one line for each parameter that is wrong."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import parse_qs

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from fonte_alvo.command import clean

DAY, NEXT_DAY = "2024-05-20T00:00:00Z", "2024-05-21T00:00:00Z"
START_TEXT = "First moment of the period, RFC 3339; without an offset it means UTC."
END_TEXT = "First moment after the period, in the same form."
FORMAT = "The format of the answer; by default the Accept header decides, and JSON if it names none of them."
# The parameters that may be repeated.
LISTS = {"columns", "signals"}
# RFC 3339 allows a lower-case t and z, and 60 for a leap second. Here the time, its seconds and the offset are
# optional, and so is the offset's colon, which generated Python clients omit.
_HOUR = "(?:[01][0-9]|2[0-3])"
_TIME = f"({_HOUR}:[0-5][0-9])(?::([0-5][0-9]|60)([.][0-9]+)?)?([Zz]|[+-]{_HOUR}:?[0-5][0-9])?"
_TIMESTAMP = f"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})(?:[Tt ]{_TIME})?"
Name = TypeVar("Name", bound=str)


def _timestamp(text: object) -> datetime:
    """Read a timestamp of RFC 3339, with optional time and offset, as UTC.

    A fraction is rounded up to microseconds, the precision of the rows, so a half-open period keeps exactly its rows.
    """
    try:
        # Some versions of FastAPI validate defaults too, which are moments already.
        if not (found := re.fullmatch(_TIMESTAMP, str(text))):
            raise ValueError
        day, clock, seconds, fraction, offset = found.groups(default="")
        moment = datetime.fromisoformat(f"{day}T{clock or '00:00'}{offset.upper() or 'Z'}")
        microseconds = int(fraction[1:7].ljust(6, "0")) + bool(fraction[7:].strip("0"))
        return moment.astimezone(UTC) + timedelta(seconds=int(seconds or 0), microseconds=microseconds)
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "timestamp", "expected a timestamp such as 2024-05-20T00:00:00Z, in the years 1 to 9999 (send a + as %2B)"
        ) from None


# The calendars of Python and of the tables begin with year 1.
_DESCRIBED = WithJsonSchema({"type": "string", "format": "date-time", "pattern": "^(?!0000)"})
Timestamp = Annotated[datetime, BeforeValidator(_timestamp), _DESCRIBED]


def each_once(names: list[Name], field: ValidationInfo) -> list[Name]:
    """Validate that a list, such as columns, names nothing twice."""
    if len(set(names)) < len(names):
        raise PydanticCustomError("repeated", f"expected each {str(field.field_name).removesuffix('s')} once")
    return names


def not_null(schema: dict[str, Any]) -> None:
    """Remove null from the description of an optional parameter: a request cannot send it."""
    schema |= next(each for each in schema.pop("anyOf") if each != {"type": "null"})


class Strict(BaseModel, extra="forbid"):
    """The parameters of a route; others are refused."""


class PeriodQuery(Strict):
    """The half-open period [start, end); without a bound it is open on that side."""

    most: ClassVar[timedelta] = timedelta.max
    start_timestamp: Timestamp | None = Field(None, description=START_TEXT, examples=[DAY], json_schema_extra=not_null)
    end_timestamp: Timestamp | None = Field(None, description=END_TEXT, examples=[NEXT_DAY], json_schema_extra=not_null)

    @model_validator(mode="after")
    def _is_a_period(self) -> "PeriodQuery":
        start, end = self.start_timestamp, self.end_timestamp
        if start is not None and end is not None:
            if start >= end:
                raise PydanticCustomError("period", f"start_timestamp {start} is not before end_timestamp {end}")
            if end - start > self.most:
                raise PydanticCustomError("period", f"expected a period of {self.most.days} days at most")
        return self

    def condition(self) -> str:
        """Return the SQL condition that a row lies in the period; bounds() are its parameters."""
        conditions = ["timestamp >= %(start)s"] * (self.start_timestamp is not None)
        conditions += ["timestamp < %(end)s"] * (self.end_timestamp is not None)
        return " AND ".join(conditions) or "true"

    def bounds(self) -> dict[str, datetime | None]:
        """Return the parameters of condition()."""
        return {"start": self.start_timestamp, "end": self.end_timestamp}


def refusal(name: str, value: object, expected: str) -> RequestValidationError:
    """Make the error that refuses a value of a parameter."""
    return RequestValidationError([{"type": "value", "loc": ("query", name), "input": value, "msg": expected}])


async def refuse_ignored(request: Request) -> None:
    """Refuse what FastAPI would ignore: a body, and all but the last value of a repeated parameter that is no list."""
    if request.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in request.headers:
        said = "expected no body: parameters belong in the URL, as in curl -G"
        raise RequestValidationError([{"type": "body", "loc": ("body",), "msg": said}])
    query = request.scope["query_string"].decode("latin-1")
    scalars = {*known(request)} - LISTS
    for name, values in parse_qs(query, keep_blank_values=True).items():
        if len(values) > 1 and name in scalars:
            raise refusal(name, values, "expected it once")


def known(request: Request) -> list[str]:
    """Return the parameters of a request's route, which takes them as one model."""
    fields = request.scope["route"].dependant.query_params
    return [name for field in fields for name in field.field_info.annotation.model_fields]


def explained(errors: Sequence[dict[str, Any]], known: Sequence[str]) -> str:
    """Say on one line what is wrong with a request, five errors at most; known: the parameters of its route."""
    return "; ".join(_explained(error, known) for error in errors[:5])


def _explained(error: dict[str, Any], known: Sequence[str]) -> str:
    location = error["loc"][1:]
    if not location:
        return str(error["msg"])
    name = ascii(location[0])[1:-1]
    if error["type"] == "missing":
        return f"{name}: missing"
    if error["type"] == "extra_forbidden":
        near = get_close_matches(name[:80], known, n=1, cutoff=0.35)
        meant = f"; did you mean {_form(near[0])}?" if near else ""
        return f"{name:.80}: no such parameter, expected {', '.join(known) or 'none'}{meant}"
    expected = re.sub("^[A-Z][a-z]+ should (be|have) ", "expected ", str(error["msg"]))
    is_joined = name in LISTS and isinstance(error["input"], str) and "," in error["input"]
    several = f"; send several as {_form(name)}" if is_joined else ""
    return clean(f"{name}={error['input']!r:.200}: {expected}{several}", 1000)


def _form(name: str) -> str:
    return f"{name}=A&{name}=B" if name in LISTS else name
