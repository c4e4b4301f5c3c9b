"""What the API answers now, appended to a CSV file: ten captures to a file, each with its time.

A record is one line, and a file is only ever replaced as a whole: no kill leaves half a line.
"""

import csv
import io
import json
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import httpx
import tenacity

from fonte_alvo.command import Failure

CAPTURED_AT = "captured_at"
# As the API spells them.
FIELDS = (
    "codigo",
    "placa",
    "linha",
    "latitude",
    "longitude",
    "dataHora",
    "velocidade",
    "id_migracao_trajeto",
    "sentido",
    "trajeto",
    "hodometro",
    "direcao",
)
HEADER = (CAPTURED_AT, *FIELDS)
WRAPPER = "veiculos"
CAPTURES_PER_FILE = 10
_FILE_NAME = "brt_%Y%m%dT%H%M%SZ.csv"
_FILE_PATTERN = f"brt_{'[0-9]' * 8}T{'[0-9]' * 6}Z.csv"
# A record stays one line, whatever a field holds; half a surrogate pair has no bytes.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# Together they end before the next minute begins: an answer that drips takes up to 25 s.
ATTEMPTS = 3
LAST_ATTEMPT_AFTER_S = 30.0
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 15.0
BACKOFF_S = 1.0
MAX_BYTES = 64 * 2**20


class CaptureError(Failure):
    """A minute could not be captured; the files are as they were."""

    exit_code = 3


@dataclass(frozen=True)
class Capture:
    """One answer: its time (UTC), a record of FIELDS per vehicle, and what was left out.

    unknown: how often each other field came; strangers: the number of items that are no vehicles at all.
    """

    captured_at: datetime
    records: Sequence[Sequence[str]]
    unknown: Counter[str]
    strangers: int


def fetch(url: str) -> Capture:
    """Ask the API; what passes by itself is tried again: no connection, a timeout, half an answer, 429 and 5xx.

    Raises CaptureError.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_transient),
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(LAST_ATTEMPT_AFTER_S),
        wait=tenacity.wait_random_exponential(multiplier=BACKOFF_S, max=4),
        reraise=True,
    )
    try:
        return retrying(_ask, url)
    except (httpx.HTTPError, ValueError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        shown = httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None)
        raise CaptureError(f"the API at {shown} failed: {said}; the next capture tries again") from error


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, ValueError))


def _ask(url: str) -> Capture:
    began = monotonic()
    body = bytearray()
    loopback = httpx.URL(url).host in ("127.0.0.1", "::1", "localhost")
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    with httpx.stream("GET", url, timeout=timeout, follow_redirects=True, trust_env=not loopback) as response:
        if response.status_code != 200:
            message = f"HTTP {response.status_code} {response.reason_phrase}"
            raise httpx.HTTPStatusError(message, request=response.request, response=response)
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError(f"it answered more than {MAX_BYTES // 2**20} MiB")
            if monotonic() - began > ANSWER_TIMEOUT_S:
                raise ValueError(f"its answer took longer than {ANSWER_TIMEOUT_S:.0f} s")
    return read(bytes(body), datetime.now(UTC))


def read(body: bytes, captured_at: datetime) -> Capture:
    """Read an answer, with or without its wrapper; values stay as the API wrote them. Raises ValueError."""
    try:
        # Numbers as their text: a capture changes nothing.
        document = json.loads(body, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it answered no JSON, but {len(body):,} bytes that end in {body[-40:]!r}") from error
    vehicles = document.get(WRAPPER) if isinstance(document, dict) else document
    if not isinstance(vehicles, list):
        raise ValueError(f"it answered {reprlib.repr(document)} instead of a list of vehicles")
    found = [vehicle for vehicle in vehicles if isinstance(vehicle, dict)]
    if not found:
        raise ValueError("it answered no vehicle at all")
    unknown = Counter(name for vehicle in found for name in vehicle if name not in FIELDS)
    records = [[_text(vehicle.get(name)) for name in FIELDS] for vehicle in found]
    return Capture(captured_at, records, unknown, len(vehicles) - len(found))


def _text(value: object) -> str:
    if value is None:
        return ""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError as error:
        raise ValueError("it answered a field that is nested too deep") from error
    return _UNWRITABLE.sub(" ", text)


def append(folder: Path, capture: Capture, every_s: int) -> Path:
    """Append a capture to the file of its time, and return it; every_s: seconds from one capture to the next.

    A file begins with the minute of its first capture and holds CAPTURES_PER_FILE minutes. To be called by one process
    at a time. Raises CaptureError; the file is then as it was.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What a process that was killed left behind.
        for part in folder.glob("*.part"):
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
    # The nearest one: a run begins a moment before its minute, or some seconds after it.
    minute = datetime.fromtimestamp(round(captured_at.timestamp() / every_s) * every_s, UTC)
    ended = minute - timedelta(seconds=CAPTURES_PER_FILE * every_s)
    for file in reversed(files(folder)):
        # The names are in the order of their times.
        if ended.strftime(_FILE_NAME) < file.name <= minute.strftime(_FILE_NAME):
            return file
    return folder / minute.strftime(_FILE_NAME)


def _lines(records: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(records)
    return text.getvalue().encode()


def _replace(file: Path, content: bytes) -> None:
    """Replace a file's content by a rename, once the disk has all of it."""
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
