"""The HTTP client of Fonte's connector. It checks every answer before the ETL uses it."""

import json
import reprlib
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from itertools import count
from random import uniform
from threading import Event, Timer
from time import monotonic
from typing import Any, NamedTuple
from urllib.request import getproxies, proxy_bypass

import httpx
import numpy as np
import numpy.typing as npt

from fonte import arrow
from fonte.arrow import BadAnswer, Timestamps, Values
from fonte_alvo import command
from fonte_alvo.command import Failure, clean, shown_url

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
DOWNLOAD_TIMEOUT_S = 300.0
# How long a run waits for a connector that restarts, from the first failed request on.
PATIENCE_S = 60.0
# How long the last attempt may take beyond that.
GRACE_S = 15.0
BACKOFF_S = 0.2
MAX_BACKOFF_S = 8.0
MAX_DECODED_BYTES = 512 * 2**20
# Decoded JSON takes up to thirty times its bytes in memory. A year of minutes is below this limit.
MAX_JSON_BYTES = 64 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
# Servers that know nothing of Arrow answer JSON.
ACCEPT = f"{arrow.MEDIA_TYPE}, application/json;q=0.5"
# A few compressed bytes can decode to gigabytes, so the client neither requests nor accepts compression.
HEADERS = {"Accept": ACCEPT, "Accept-Encoding": "identity"}


class FonteError(Failure):
    """Fonte failed, or its answer cannot be used; nothing was written."""

    exit_code = 3


class RequestRefused(FonteError):
    """Fonte refused the request itself (422); the message repeats its detail."""

    exit_code = 2


class AnswerRefused(FonteError):
    """The client refused Fonte's answer; it is not requested again."""


class Client(httpx.Client):
    """An HTTP client of one connector. All its fetches share one time limit for retries."""

    patience_s: float
    # Set once nobody needs its answers any more.
    given_up: Event
    # The sockets of its last connections.
    wires: deque[socket.socket]
    # The time of the first failure since the last answer.
    failing_since: float | None = None
    variables: dict[str, "Variable"] | None = None

    def rest_s(self, patience_s: float | None = None) -> float:
        """Return how many seconds of patience remain; patience_s overrides the client's."""
        patience_s = self.patience_s if patience_s is None else patience_s
        # Another thread may reset it meanwhile.
        since = self.failing_since
        return max(0.0, patience_s - (monotonic() - since if since else 0))

    def pause(self, pause_s: float) -> bool:
        """Wait before a retry; return whether nobody needs its answer any more, which ends the wait."""
        return self.given_up.wait(pause_s)

    def give_up(self) -> None:
        """End the requests in progress, and their retries: nobody needs their answers any more."""
        self.given_up.set()
        self.cut()

    def cut(self) -> None:
        """Shut down the sockets of the last connections, so that requests over them fail."""
        for wire in [*self.wires]:
            # Most of them are closed.
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def note(self, event: str, facts: dict[str, Any]) -> None:
        """Remember the socket of a new connection; HTTPX's extension "trace" calls this."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.wires.append(facts["return_value"].get_extra_info("socket"))


def connect(base_url: str, patience_s: float | None = None) -> Client:
    """Make an HTTP client for one connector. Several threads may share it; the caller closes it.

    patience_s: how long its fetches together retry while the connector does not answer; PATIENCE_S by default. Raises
    FonteError if the environment allows no client, for example with an invalid proxy or certificate file.
    """
    try:
        url = httpx.URL(base_url)
        # Loading certificates is slow, and only TLS uses them.
        client = Client(base_url=url, trust_env=not _is_loopback(url), verify=url.scheme == "https")
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        remedy = "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        raise FonteError(f"no HTTP client can be made: {clean(str(error))}; {remedy}") from error
    client.patience_s = PATIENCE_S if patience_s is None else patience_s
    client.given_up, client.wires = Event(), deque(maxlen=10)
    return client


def fetch(
    base_url: str,
    start: datetime,
    end: datetime,
    columns: Sequence[str],
    http: Client | None = None,
    most_bytes: int | None = None,
    patience_s: float | None = None,
) -> tuple[Timestamps, dict[str, Values]]:
    """Ask the connector for the samples of [start, end), and check them before anyone uses them.

    Returns timestamps `datetime64[us]` (n,), UTC, ascending, each once, and for each column float64 (n,), NaN where
    there is no value. A naive start or end means UTC. Transient failures (no connection, a timeout, 429, 502, 503, 504)
    are retried with growing random pauses while the client's patience lasts. http: a client of connect(base_url);
    without one, this fetch makes its own. most_bytes: a larger answer in Arrow is refused; MAX_DECODED_BYTES by
    default. patience_s overrides the client's. Raises RequestRefused for a 422 or a repeated column, AnswerRefused for
    an answer that cannot be used, and FonteError for every other failure.
    """
    if repeated := [name for name in columns if columns.count(name) > 1]:
        raise RequestRefused(f"the column {repeated[0]} is requested twice: name it once")
    bounds = {"start_timestamp": _utc(start).isoformat() + "Z", "end_timestamp": _utc(end).isoformat() + "Z"}
    try:
        with connect(base_url) if http is None else nullcontext(http) as client:
            parameters = {**bounds, "columns": list(columns)}
            media_type, body = _get(client, parameters, most_bytes or MAX_DECODED_BYTES, patience_s)
        decoded = arrow.decode if media_type == arrow.MEDIA_TYPE else _from_json
        return _checked(decoded(body, ["timestamp", *columns]), _utc(start), _utc(end))
    except (httpx.HTTPError, BadAnswer, UnicodeError, OverflowError) as error:
        fonte = f"Fonte at {shown_url(base_url)}"
        said = (clean(str(error)) or type(error).__name__) + _through_proxy(httpx.URL(base_url), error)
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 422:
            raise RequestRefused(f"{fonte} refused the request: {said}") from error
        kind = FonteError if isinstance(error, httpx.HTTPError) else AnswerRefused
        raise kind(f"{fonte} failed: {said}; check FONTE_API_URL and that a connector runs there") from error


class Variable(NamedTuple):
    """A variable as the connector describes it: its unit, and the range outside which a value is implausible."""

    unit: str
    lowest: float
    highest: float


def variables(http: Client) -> dict[str, Variable]:
    """Ask the connector for its variables, by name; empty if it describes none. Caches answers and timeouts."""
    if http.variables is None:
        try:
            status, body = ask(http, "columns")
            if status == 429 or status >= 500:
                return {}
            http.variables = {str(each["name"]): _variable(each) for each in json.loads(body)}
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            # A restart is over soon. A timeout would cost each day of a range as much again.
            return {}
        except (httpx.HTTPError, FonteError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            http.variables = {}
    return http.variables


def _variable(told: dict[str, Any]) -> Variable:
    ends = (("lowest", "-inf"), ("highest", "inf"))
    lowest, highest = (float(default if told.get(end) is None else told[end]) for end, default in ends)
    return Variable(str(told["unit"] or ""), lowest, highest)


def period(http: Client) -> str:
    """Ask the connector for the period that it holds, in words; empty if it does not say."""
    try:
        told = json.loads(ask(http, "period")[1])
        first, last = (_moment(told[f"{bound}_timestamp"]) for bound in ("first", "last"))
        return f"Fonte holds {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    except (httpx.HTTPError, FonteError, BadAnswer, ValueError, KeyError, TypeError, RecursionError):
        return ""


def ask(http: Client, route: str) -> tuple[int, bytes]:
    """Ask the connector for a small answer; return its status and its body, cut at MAX_ERROR_BYTES or a little more.

    Raises httpx.HTTPError, and FonteError if the answer takes too long.
    """
    try:
        with _stream(http, route, READ_TIMEOUT_S) as response:
            return response.status_code, bytes(_read(response, MAX_ERROR_BYTES, monotonic()))
    except BadAnswer as error:
        raise FonteError(f"Fonte at {shown_url(http.base_url)} failed: {error}") from error


def _through_proxy(url: httpx.URL, error: Exception) -> str:
    """Name the environment's proxy if a connection through it failed, because the proxy may be the cause."""
    proxies, refused = getproxies(), isinstance(error, (httpx.ConnectError, httpx.ProxyError))
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or not refused or _is_loopback(url) or proxy_bypass(url.host):
        return ""
    return f" (through the proxy {shown_url(proxy)} of the environment)"


def _is_loopback(url: httpx.URL) -> bool:
    """Tell whether the connector is on this machine, for which no proxy is used."""
    return url.host in ("127.0.0.1", "::1", "localhost")


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _get(client: Client, parameters: dict[str, Any], most_bytes: int, patience_s: float | None) -> tuple[str, bytes]:
    for attempt in count():
        rest_s = client.rest_s(patience_s)
        try:
            answer = _download(client, parameters, most_bytes, min(READ_TIMEOUT_S, rest_s + GRACE_S))
            client.failing_since = None
            return answer
        except (httpx.HTTPError, BadAnswer) as error:
            if not _is_transient(error):
                client.failing_since = None
                raise
            client.failing_since = client.failing_since or monotonic()
            rest_s = client.rest_s(patience_s)
            if rest_s <= 0 or client.given_up.is_set():
                raise
            said = clean(str(error)) or type(error).__name__
            command.notice(f"Fonte does not answer: {said}; retrying for {rest_s:.0f} s")
            pause_s = uniform(0.5, 1) * min(BACKOFF_S * 2**attempt, MAX_BACKOFF_S)
            if client.pause(min(max(pause_s, _retry_after_s(error)), rest_s)):
                raise
    raise AssertionError


def _is_transient(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (429, 502, 503, 504)
    transient = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
    return isinstance(error, transient) and "CERTIFICATE_VERIFY_FAILED" not in str(error)


def _retry_after_s(error: Exception) -> float:
    """Return the seconds in the Retry-After header, 0 if there are none (RFC 9110, section 10.2.3)."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, httpx.HTTPStatusError) else ""
    return float(asked) if asked.isdecimal() else 0.0


def _download(client: Client, parameters: dict[str, Any], most_bytes: int, read_timeout_s: float) -> tuple[str, bytes]:
    """Return the media type of the answer and its body; most_bytes: a larger one in Arrow is refused."""
    began = monotonic()
    with _stream(client, "data", read_timeout_s, parameters) as response:
        if response.status_code != 200:
            said = detail(_read(response, MAX_ERROR_BYTES, began))
            if to := response.headers.get("Location"):
                said = f"it is at {shown_url(to)} now"
            asked = f", at {shown_url(response.url)}" if response.status_code == 404 else ""
            message = f"HTTP {response.status_code} {response.reason_phrase}: {said}{asked}"
            # Without Retry-After: a retry does not set the connector up.
            if response.status_code == 503 and "is not set up" in said and "Retry-After" not in response.headers:
                raise BadAnswer(message)
            raise httpx.HTTPStatusError(message, request=response.request, response=response)
        if (encoding := response.headers.get("Content-Encoding", "identity").strip().lower()) != "identity":
            raise BadAnswer(f"it answered the Content-Encoding {encoding}, though not requested")
        media_type = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
        most_bytes = most_bytes if media_type == arrow.MEDIA_TYPE else MAX_JSON_BYTES
        body = _read(response, most_bytes, began)
    if len(body) > most_bytes:
        raise BadAnswer(f"more than {most_bytes // 2**20} MiB for one period")
    return media_type, bytes(body)


@contextmanager
def _stream(
    client: Client, route: str, read_timeout_s: float, parameters: dict[str, Any] | None = None
) -> Iterator[httpx.Response]:
    """Request a route, and give the answer once its head is complete. Raises httpx.HTTPError."""
    late, limit_s = Event(), CONNECT_TIMEOUT_S + read_timeout_s

    def cut() -> None:
        late.set()
        client.cut()

    # HTTPX limits only each pause, and a head may arrive byte by byte.
    limit = Timer(limit_s, cut)
    limit.daemon = True
    limit.start()
    timeout, trace = httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S), {"trace": client.note}
    how: dict[str, Any] = {"params": parameters, "headers": HEADERS, "timeout": timeout, "extensions": trace}
    try:
        with client.stream("GET", route, **how) as response:
            limit.cancel()
            yield response
    except httpx.TransportError as error:
        if late.is_set():
            raise httpx.ReadTimeout(f"the head of its answer took longer than {limit_s:g} s") from error
        raise
    finally:
        limit.cancel()


def _read(response: httpx.Response, most_bytes: int, began: float) -> bytearray:
    """Read the body, or a little more than most_bytes of it."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > most_bytes:
            break
        if monotonic() - began > DOWNLOAD_TIMEOUT_S:
            raise BadAnswer(f"its answer took longer than {DOWNLOAD_TIMEOUT_S} s")
    return body


def detail(body: bytes | bytearray) -> str:
    """Return the detail of an error's JSON body, or the beginning of any other body."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:200].decode(errors="replace")


def _from_json(body: bytes, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Decode a list of flat records that hold exactly these names."""
    try:
        records = json.loads(body, object_pairs_hook=_record)
    except (ValueError, RecursionError) as error:
        begin = body[:80].decode(errors="replace")
        raise BadAnswer(f"it answered no JSON, but {begin!r}: {error}") from error
    if not isinstance(records, list):
        raise BadAnswer(f"it answered a JSON {type(records).__name__} instead of a list of records")
    for record in records:
        if not isinstance(record, dict) or record.keys() != set(names):
            shown = reprlib.repr(record)
            raise BadAnswer(f"it answered {shown} instead of a record with {', '.join(sorted(names))}")
    columns = {name: [record[name] for record in records] for name in names}
    timestamps = np.array(list(map(_moment, columns.pop("timestamp"))), dtype="datetime64[us]")
    return {"timestamp": timestamps, **{name: _floats(name, values) for name, values in columns.items()}}


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise BadAnswer(f"it answered a record that repeats a name: {reprlib.repr(pairs)}")
    return record


def _checked(
    columns: dict[str, npt.NDArray[Any]], start: datetime, end: datetime
) -> tuple[Timestamps, dict[str, Values]]:
    timestamps = columns.pop("timestamp")
    outside = (timestamps < np.datetime64(start, "us")) | (timestamps >= np.datetime64(end, "us"))
    if outside.any():
        moment = timestamps[outside][0]
        raise BadAnswer(f"it answered the timestamp {moment}Z, outside the period from {start}Z to {end}Z")
    return _each_once(timestamps, columns)


def _moment(text: str) -> datetime:
    try:
        return _utc(datetime.fromisoformat(text))
    except (TypeError, ValueError, OverflowError):
        raise BadAnswer(f"it answered the timestamp {reprlib.repr(text)}, which is not one of RFC 3339") from None


def _floats(name: str, values: list[Any]) -> Values:
    wrong = set(map(type, values)) - {float, int, type(None)}
    try:
        if not wrong:
            return np.array(values, dtype=np.float64)
        culprit = next(value for value in values if type(value) in wrong)
    except OverflowError:
        culprit = max((value for value in values if type(value) is int), key=abs)
    raise BadAnswer(f"it answered {name} = {reprlib.repr(culprit)}, which is not a number of double precision")


def _each_once(timestamps: Timestamps, values: dict[str, Values]) -> tuple[Timestamps, dict[str, Values]]:
    """Drop duplicate rows. Raise BadAnswer if rows are out of order, or if one timestamp has two values."""
    step = np.diff(timestamps)
    zero = np.timedelta64(0, "us")
    if (step < zero).any():
        at = int(np.argmax(step < zero)) + 1
        raise BadAnswer(f"it answered rows out of order: {timestamps[at]}Z after {timestamps[at - 1]}Z")
    if (step > zero).all():
        return timestamps, values
    repeated = np.append(False, step == zero)
    for name, column in values.items():
        same = (column[1:] == column[:-1]) | (np.isnan(column[1:]) & np.isnan(column[:-1]))
        if not same[repeated[1:]].all():
            at = int(np.argmax(repeated[1:] & ~same)) + 1
            raise BadAnswer(
                f"it answered two values of {name} for {timestamps[at]}Z: {column[at - 1]} and {column[at]}"
            )
    return timestamps[~repeated], {name: column[~repeated] for name, column in values.items()}
