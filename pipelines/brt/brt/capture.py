"""Append the API's current answer to a CSV file: ten captures to a file, each with its time.

A record is one line, and a file is replaced only as a whole: a kill leaves no partial line. The last column is a JSON
object with everything that the other columns cannot hold. It loses only control characters, deep nesting, earlier
values of a repeated key, and the first item's field "answer" if the answer has fields beside its vehicles.
"""

import asyncio
import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import uniform
from time import monotonic, sleep
from typing import TypeGuard

import httpx

from fonte_alvo.command import Failure

CAPTURED_AT = "captured_at"
# The API's names.
FIELDS = (
    *("codigo", "placa", "linha", "latitude", "longitude", "dataHora"),
    *("velocidade", "id_migracao_trajeto", "sentido", "trajeto", "hodometro", "direcao"),
)
# A JSON object: unknown fields, and known ones whose value is neither a text nor a number.
EXTRA = "extra"
HEADER = (CAPTURED_AT, *FIELDS, EXTRA)
# Names in EXTRA: of a non-object item, and of the answer's fields other than its vehicles.
ITEM, ANSWER = "item", "answer"
WRAPPER = "veiculos"
CAPTURES_PER_FILE = 10
_FILE_NAME = "brt_%Y%m%dT%H%M%SZ.csv"
_FILE_PATTERN = f"brt_{'[0-9]' * 8}T{'[0-9]' * 6}Z.csv"
# Control characters would break a record's line; half a surrogate pair cannot be encoded.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# PostgreSQL's jsonb rejects these characters and very long numbers.
_NOT_IN_JSONB = re.compile("[\x00\ud800-\udfff]")
_NUMBER_IN_JSONB = re.compile(r"-?(0|[1-9]\d{0,299})(\.\d{1,300})?([eE][+-]?\d{1,3})?", re.ASCII)
# All attempts end before the next minute.
ATTEMPTS = 3
LAST_ATTEMPT_AFTER_S = 30.0
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 15.0
BACKOFF_S = 1.0
MAX_BYTES = 64 * 2**20


class CaptureError(Failure):
    """A minute could not be captured; no file has changed."""

    exit_code = 3


class Number(str):
    """A JSON number in its original spelling."""


@dataclass(frozen=True)
class Capture:
    """One answer: its time (UTC), the values of FIELDS and EXTRA per item, and how its format differs from FIELDS."""

    captured_at: datetime
    records: Sequence[Sequence[str]]
    differences: Sequence[str]


def fetch(url: str) -> Capture:
    """Ask the API; retry transient failures: no connection, a timeout, a partial answer, 429 and 5xx.

    Raises CaptureError.
    """
    began = monotonic()
    attempt = 0
    while True:
        attempt += 1
        try:
            return _ask(url)
        except (httpx.HTTPError, OSError, ValueError) as error:
            if attempt == ATTEMPTS or monotonic() - began > LAST_ATTEMPT_AFTER_S or not _is_transient(error):
                said = clean(str(error)) or type(error).__name__
                shown = httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None)
                raise CaptureError(f"the API at {shown} failed: {said}; the next capture tries again") from error
        sleep(uniform(0, BACKOFF_S * 2**attempt))


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, ValueError))


def _ask(url: str) -> Capture:
    try:
        return read(asyncio.run(_body(url)), datetime.now(UTC))
    except TimeoutError:
        raise ValueError(f"its answer took longer than {ANSWER_TIMEOUT_S:.0f} s") from None


async def _body(url: str) -> bytes:
    # asyncio limits the whole answer: httpx limits each read, which may bring a single byte.
    body = bytearray()
    loopback = httpx.URL(url).host in ("127.0.0.1", "::1", "localhost")
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    client = httpx.AsyncClient(timeout=timeout, follow_redirects=True, trust_env=not loopback)
    async with asyncio.timeout(ANSWER_TIMEOUT_S), client, client.stream("GET", url) as response:
        if response.status_code != 200:
            message = f"HTTP {response.status_code} {response.reason_phrase}"
            raise httpx.HTTPStatusError(message, request=response.request, response=response)
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError(f"it answered more than {MAX_BYTES // 2**20} MiB")
    return bytes(body)


def read(body: bytes, captured_at: datetime) -> Capture:
    """Read an answer, with or without its wrapper; numbers keep their spelling. Raises ValueError."""
    shown = clean(body[-60:].decode(errors="replace"))
    try:
        # Numbers stay text: a capture changes no value.
        document = json.loads(body, parse_float=Number, parse_int=Number, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it answered no JSON, but {len(body):,} bytes that end in {shown!r}") from error
    vehicles = document.get(WRAPPER) if isinstance(document, dict) else document
    if not isinstance(vehicles, list):
        raise ValueError(f"it answered no list of vehicles, but JSON that ends in {shown!r}")
    found = [vehicle for vehicle in vehicles if isinstance(vehicle, dict)]
    if not found:
        raise ValueError("it answered no vehicle at all")
    beside = {name: value for name, value in document.items() if name != WRAPPER} if document is not vehicles else {}
    extras = [_extra(vehicle) for vehicle in vehicles]
    if beside:
        # Once per answer, in its first item.
        extras[0][ANSWER] = beside
    pairs = zip(vehicles, extras, strict=True)
    records = [[*_texts(vehicle), encode(extra) if extra else ""] for vehicle, extra in pairs]
    return Capture(captured_at, records, _differences(found, beside, len(vehicles) - len(found)))


def _texts(vehicle: object) -> list[str]:
    values = [vehicle.get(name) if isinstance(vehicle, dict) else None for name in FIELDS]
    return [_UNWRITABLE.sub(" ", value) if _is_text(value) else "" for value in values]


def _extra(vehicle: object) -> dict[str, object]:
    """Return the part of an item that the columns of FIELDS cannot hold."""
    if not isinstance(vehicle, dict):
        return {ITEM: vehicle}
    return {
        name: value for name, value in vehicle.items() if name not in FIELDS or not (value is None or _is_text(value))
    }


def _is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value is a text, or a number that a column can hold."""
    return isinstance(value, str) and not (isinstance(value, Number) and math.isinf(float(value)))


def _differences(found: Iterable[Mapping[str, object]], beside: Iterable[str], strangers: int) -> list[str]:
    """Return how an answer's format differs from FIELDS, one sentence per difference."""
    names = {name for vehicle in found for name in vehicle}
    said = [f"the vehicles have the unknown field {clean(name)!r}" for name in sorted(names.difference(FIELDS))]
    said += [f"no vehicle has the field {name!r}" for name in FIELDS if name not in names]
    said += [f"the answer has the unknown field {clean(name)!r}" for name in sorted(beside)]
    return said + ["some items are not vehicles"] * (strangers > 0)


def clean(text: str) -> str:
    """Return foreign text on one line, cut to a readable length, without control characters."""
    return " ".join(_UNWRITABLE.sub(" ", text).split())[:200]


def encode(value: object) -> str:
    """Return one line of JSON that PostgreSQL's jsonb takes; numbers keep their spelling."""
    try:
        return _encoded(value)
    except RecursionError:
        return json.dumps("nested too deep")


def _encoded(value: object) -> str:
    if isinstance(value, Number) and _NUMBER_IN_JSONB.fullmatch(value):
        return str(value)
    if isinstance(value, str):
        return json.dumps(_NOT_IN_JSONB.sub(" ", value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_encoded(name)}: {encode(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_encoded, value)) + "]"
    return json.dumps(value)


def append(folder: Path, capture: Capture, every_s: int) -> Path:
    """Append a capture to the file of its time, and return the file; every_s: seconds between captures.

    A file is named after its first capture's time, and spans CAPTURES_PER_FILE intervals. Only one process at a time
    may call this. Raises CaptureError; the file is then unchanged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Left behind by a killed process.
        for part in folder.glob("brt_*.part"):
            part.unlink()
        file = _file(folder, capture.captured_at, every_s)
        before = (file.read_bytes() if file.exists() else b"") or _lines([HEADER])
        if not before.endswith(b"\n"):
            before += b"\n"
        time = capture.captured_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        _replace(file, before + _lines([time, *record] for record in capture.records))
    except OSError as error:
        raise CaptureError(f"{folder} cannot be written: {error.strerror}; this capture is lost") from error
    return file


def files(folder: Path) -> list[Path]:
    """Return the files of a folder, oldest first."""
    return sorted(folder.glob(_FILE_PATTERN))


def _file(folder: Path, captured_at: datetime, every_s: int) -> Path:
    # Rounded: a run begins a moment before its minute, or some seconds after it.
    minute = datetime.fromtimestamp(round(captured_at.timestamp() / every_s) * every_s, UTC)
    ended = minute - timedelta(seconds=CAPTURES_PER_FILE * every_s)
    for file in reversed(files(folder)):
        # Names sort by time.
        if ended.strftime(_FILE_NAME) < file.name <= minute.strftime(_FILE_NAME):
            return file
    return folder / minute.strftime(_FILE_NAME)


def _lines(records: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(records)
    return text.getvalue().encode()


def _replace(file: Path, content: bytes) -> None:
    """Write the content to the disk, then rename it over the file."""
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as unfinished:
            unfinished.write(content)
            unfinished.flush()
            os.fsync(unfinished.fileno())
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
