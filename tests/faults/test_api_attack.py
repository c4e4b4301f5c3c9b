"""The connector under attack: it answers each hostile request without a traceback, and serves everybody else."""

import logging
import re
import socket
from contextlib import ExitStack

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.project import DAY

from fonte.connector import MEDIA_TYPES, app
from fonte_alvo.streaming import accepted


@pytest.fixture
def api(shared_connector, caplog):
    """A client of the connector. After the test, plain requests are served and the log holds no traceback."""
    with httpx.Client(base_url=shared_connector, verify=False) as client:
        yield client
        assert len(client.get(DAY).json()) == 1440
        assert client.get("/period").json()["rows"] == 14400
    assert [
        record.getMessage() for record in caplog.records if record.exc_info or record.levelno > logging.WARNING
    ] == []


INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE data; --",
    "power, (SELECT rolpassword FROM pg_authid LIMIT 1)",
    "1) TO PROGRAM 'touch owned' --",
    "power); SELECT pg_sleep(60); --",
    "%(start)s",
    "%s%n%%",
    "{0.__class__}",
    "$1",
    "\\x27; --",
    "power\0",
    "power\r\nSet-Cookie: a=b",
    "' UNION SELECT version() --\u2019\U0001f4a5",
]


@pytest.mark.parametrize("name", ["start_timestamp", "end_timestamp", "columns", "format", "power"])
def test_no_parameter_injects(api, name):
    for value in INJECTIONS:
        answer = api.get("/data", params={name: value})
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(name)
        assert answer.json()["detail"].isprintable()


def test_no_parameter_name_injects(api):
    for value in INJECTIONS:
        answer = api.get("/data", params={value: "1"})
        assert answer.status_code == 422
        assert ": no such parameter, expected start_timestamp, " in answer.json()["detail"]
        assert answer.json()["detail"].isprintable()


@pytest.mark.parametrize(
    ("status", "moment"),
    [
        (200, "0001-01-01"),
        (200, "0001-01-01T00:00:00-23:59"),
        (200, "9999-12-31T23:59:59.999999Z"),
        (200, "2024-02-29"),
        (200, "2024-05-20 00:00"),
        (200, "2024-05-20t00:00:00z"),
        (200, "2024-05-20T00:00:00.000000+0130"),
        (200, "2016-12-31T23:59:60Z"),
        (200, "2024-05-20T00:00:00.1234567Z"),
        (200, f"2024-05-20T00:00:00.{'1' * 5000}Z"),
        (422, "9999-12-31T23:59:59.9999999Z"),
        (422, "2024-05-20T00:00:61Z"),
        (422, "2024-05-20T00:00:00.Z"),
        (422, "0000-01-01"),
        (422, "10000-01-01"),
        (422, "-0044-03-15"),
        (422, "0001-01-01T00:00:00+00:01"),
        (422, "9999-12-31T23:59:59.999999-00:01"),
        (422, "2023-02-29"),
        (422, "2024-05-20T24:00:00Z"),
        (422, "2024-05-20T00:00:00+24:00"),
        (422, "2024-05-20T00:00:00+99:99"),
        (422, "2024-05-20T00:00:00,5Z"),
        (422, "2024-05-20\n"),
        (422, " 2024-05-20"),
        (422, "\uff12\uff10\uff12\uff14-05-20"),
        (422, "2024-W21-1"),
        (422, "20240520"),
        (422, "infinity"),
        (422, "-infinity"),
        (422, "now"),
        (422, "epoch"),
        (422, "1e400"),
        (422, "9" * 5000),
    ],
)
@pytest.mark.parametrize("name", ["start_timestamp", "end_timestamp"])
def test_a_moment_is_in_the_calendar_or_refused(api, status, moment, name):
    answer = api.get("/data", params={name: moment, "columns": "power"})
    assert answer.status_code == status
    assert status == 200 or len(answer.json()["detail"]) < 500


def asked(base_url, *parts):
    """Send these bytes and read until the server closes; return the status codes in order, and the whole answer."""
    url = httpx.URL(base_url)
    answer = b""
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while piece := connection.recv(2**16):
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    return [int(status) for status in re.findall(rb"HTTP/1[.]1 ([0-9]{3}) ", answer)], answer


def request(target=b"/health", *headers, method=b"GET", body=b""):
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: fonte", b"Connection: close", *headers, b"", body]
    return b"\r\n".join(lines)


# Older versions of uvicorn refuse these.
REFUSED_BY_SOME = {"both a length and chunks"}
HOSTILE = {
    "a header line without a colon": ([400], request(b"/health", b"nonsense")),
    "a space before the colon": ([400], request(b"/health", b"Accept : text/csv")),
    "NUL in a header": ([400], request(b"/health", b"Accept: text/csv\0")),
    "a lone CR in a header": ([400], request(b"/health", b"Accept: text/csv\rX: y")),
    "a lone LF ends a header": ([200], request(b"/health", b"Accept: text/csv\nX: y")),
    "non-ASCII in a header": ([200], request(b"/health", b"Accept: \xff\xfe\xc3\xa9")),
    "non-ASCII in a header's name": ([400], request(b"/health", b"\xc3\xa9: 1")),
    "a folded header": ([200], request(b"/health", b"X: a\r\n b")),
    "a large header": ([200], request(b"/health", b"X: " + b"a" * 60_000)),
    "a huge header": ([400], request(b"/health", b"X: " + b"a" * 1_000_000)),
    "many headers": ([200], request(b"/health", *[b"X: a"] * 5_000)),
    "no Host": ([400], b"GET /health HTTP/1.1\r\n\r\n"),
    "two Hosts": ([400], request(b"/health", b"Host: other")),
    "a hostile Host": ([200], request(b"/health").replace(b"Host: fonte", b"Host: a/../b?c#d@e")),
    "a later HTTP": ([200], request().replace(b"HTTP/1.1", b"HTTP/2.0")),
    "HTTP/2's preface": ([404, 400], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/0.9": ([400], b"GET /health\r\n\r\n"),
    "TLS": ([400], bytes.fromhex("16030100c8010000c40303") + bytes(190) + b"\r\n\r\n"),
    "not HTTP at all": ([400], b"\x00\xff" * 50 + b"\r\n\r\n"),
    "an empty target": ([400], request(b"")),
    "a target with a space": ([400], request(b"/data ?columns=power")),
    "non-ASCII in the target": ([400], request(b"/data?columns=\xc3\xa9")),
    "NUL in the target": ([400], request(b"/data\0")),
    "an asterisk": ([404], request(b"*", method=b"OPTIONS")),
    "an absolute target": ([404], request(b"http://other/health")),
    "an authority": ([404], request(b"other:443", method=b"CONNECT")),
    "a relative path": ([404], request(b"health")),
    "a path upwards": ([404], request(b"/../../../etc/passwd")),
    "a path upwards, encoded": ([404], request(b"/%2e%2e/%2e%2e/etc/passwd")),
    "a path upwards, encoded twice": ([404], request(b"/data/%252e%252e%252fetc")),
    "a path upwards with backslashes": ([404], request(b"/..\\..\\etc\\passwd")),
    "a path upwards from a route": ([404], request(b"/data/../health")),
    "NUL in the path": ([404], request(b"/health%00")),
    "a line end in the path": ([404], request(b"/health%0d%0aSet-Cookie:%20a=b")),
    "invalid UTF-8 in the path": ([404], request(b"/%ff%fe")),
    "a path with two slashes": ([404], request(b"//health")),
    "a path with a slash at its end": ([404], request(b"/health/")),
    "another case": ([404], request(b"/Health")),
    "invalid UTF-8 in a value": ([422], request(b"/data?columns=%ff%fe%80")),
    "invalid UTF-8 in a name": ([422], request(b"/data?%ff%fe=1")),
    "half a surrogate": ([422], request(b"/data?columns=%ed%a0%80")),
    "broken percent-encoding": ([422], request(b"/data?columns=%zz%")),
    "a query of separators alone": ([200], request(b"/health?&&&&")),
    "a column in many copies": ([422], request(b"/data?" + b"&".join([b"columns=power"] * 4_000))),
    "many unknown columns": ([422], request(b"/data?" + b"&".join([b"columns=x%00"] * 4_000))),
    "many unknown parameters": ([422], request(b"/data?" + b"&".join(b"p%d=" % n for n in range(6_000)))),
    "a query of a megabyte": ([400], request(b"/data?columns=" + b"x" * 1_000_000)),
    "an unknown method": ([405], request(b"/health", method=b"BREW")),
    "a method in small letters": ([405], request(b"/health", method=b"get")),
    "an invalid method": ([400], request(b"/health", method=b"G E T")),
    "a body": ([422], request(b"/health", b"Content-Length: 5", body=b"hello")),
    "a body that never comes": ([422], request(b"/health", b"Content-Length: 1000000000")),
    "a body that expects an answer": ([422], request(b"/health", b"Content-Length: 5", b"Expect: 100-continue")),
    "an invalid length": ([400], request(b"/health", b"Content-Length: +5", body=b"hello")),
    "a negative length": ([400], request(b"/health", b"Content-Length: -5")),
    "an enormous length": ([400], request(b"/health", b"Content-Length: " + b"9" * 400)),
    "two lengths": ([400], request(b"/health", b"Content-Length: 5", b"Content-Length: 6", body=b"hello")),
    "a chunked body": ([422], request(b"/health", b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n")),
    "invalid chunks": ([400], request(b"/health", b"Transfer-Encoding: chunked", body=b"zz\r\nhello\r\n")),
    "a chunk without end": ([400], request(b"/health", b"Transfer-Encoding: chunked", body=b"f" * 100 + b"\r\n")),
    "both a length and chunks": (
        [422],
        request(
            b"/health", b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nGET /period HTTP/1.1\r\n"
        ),
    ),
    "an unknown encoding": ([400], request(b"/health", b"Transfer-Encoding: gzip, chunked")),
    "an encoding in disguise": ([400], request(b"/health", b"Transfer-Encoding: \x0bchunked")),
    "an encoding twice": ([400], request(b"/health", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    "a WebSocket": (
        [200],
        request(b"/health", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13").replace(b"close", b"Upgrade, close"),
    ),
    "a wish for HTTP/2": ([200], request(b"/health", b"Upgrade: h2c").replace(b"close", b"Upgrade, close")),
    "two requests at once": ([200, 200], request().replace(b"Connection: close\r\n", b"") + request()),
    "two hundred requests at once": (
        [200] * 200,
        request(b"/columns").replace(b"Connection: close\r\n", b"") * 199 + request(),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_hostile_request_is_answered(api, shared_connector, name):
    statuses, sent = HOSTILE[name]
    answered, answer = asked(shared_connector, sent)
    assert answered == statuses or (name in REFUSED_BY_SOME and answered == [400])
    assert len(answer) < 1000 * len(statuses)
    assert b"Set-Cookie" not in answer
    assert b"Traceback" not in answer


def test_every_route_refuses_a_method_that_it_does_not_describe(api):
    for path, described in app.openapi()["paths"].items():
        answered = {*described, "options", *(["head"] if "get" in described else [])}
        for method in {"get", "head", "post", "put", "patch", "delete", "trace"} - answered:
            answer = api.request(method, path)
            assert answer.status_code == 405
            assert set(answer.headers["allow"].lower().split(", ")) == answered
        answer = api.options(path)
        assert (answer.status_code, answer.content) == (204, b"")
        assert set(answer.headers["allow"].lower().split(", ")) == answered


@pytest.mark.parametrize("begin", [b"GET /data?columns=", b"GET /data HTTP/1.1\r\nHost: fonte\r\n", b"x"])
def test_a_request_of_many_megabytes_is_refused_before_it_ends(api, shared_connector, begin):
    memory = psutil.Process().memory_info().rss
    statuses, _ = asked(shared_connector, begin, *[b"X: y\r\n" * 10_000 if b"\n" in begin else b"y" * 60_000] * 1000)
    # A client that still sends may see the closed connection instead of the answer.
    assert statuses in ([400], [])
    assert psutil.Process().memory_info().rss - memory < 16 * 2**20


def test_unfinished_requests_do_not_delay_others(api, shared_connector):
    url = httpx.URL(shared_connector)
    with ExitStack() as held:
        for number in range(200):
            connection = held.enter_context(socket.create_connection((url.host, url.port)))
            connection.sendall(request(DAY.encode())[: number % 60])
        assert len(api.get(DAY).json()) == 1440


@pytest.mark.parametrize(
    "accept",
    [
        ",".join(["a/b"] * 10_000),
        ",".join(f"a/{number}" for number in range(8_000)),
        "," * 50_000,
        ";" * 50_000,
        "text/csv" + ";q=0.5" * 8_000,
        "text/csv;" + " " * 50_000 + "q=1",
        "q=" * 25_000,
        "application/json;q=" + "1" * 50_000,
    ],
)
def test_any_long_accept_header_is_answered(api, shared_connector, accept):
    statuses, answer = asked(shared_connector, request(DAY.encode(), b"Accept: " + accept.encode()))
    assert statuses == [200]
    assert (b"content-type: text/csv" in answer) == accept.startswith("text/csv")


@given(accept=st.text() | st.lists(st.sampled_from(list("q=;,/*.01 \t") + list(MEDIA_TYPES.values()))).map("".join))
def test_any_accept_header_chooses_a_format(accept):
    assert accepted(accept, MEDIA_TYPES) in MEDIA_TYPES


def test_a_long_accept_header_is_read_in_linear_time():
    """With quadratic time it would take days."""
    assert accepted("a/b;q=0.1," * 300_000 + "text/csv", MEDIA_TYPES) == "csv"
