"""The client of Fonte's connector: what the ETL calls. It trusts nothing that it has not checked."""

import json
import reprlib
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from fonte import arrow

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
ATTEMPTS = 5
RETRY_FOR_S = 60.0
BACKOFF_S = 0.2
DOWNLOAD_TIMEOUT_S = 300.0
MAX_DECODED_BYTES = 512 * 2**20
# Python's objects take up to thirty times the room of their JSON. A year of minutes is smaller.
MAX_JSON_BYTES = 64 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
MAX_MESSAGE_CHARACTERS = 2000
# Servers that know nothing of Arrow answer JSON.
ACCEPT = f"{arrow.MEDIA_TYPE}, application/json;q=0.5"
# A few compressed bytes may decode to gigabytes, all at once: none are asked for, and none taken.
HEADERS = {"Accept": ACCEPT, "Accept-Encoding": "identity"}

Timestamps = npt.NDArray[np.datetime64]
Values = npt.NDArray[np.float64]


class FonteError(Exception):
    """Fonte failed, or answered what cannot be used; nothing was written."""


class RequestRefused(FonteError):
    """Fonte refused the request itself (422); the message repeats its detail."""


def connect(base_url: str) -> httpx.Client:
    """Make an HTTP client for many fetches from one connector, also by several threads; to be closed after them."""
    url = httpx.URL(base_url)
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    # A proxy from the environment could not reach this machine's own loopback.
    loopback = url.host in ("127.0.0.1", "::1", "localhost")
    # Without TLS the certificates, which take long to load, verify nobody.
    return httpx.Client(base_url=url, timeout=timeout, trust_env=not loopback, verify=url.scheme == "https")


def fetch(
    base_url: str, start: datetime, end: datetime, columns: Sequence[str], http: httpx.Client | None = None
) -> tuple[Timestamps, dict[str, Values]]:
    """Ask the connector for the samples of [start, end), and check them before anyone uses them.

    Returns timestamps `datetime64[us]` (n,), UTC, ascending, each once, and for each column float64 (n,), NaN where
    there is no value. A naive start or end means UTC. What passes by itself (no connection, a timeout, 502, 503, 504)
    is tried again with backoff and jitter. http: a client of connect(base_url); without one, this fetch makes its own.
    Raises RequestRefused for a 422 and FonteError for every other failure.
    """
    period = {"start_timestamp": _utc(start).isoformat() + "Z", "end_timestamp": _utc(end).isoformat() + "Z"}
    try:
        with connect(base_url) if http is None else nullcontext(http) as client:
            media_type, body = _get(client, {**period, "columns": list(columns)})
        decoded = arrow.decode if media_type == arrow.MEDIA_TYPE else _from_json
        return _checked(decoded(body, ["timestamp", *columns]), _utc(start), _utc(end))
    except (httpx.HTTPError, ValueError, ImportError, OSError) as error:
        fonte = f"Fonte at {httpx.URL(base_url).copy_with(userinfo=b'', query=None, fragment=None)}"
        said = _one_line(str(error)) or type(error).__name__
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 422:
            raise RequestRefused(f"{fonte} refused the request: {said}") from error
        raise FonteError(f"{fonte} failed: {said}; check FONTE_API_URL and that a connector runs there") from error


def units(http: httpx.Client) -> dict[str, str]:
    """Ask the connector for the unit of each variable; empty where it does not tell, for only labels need them."""
    try:
        with http.stream("GET", "columns", headers=HEADERS) as response:
            told = json.loads(_read(response, MAX_ERROR_BYTES, monotonic()))
        return {str(variable["name"]): str(variable["unit"]) for variable in told}
    except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _one_line(text: str) -> str:
    """Return the beginning of what a foreign server may have said, as one line that no terminal obeys."""
    shown = (character if character.isprintable() else " " for character in text[:MAX_MESSAGE_CHARACTERS])
    return " ".join("".join(shown).split())


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _get(client: httpx.Client, parameters: dict[str, Any]) -> tuple[str, bytes]:
    try:
        return _download(client, parameters)
    except httpx.HTTPError as error:
        if not _is_transient(error):
            raise
        return _download_again(client, parameters, error)


def _download_again(client: httpx.Client, parameters: dict[str, Any], failure: httpx.HTTPError) -> tuple[str, bytes]:
    # Loaded here, because a day that goes well does not need it.
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_transient),
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(RETRY_FOR_S),
        wait=tenacity.wait_random_exponential(multiplier=BACKOFF_S, max=READ_TIMEOUT_S),
        reraise=True,
    )
    failed = [failure]

    def attempt() -> tuple[str, bytes]:
        # The first attempt is the one that failed already.
        if failed:
            raise failed.pop()
        return _download(client, parameters)

    return retrying(attempt)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (502, 503, 504)
    return isinstance(error, (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError))


def _download(client: httpx.Client, parameters: dict[str, Any]) -> tuple[str, bytes]:
    """Return the media type of the answer and its body."""
    began = monotonic()
    with client.stream("GET", "data", params=parameters, headers=HEADERS) as response:
        if response.status_code != 200:
            said = _detail(_read(response, MAX_ERROR_BYTES, began))
            message = f"HTTP {response.status_code} {response.reason_phrase}: {said}"
            raise httpx.HTTPStatusError(message, request=response.request, response=response)
        if (encoding := response.headers.get("Content-Encoding", "identity").strip().lower()) != "identity":
            raise ValueError(f"it answered the Content-Encoding {encoding}, which nobody asked for")
        media_type = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
        most_bytes = MAX_DECODED_BYTES if media_type == arrow.MEDIA_TYPE else MAX_JSON_BYTES
        body = _read(response, most_bytes, began)
    if len(body) > most_bytes:
        raise ValueError(f"more than {most_bytes // 2**20} MiB for one period")
    return media_type, bytes(body)


def _read(response: httpx.Response, most_bytes: int, began: float) -> bytearray:
    """Read the body, or a little more than most_bytes of it."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > most_bytes:
            break
        if monotonic() - began > DOWNLOAD_TIMEOUT_S:
            raise ValueError(f"its answer took longer than {DOWNLOAD_TIMEOUT_S} s")
    return body


def _detail(body: bytes | bytearray) -> str:
    """Return what an error's body says: the detail of a JSON body, or the beginning of any other."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:200].decode(errors="replace")


def _from_json(body: bytes, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Decode a list of flat records that hold exactly these names."""
    try:
        records = json.loads(body, object_pairs_hook=_record)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it answered no JSON, but {body[:80].decode(errors='replace')!r}") from error
    if not isinstance(records, list):
        raise ValueError(f"it answered a JSON {type(records).__name__} instead of a list of records")
    for record in records:
        if not isinstance(record, dict) or record.keys() != set(names):
            shown = reprlib.repr(record)
            raise ValueError(f"it answered {shown} instead of a record with {', '.join(sorted(names))}")
    columns = {name: [record[name] for record in records] for name in names}
    timestamps = np.array(list(map(_moment, columns.pop("timestamp"))), dtype="datetime64[us]")
    return {"timestamp": timestamps, **{name: _floats(name, values) for name, values in columns.items()}}


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"it answered a record that repeats a name: {reprlib.repr(pairs)}")
    return record


def _checked(
    columns: dict[str, npt.NDArray[Any]], start: datetime, end: datetime
) -> tuple[Timestamps, dict[str, Values]]:
    timestamps = columns.pop("timestamp")
    outside = (timestamps < np.datetime64(start, "us")) | (timestamps >= np.datetime64(end, "us"))
    if outside.any():
        moment = timestamps[outside][0]
        raise ValueError(f"it answered the timestamp {moment}Z, outside the period from {start}Z to {end}Z")
    return _each_once(timestamps, columns)


def _moment(text: str) -> datetime:
    try:
        return _utc(datetime.fromisoformat(text))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"it answered the timestamp {reprlib.repr(text)}, which is not one of RFC 3339") from None


def _floats(name: str, values: list[Any]) -> Values:
    wrong = set(map(type, values)) - {float, int, type(None)}
    try:
        if not wrong:
            return np.array(values, dtype=np.float64)
        culprit = next(value for value in values if type(value) in wrong)
    except OverflowError:
        culprit = max((value for value in values if type(value) is int), key=abs)
    raise ValueError(f"it answered {name} = {reprlib.repr(culprit)}, which is no number of double precision")


def _each_once(timestamps: Timestamps, values: dict[str, Values]) -> tuple[Timestamps, dict[str, Values]]:
    """Refuse disorder, drop rows that repeat the one before them, refuse those that contradict it."""
    step = np.diff(timestamps)
    zero = np.timedelta64(0, "us")
    if (step < zero).any():
        at = int(np.argmax(step < zero)) + 1
        raise ValueError(f"it answered rows out of order: {timestamps[at]}Z after {timestamps[at - 1]}Z")
    if (step > zero).all():
        return timestamps, values
    repeated = np.append(False, step == zero)
    for name, column in values.items():
        same = (column[1:] == column[:-1]) | (np.isnan(column[1:]) & np.isnan(column[:-1]))
        if not same[repeated[1:]].all():
            at = int(np.argmax(repeated[1:] & ~same)) + 1
            raise ValueError(
                f"it answered two values of {name} for {timestamps[at]}Z: {column[at - 1]} and {column[at]}"
            )
    return timestamps[~repeated], {name: column[~repeated] for name, column in values.items()}
