"""The client of the connector: requests, retries, and every kind of answer, over real sockets."""

import json
import math
import re
import socket
import struct
import sys
import threading
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.answers import END, MINUTES, START, arrow_stream, arrow_streams, assert_promised, json_bodies, lying
from support.faulty import HANG, RESET, answering, certified, http
from support.project import machine_in

from fonte import arrow, client
from fonte.client import AnswerRefused, FonteError, RequestRefused, fetch


def row(minute, **values):
    return {"timestamp": f"2024-05-20T00:{minute:02}:00Z", **(values or {"power": 1.5})}


def fetch_answer(*answers, columns=("power",)):
    with answering(*answers) as server:
        return fetch(server.url, START, END, columns)


def test_a_day_is_returned_as_arrays(shared_connector):
    timestamps, columns = fetch(shared_connector, START, END, ["power", "wind_speed"])
    assert timestamps.dtype == np.dtype("datetime64[us]")
    assert (timestamps == np.datetime64("2024-05-20", "us") + np.arange(1440) * np.timedelta64(1, "m")).all()
    assert list(columns) == ["power", "wind_speed"]
    assert all(values.dtype == np.float64 and values.shape == (1440,) for values in columns.values())


@pytest.mark.parametrize(
    "start",
    [START, START.replace(tzinfo=None), START.astimezone(timezone(timedelta(hours=-3)))],
    ids=["UTC", "naive", "offset"],
)
def test_a_bound_without_an_offset_is_utc_in_any_time_zone(shared_connector, start):
    with machine_in("America/Sao_Paulo"):
        timestamps, _ = fetch(shared_connector, start, start + timedelta(minutes=2), ["power"])
    assert timestamps.tolist() == [datetime(2024, 5, 20, 0, 0), datetime(2024, 5, 20, 0, 1)]


def test_a_request_has_the_path_and_parameters_of_the_design():
    with answering(http()) as server:
        fetch(server.url + "/fonte/", START, END, ["power", "wind_speed"])
    assert server.requests == [
        "GET /fonte/data?start_timestamp=2024-05-20T00%3A00%3A00Z&end_timestamp=2024-05-21T00%3A00%3A00Z"
        "&columns=power&columns=wind_speed HTTP/1.1"
    ]


def test_an_empty_answer_is_an_empty_day():
    timestamps, columns = fetch_answer(http())
    assert timestamps.shape == columns["power"].shape == (0,)


def test_null_nan_and_infinity_are_accepted():
    literals = ["null", "NaN", "-Infinity", "7"]
    rows = (f'{{"timestamp": "2024-05-20T00:0{minute}:00Z", "power": {literals[minute]}}}' for minute in range(4))
    body = f"[{', '.join(rows)}]".encode()
    _, columns = fetch_answer(http(body=body))
    np.testing.assert_array_equal(columns["power"], [math.nan, math.nan, -math.inf, 7.0])


@pytest.mark.parametrize("text", ["2024-05-20T00:05:00", "2024-05-20 00:05:00+00:00", "2024-05-19T21:05:00-03:00"])
def test_foreign_timestamps_are_read_as_utc(text):
    timestamps, _ = fetch_answer(http(body=[{"timestamp": text, "power": 1}]))
    assert timestamps.tolist() == [datetime(2024, 5, 20, 0, 5)]


def test_a_row_sent_twice_counts_once():
    body = [row(0), row(1, power=None), row(1, power=None), *[row(2, power=2.5)] * 3, row(3)]
    timestamps, columns = fetch_answer(http(body=body))
    assert [moment.minute for moment in timestamps.tolist()] == [0, 1, 2, 3]
    np.testing.assert_array_equal(columns["power"], [1.5, math.nan, 2.5, 1.5])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (http(body=b"<html>Welcome</html>", content_type="text/html"), "no JSON, but '<html>Welcome</html>'"),
        (http(body=b'[{"timestamp": "2024-05-20T00:00:00Z", "power"'), "no JSON"),
        (http(body=b"[" * 100_000), "no JSON"),
        (http(body=b"\xff\xfe\xfd"), "no JSON"),
        (http(body={"data": []}), "a JSON dict instead of a list"),
        (http(body=[1]), "answered 1 instead"),
        (http(body=[row(0, wind=1)]), "instead of a record with power, timestamp"),
        (http(body=[row(0, power=1, extra=1)]), "instead of a record with power, timestamp"),
        (http(body=[{"timestamp": "2024-05-20T00:00:00Z"}]), "instead of a record with power, timestamp"),
        (http(body=[row(0), row(1, power="2.5")]), "power = '2.5', which is not a number"),
        (http(body=[row(0, power=True)]), "power = True, which is not a number"),
        (http(body=[row(0, power=10**400)]), "which is not a number of double precision"),
        (http(body=[row(0, power=7), row(1, power=-(10**400))]), "power = -1000"),
        (http(body=[row(0, power="9" * 10**6)]), "power = '999999999999...9999999999999'"),
        (http(body=b"[%s]" % (b"1" * 5000)), "integer string conversion"),
        (
            http(body=b'[{"timestamp": "2024-05-20T00:00:00Z", "power": 1, "power": 2}]'),
            "repeats a name: [('timestamp', ",
        ),
        (http(body=[{"timestamp": 1716163200, "power": 1}]), "the timestamp 1716163200"),
        (http(body=[{"timestamp": "yesterday", "power": 1}]), "the timestamp 'yesterday'"),
        (http(body=[{"timestamp": "0001-01-01T00:00:00+10:00", "power": 1}]), "the timestamp '0001-01-01"),
        (
            http(body=[row(1), row(0)]),
            "rows out of order: 2024-05-20T00:00:00.000000Z after 2024-05-20T00:01:00.000000Z",
        ),
        (
            http(body=[row(0), {"timestamp": "2024-05-21T00:00:00Z", "power": 1}]),
            "timestamp 2024-05-21T00:00:00.000000Z, outside the period",
        ),
        (
            http(body=[{"timestamp": "2024-05-19T23:59:59Z", "power": 1}, row(0)]),
            "timestamp 2024-05-19T23:59:59.000000Z",
        ),
        (
            http(body=[row(0), row(1), row(1), row(3), row(2)]),
            "rows out of order: 2024-05-20T00:02:00.000000Z after 2024-05-20T00:03:00.000000Z",
        ),
        (
            http(body=[row(0, power=7), row(0, power=7), row(1, power=1), row(1, power=2), row(2, power=9)]),
            "two values of power for 2024-05-20T00:01:00.000000Z: 1.0 and 2.0",
        ),
        (http(body=[row(1, power=1), row(1, power=None)]), "two values of power"),
        (http(301, headers=["Location: /elsewhere"]), "HTTP 301 x: it is at /elsewhere now"),
        (http(308, headers=["Location: https://u:secret@new/data?token=secret"]), "it is at https://new/data now;"),
        (http(404, body={"detail": "Not Found"}), "HTTP 404 x: Not Found"),
        (http(401, body=b"who are you?"), "HTTP 401 x: who are you?"),
        (http(500, body=b""), "HTTP 500"),
        (http(400, body=b"[" * 100_000), "HTTP 400"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "check FONTE_API_URL and that a connector runs there"),
        (http(headers=["Content-Encoding: gzip"]), "the Content-Encoding gzip, though not requested"),
        (http(404, body={"detail": "\x1b[2J\ud800 gone\r\n"}), "HTTP 404 x: [2J gone"),
        (http(404, body={"detail": "a" * 10_000}), "HTTP 404 x: aaa"),
        (http(404, body=b"a" * 10**6), "HTTP 404 x: aaa"),
    ],
)
def test_an_unusable_answer_is_refused_without_a_retry(answer, message):
    with answering(answer) as server, pytest.raises(FonteError) as failure:
        fetch(server.url, START, END, ["power"])
    assert message in str(failure.value)
    assert str(failure.value).isprintable()
    assert len(str(failure.value)) < 3000
    assert server.url in str(failure.value)
    assert len(server.requests) == 1


def test_a_refused_request_repeats_the_detail_of_fonte():
    with pytest.raises(RequestRefused, match="columns='wind': expected 'wind_speed'"):
        fetch_answer(http(422, body={"detail": "columns='wind': expected 'wind_speed', 'power'"}))


TRANSIENT = {
    "429": http(429),
    "502": http(502),
    "503": http(503),
    "504": http(504),
    "reset": RESET,
    "hang": HANG,
    "closed": b"",
    "half a body": http(body=b"[", length=100),
    "half a chunked body": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[    \r\n",
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_transient_failures_are_retried(fault, monkeypatch, pauses_s):
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.2)
    with answering(fault, fault, http(body=[row(0)])) as server:
        timestamps, _ = fetch(server.url, START, END, ["power"])
    assert len(timestamps) == 1
    assert len(server.requests) == 3
    assert len(set(server.requests)) == 1


@pytest.mark.parametrize("fault", [http(503), RESET], ids=["503", "reset"])
def test_retries_last_a_minute_with_growing_random_pauses(fault, pauses_s):
    with answering(fault) as server, pytest.raises(FonteError, match="check FONTE_API_URL"):
        fetch(server.url, START, END, ["power"])
    assert sum(pauses_s) == pytest.approx(60)
    assert len(server.requests) == 1 + len(pauses_s)
    assert 8 < len(pauses_s) < 40
    # The last one ends with the minute.
    for number, pause_s in enumerate(pauses_s[:-1]):
        longest_s = min(client.BACKOFF_S * 2**number, client.MAX_BACKOFF_S)
        assert longest_s / 2 <= pause_s <= longest_s
    assert len(set(pauses_s)) == len(pauses_s)


def test_all_fetches_of_a_client_share_the_time_for_retries(pauses_s):
    with answering(RESET) as server, client.connect(server.url) as given:
        for requests in (len(pauses_s) + 1, 1, 1):
            seen = len(server.requests)
            with pytest.raises(FonteError):
                fetch(server.url, START, END, ["power"], given)
            assert requests == 1 or len(server.requests) - seen == requests
    assert sum(pauses_s) == pytest.approx(60)


def test_an_answer_renews_the_time_for_retries(pauses_s):
    answers = [*[RESET] * 12, http(), *[RESET] * 12, http()]
    with answering(*answers) as server, client.connect(server.url) as given:
        for _ in range(2):
            fetch(server.url, START, END, ["power"], given)
    assert len(server.requests) == 26


@pytest.mark.parametrize(
    ("asked", "first_pause_s"), [("7", 7.0), ("900", 60.0), ("0", None), ("soon", None), ("-5", None), ("1e9", None)]
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_within_the_time_for_retries(status, asked, first_pause_s, pauses_s):
    busy = http(status, headers=[f"Retry-After: {asked}"])
    with answering(busy, http(body=[row(0)])) as server:
        fetch(server.url, START, END, ["power"])
    assert pauses_s[0] == first_pause_s or (first_pause_s is None and pauses_s[0] <= client.BACKOFF_S)


@pytest.mark.parametrize(("patience_s", "first_timeout_s"), [(None, 20), (0, 15)])
def test_the_last_attempt_ends_within_15_s_after_the_time_for_retries(pauses_s, patience_s, first_timeout_s):
    attempts = []

    def note(request):
        attempts.append((sum(pauses_s), request.extensions["timeout"]["read"]))

    with answering(RESET) as server, client.connect(server.url) as given:
        given.event_hooks["request"] = [note]
        with pytest.raises(FonteError):
            fetch(server.url, START, END, ["power"], given, patience_s=patience_s)
    assert attempts[0] == (0, first_timeout_s)
    assert all(begin_s + timeout_s <= 75.001 for begin_s, timeout_s in attempts)


def test_a_retry_is_reported_only_on_a_terminal(pauses_s, monkeypatch, capsys):
    for terminal, reported in ((False, 0), (True, 1)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with answering(http(503), http(body=[row(0)])) as server:
            fetch(server.url, START, END, ["power"])
        error = capsys.readouterr().err
        assert error.count("Fonte does not answer: HTTP 503") == reported
        assert error.count("retrying for 60 s") == reported


@pytest.mark.parametrize("fault", [http(500), http(404), http(body=b"<html>")], ids=["500", "404", "HTML"])
def test_other_failures_are_never_retried(fault, pauses_s):
    for before in ([], [RESET]):
        with answering(*before, fault, http(body=[row(0)])) as server, pytest.raises(FonteError):
            fetch(server.url, START, END, ["power"])
        assert len(server.requests) == len(before) + 1


def test_a_request_names_the_formats_and_no_compression():
    with answering(http(body=[row(0)])) as server:
        fetch(server.url, START, END, ["power"])
    assert server.headers["accept"] == f"{arrow.MEDIA_TYPE}, application/json;q=0.5"
    assert server.headers["accept-encoding"] == "identity"


def test_a_given_client_sends_the_request_and_stays_open(refused_port):
    with answering(http(body=[row(0)])) as server, client.connect(server.url) as given:
        assert len(fetch(f"http://127.0.0.1:{refused_port}", START, END, ["power"], given)[0]) == 1
        assert not given.is_closed


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_connector_on_loopback_is_reached_without_a_proxy(host, monkeypatch, refused_port):
    with answering(http(body=[row(0)])) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        with pytest.raises(FonteError):
            fetch(f"http://{host}:{refused_port}", START, END, ["power"])
        assert proxy.requests == []
        assert len(fetch("http://fonte.example", START, END, ["power"])[0]) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5h://127.0.0.1:1080"),
        ("HTTP_PROXY", "ftp://proxy"),
        ("HTTPS_PROXY", "http://[::1"),
        ("SSL_CERT_FILE", __file__),
    ],
)
def test_a_variable_that_prevents_a_client_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(FonteError, match=f"^no HTTP client can be made: (?!None).+; check .*{name}"):
        client.connect("https://fonte.example")


@pytest.mark.parametrize(
    ("variable", "scheme"),
    [("HTTP_PROXY", "http"), ("HTTPS_PROXY", "https"), ("ALL_PROXY", "http"), ("ALL_PROXY", "https")],
)
@pytest.mark.parametrize("begin", ["http://", ""])
def test_an_unreachable_proxy_is_named_as_the_proxy(monkeypatch, refused_port, variable, scheme, begin):
    monkeypatch.setenv(variable, f"{begin}user:secret@127.0.0.1:{refused_port}")
    with pytest.raises(FonteError) as failure:
        fetch(f"{scheme}://fonte.example", START, END, ["power"])
    assert f"refused (through the proxy {begin}127.0.0.1:{refused_port} of the environment)" in str(failure.value)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_a_proxy_that_is_not_used_is_not_blamed(monkeypatch, refused_port, host):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:8080")
    monkeypatch.setenv("NO_PROXY", "127.0.0.2")
    with pytest.raises(FonteError) as failure:
        fetch(f"http://{host}:{refused_port}", START, END, ["power"])
    assert "refused" in str(failure.value)
    assert "proxy" not in str(failure.value)


def test_a_proxy_that_answers_is_not_blamed(monkeypatch):
    with answering(http(500)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(FonteError, match="HTTP 500") as failure:
            fetch("http://fonte.example", START, END, ["power"])
    assert "proxy" not in str(failure.value)


def test_a_proxy_that_requires_a_password_is_named_as_the_proxy(monkeypatch):
    with answering(http(407)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(FonteError, match=f"407 x .through the proxy {proxy.url} of the environment"):
            fetch("https://fonte.example", START, END, ["power"])


def test_an_unverifiable_certificate_is_not_retried(pauses_s, tmp_path):
    _, context = certified(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(FonteError, match="certificate verify failed"):
            fetch(f"https://127.0.0.1:{listener.getsockname()[1]}", START, END, ["power"])
        thread.join()
    assert pauses_s == []


@pytest.mark.parametrize("limit", ["MAX_JSON_BYTES", "MAX_DECODED_BYTES"])
def test_an_answer_at_the_limit_is_accepted(limit, monkeypatch):
    body = json.dumps([row(0)]).encode() if "JSON" in limit else WHOLE
    content_type = "application/json" if "JSON" in limit else f"{arrow.MEDIA_TYPE}; of=minutes"
    monkeypatch.setattr(client, limit, len(body))
    timestamps, _ = fetch_answer(http(body=body, content_type=content_type))
    assert len(timestamps) == (1 if "JSON" in limit else 250)


@pytest.mark.parametrize(("answer", "shown"), [(http(500, body=b"x" * 500), 200), (http(body=b"x" * 500), 80)])
def test_only_the_beginning_of_a_body_that_is_no_json_is_repeated(answer, shown):
    with pytest.raises(FonteError) as failure:
        fetch_answer(answer)
    assert max(map(len, re.findall("x+", str(failure.value)))) == shown


def test_an_unreachable_connector_is_an_error_without_the_secrets_of_its_url(refused_port):
    with pytest.raises(FonteError, match="check FONTE_API_URL and that a connector runs there") as failure:
        fetch(f"http://user:secret@127.0.0.1:{refused_port}/?token=secret#secret", START, END, ["power"])
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("limit", "content_type"), [("MAX_JSON_BYTES", "application/json"), ("MAX_DECODED_BYTES", arrow.MEDIA_TYPE)]
)
def test_an_answer_beyond_the_limit_is_refused(monkeypatch, limit, content_type):
    monkeypatch.setattr(client, limit, 2**20)
    with pytest.raises(AnswerRefused, match="more than 1 MiB for one period"):
        fetch_answer(http(body=b" " * (2**20 + 1), content_type=content_type))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["timestamp", "power", "x"]), inner, max_size=3)
    ),
)


def assert_taken_or_refused(answer):
    try:
        fetched = fetch_answer(answer)
    except FonteError as error:
        assert str(error).isprintable()
    else:
        assert_promised(*fetched, ["power"])


@st.composite
def changed(draw, bodies, pieces):
    """Draw a body; overwrite parts of it with pieces, and perhaps truncate it."""
    body = bytearray(draw(st.sampled_from(bodies)))
    for place, piece in draw(st.lists(st.tuples(st.integers(0, len(body)), pieces), max_size=6)):
        body[place : place + len(piece)] = piece
    return bytes(body[: draw(st.just(len(body)) | st.integers(0, len(body)))])


# Wrong lengths, counts and offsets.
LIES = [
    struct.pack(kind, value)
    for kind, bits in (("<q", 63), ("<i", 31), ("<h", 15))
    for value in (0, 1, 2, 3, 5, 8, 10, 64, -1, -2, -8, 2 ** (bits - 4), 2 ** (bits - 3), 2**bits - 1, -(2**bits))
]
TOKENS = [b"[", b"]", b"{", b"}", b",", b'"', b"-", b"NaN", b"-Infinity", b"1e400", b"1" * 5000, b"[" * 3000, b"true"]
TOKENS += [
    b'{"power":' * 3000,
    b'"\\ud800"',
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\0",
    b'"timestamp"',
    b"+23:59",
    b"0001",
]


@given(
    body=st.binary(max_size=50)
    | JSON.map(json.dumps).map(str.encode)
    | changed([*json_bodies()], st.sampled_from(TOKENS))
)
def test_any_json_body_gives_arrays_or_a_fonte_error(body):
    assert_taken_or_refused(http(body=body))


@given(
    body=st.binary(max_size=200)
    | changed([*arrow_streams()], st.sampled_from(LIES) | st.binary(min_size=1, max_size=1))
)
def test_any_arrow_body_gives_arrays_or_a_fonte_error(body):
    assert_taken_or_refused(http(body=body, content_type=arrow.MEDIA_TYPE))


ANY_LINE = st.text("\x00\t\r\n :;/=0129aAzZé", max_size=30).map(lambda line: line.encode("latin-1"))
HEADER_NAMES = [
    b"Content-Type",
    b"Content-Encoding",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Set-Cookie",
    b"Location",
]
HEADER_VALUES = [
    b"application/json; charset=utf-16",
    arrow.MEDIA_TYPE.encode(),
    b"chunked",
    b"gzip",
    b"0",
    b"99",
    b"-1",
]
STATUSES = [b"200 OK", b"204 x", b"301 x", b"404 x", b"422 x", b"503 x", b"100 x", b"999 x"]
BODIES = [*json_bodies(), *arrow_streams(), b"5\r\n[    \r\n0\r\n\r\n", b"ffffffffffffffff\r\n"]


@given(
    status=st.sampled_from(STATUSES) | ANY_LINE,
    headers=st.lists(st.tuples(st.sampled_from(HEADER_NAMES), st.sampled_from(HEADER_VALUES) | ANY_LINE), max_size=4),
    body=st.binary(max_size=60) | st.sampled_from(BODIES),
)
def test_any_answer_gives_arrays_or_a_fonte_error(status, headers, body):
    lines = [b"HTTP/1.1 " + status, *(b"%s: %s" % header for header in headers)]
    assert_taken_or_refused(b"\r\n".join([*lines, b"", body]))


@pytest.mark.parametrize(
    ("resolution", "per_minute", "turns"), [("us", 60 * 10**6, 3), ("ms", 60_000, 1), ("s", 60, 1)]
)
def test_timestamps_that_overflow_into_the_period_are_refused(resolution, per_minute, turns):
    """Their true values are ages apart; only the overflow of NumPy's 64 bits puts them into the period."""
    begin = int(MINUTES[0].astype(f"M8[{resolution}]").astype(int))
    turn = 2**64 * per_minute // (60 * 10**6) // turns
    integers = [begin, *(begin + turn * number + 1 for number in range(1, max(turns, 2))), begin + per_minute]
    moments = np.array([(integer + 2**63) % 2**64 - 2**63 for integer in integers]).astype(f"M8[{resolution}]")
    body = arrow_stream({"timestamp": moments, "power": np.ones(len(moments))})
    with pytest.raises(FonteError, match="outside the period|out of range"):
        fetch_answer(http(body=body, content_type=arrow.MEDIA_TYPE))


def test_an_arrow_stream_of_too_many_messages_is_refused(monkeypatch):
    monkeypatch.setattr(arrow, "_MOST_MESSAGES", 10)
    body = arrow_stream({"timestamp": MINUTES[:20], "power": np.ones(20)}, rows_a_batch=1)
    with pytest.raises(FonteError, match="more than 10 messages"):
        fetch_answer(http(body=body, content_type=arrow.MEDIA_TYPE))


def test_a_signalling_nan_is_a_nan():
    power = np.frombuffer(struct.pack("<If", 0x7F800001, 1.5), np.float32)
    body = arrow_stream({"timestamp": MINUTES[:2], "power": power})
    _, columns = fetch_answer(http(body=body, content_type=arrow.MEDIA_TYPE))
    np.testing.assert_array_equal(columns["power"], [math.nan, 1.5])


def replaced(layout, found, put):
    """Return a stream with the first occurrence of these numbers replaced."""
    body = arrow_stream({"timestamp": MINUTES, "power": [1.0] * 250}, rows_a_batch=250)
    assert struct.pack(layout, *found) in body
    return body.replace(struct.pack(layout, *found), struct.pack(layout, *put), 1)


WHOLE = arrow_stream({"timestamp": MINUTES, "power": pyarrow.array([None, math.nan, 2.5] * 83 + [1.0])})


def test_a_big_endian_or_incomplete_arrow_schema_is_refused():
    # A table whose field 0 is 1; pyarrow writes no such schema.
    schema = arrow._Table(struct.pack("<HHHxxihxx", 6, 6, 4, 8, 1), 8)
    with pytest.raises(ValueError, match="big-endian"):
        arrow._types(schema)
    with pytest.raises(ValueError, match="a part is missing"):
        schema.table(1)


def test_an_arrow_stream_of_pyarrow_is_decoded():
    timestamps, columns = fetch_answer(http(body=WHOLE, content_type=arrow.MEDIA_TYPE))
    assert (timestamps == MINUTES).all()
    np.testing.assert_array_equal(columns["power"], [math.nan, math.nan, 2.5] * 83 + [1.0])


@pytest.mark.parametrize("resolution", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("number", [pyarrow.float64(), pyarrow.float32(), pyarrow.int64(), pyarrow.uint32()], ids=str)
def test_any_timestamp_resolution_and_number_type_is_decoded(resolution, number):
    moments = MINUTES[:3].astype(f"datetime64[{resolution}]")
    body = arrow_stream({"power": pyarrow.array([1, None, 3], number), "timestamp": moments})
    timestamps, columns = fetch_answer(http(body=body, content_type=arrow.MEDIA_TYPE))
    assert timestamps.tolist() == MINUTES[:3].tolist()
    np.testing.assert_array_equal(columns["power"], [1, math.nan, 3])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "unpack_from requires"),
        (b"[]", "unpack_from requires"),
        (WHOLE[:-8], "unpack_from requires"),
        (WHOLE[:-300] + WHOLE[-8:], "cut off"),
        (WHOLE[-8:], "no schema comes first"),
        (arrow_stream({"timestamp": MINUTES}), "the columns are timestamp instead of timestamp, power"),
        (arrow_stream({"timestamp": MINUTES[:1], "wind": [1.0]}), "the columns are timestamp, wind instead of"),
        (arrow_stream({"timestamp": MINUTES[:1], "power": ["high"]}), "power is neither a timestamp nor a number"),
        (arrow_stream({"timestamp": MINUTES[:1], "power": [True]}), "power is neither a timestamp nor a number"),
        (arrow_stream({"timestamp": MINUTES[:1], "power": pyarrow.array(["a"]).dictionary_encode()}), "power is neith"),
        (arrow_stream({"timestamp": MINUTES[:1], "power": MINUTES[:1]}), "power is no number"),
        (arrow_stream({"timestamp": [1.0], "power": [1.0]}), "timestamp is no timestamp"),
        (arrow_stream({f"column {number}": [1.0] for number in range(101)}), "it has 101 columns"),
        (replaced("<Iqq", (2, 250, 0), (1, 250, 0)), "a batch's columns are not the schema's"),
        (replaced("<Iqq", (2, 250, 0), (2, 249, 0)), "a batch's columns differ in length"),
        (
            arrow_stream({"timestamp": pyarrow.array([None], pyarrow.timestamp("us")), "power": [1.0]}),
            "timestamp is null",
        ),
        (arrow_stream({"timestamp": MINUTES, "power": [1.0] * 250}, compression="zstd"), "compressed"),
        (lying({77: 2**61}), "a batch is shorter than its columns"),
        (lying({77: 150, 616: 0}), "a batch is shorter than its columns"),
        (struct.pack("<Ii", 0xFFFFFFFF, 2**20 + 8) + bytes(2**21), "no message begins at byte 0"),
        (arrow_stream({"timestamp": MINUTES[::-1], "power": [1.0] * 250}), "out of order"),
        (arrow_stream({"timestamp": MINUTES - np.timedelta64(1, "m"), "power": [1.0] * 250}), "outside the period"),
        (arrow_stream({"timestamp": MINUTES[[0, 0]], "power": [1.0, 2.0]}), "two values of power"),
    ],
)
def test_an_unusable_arrow_stream_is_refused(body, said):
    with pytest.raises(FonteError, match=re.escape(said)):
        fetch_answer(http(body=body, content_type=arrow.MEDIA_TYPE))


# The rows and nulls of each column, and the place and size of its bitmap and its values, as pyarrow writes them.
LAYOUT = [250, 0, 250, 1, 0, 0, 0, 2000, 2000, 32, 2032, 2000]


def with_layout(claims):
    """A stream of 250 minutes, the first without a value, in whose layout some numbers are false."""
    layout = [claims.get(place, number) for place, number in enumerate(LAYOUT)]
    body = arrow_stream({"timestamp": MINUTES, "power": [None] + [1.0] * 249}, rows_a_batch=250)
    for count, kind, part in ((2, "<I4q", slice(4)), (4, "<I8q", slice(4, 12))):
        true, claimed = (struct.pack(kind, count, *each[part]) for each in (LAYOUT, layout))
        assert body.count(true) == 1
        body = body.replace(true, claimed)
    return body


SHORT, OVERLAPPING = "a batch is shorter than its columns", "a batch's buffers overlap or lie outside it"


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({3: -1}, "power has -1 nulls in 250 rows"),
        ({3: 251}, "power has 251 nulls in 250 rows"),
        ({3: 10**9}, "power has 1000000000 nulls"),
        ({1: -1}, "timestamp has -1 nulls"),
        ({1: 1}, SHORT),
        ({9: 0}, SHORT),
        ({9: 31}, SHORT),
        ({9: -32}, SHORT),
        ({11: 0}, SHORT),
        ({11: 8}, SHORT),
        ({11: 1999}, SHORT),
        ({11: -2000}, SHORT),
        ({7: 8}, SHORT),
        ({10: 0}, OVERLAPPING),
        ({10: 2024}, OVERLAPPING),
        ({8: 1999}, OVERLAPPING),
        ({8: 0}, OVERLAPPING),
        ({6: -8}, OVERLAPPING),
        ({10: 2033}, OVERLAPPING),
        ({11: 2001}, OVERLAPPING),
        ({10: 2**63 - 1}, OVERLAPPING),
        ({11: 2**63 - 1}, OVERLAPPING),
    ],
)
def test_an_arrow_batch_whose_layout_contradicts_itself_is_refused(claims, said):
    body = with_layout(claims)
    with pytest.raises(FonteError, match=re.escape(said)):
        fetch_answer(http(body=body, content_type=arrow.MEDIA_TYPE))


@given(claims=st.dictionaries(st.integers(2, 11), st.integers(0, 300) | st.integers(-9, 4100), max_size=3))
def test_an_arrow_batch_of_any_layout_is_refused_or_decoded_as_pyarrow_does(claims):
    body = with_layout(claims)
    try:
        columns = arrow.decode(body, ["timestamp", "power"])
    except arrow.BadAnswer:
        return
    table = pyarrow.ipc.open_stream(body).read_all()
    table.validate()
    for name, values in columns.items():
        np.testing.assert_array_equal(values, table[name].to_numpy())


def test_the_variables_are_those_of_the_connector(shared_connector):
    with client.connect(shared_connector) as connected:
        assert client.variables(connected) == {
            "wind_speed": ("m/s", 0, 75),
            "power": ("kW", -500, 9000),
            "ambient_temperature": ("degC", -60, 60),
        }


@pytest.mark.parametrize("failure", [http(429), http(500), http(503), RESET])
def test_a_description_that_failed_once_is_asked_for_again(failure):
    described = http(body=[{"name": "power", "unit": "kW"}])
    with answering(failure, described, every_route=True) as server, client.connect(server.url) as connected:
        assert client.variables(connected) == {}
        assert client.variables(connected) == {"power": ("kW", -math.inf, math.inf)}


@pytest.mark.parametrize("ends", [{}, {"lowest": None, "highest": None}])
@pytest.mark.parametrize(("unit", "shown"), [("kW", "kW"), (None, "")])
def test_a_connector_may_describe_no_unit_and_no_range(unit, shown, ends):
    described = http(body=[{"name": "power", "unit": unit} | ends])
    with answering(described, every_route=True) as server, client.connect(server.url) as connected:
        assert client.variables(connected) == {"power": (shown, -math.inf, math.inf)}


def test_the_period_is_that_of_the_connector(shared_connector):
    with client.connect(shared_connector) as connected:
        assert client.period(connected) == "Fonte holds 2024-05-20 00:00 to 2024-05-29 23:59 UTC"


def test_a_refused_request_takes_nothing_of_the_patience_with_others(pauses_s):
    refused = http(422, body={"detail": "no"})
    with answering(refused, http(503), http(body=[row(0)])) as server, client.connect(server.url) as given:
        with pytest.raises(RequestRefused):
            fetch(server.url, START, END, ["power"], given)
        assert given.rest_s() == given.patience_s
        pauses_s.append(100)
        assert len(fetch(server.url, START, END, ["power"], given)[0]) == 1


@pytest.mark.parametrize("refused", [http(422, {"detail": "no"}), http(404), http(body=b"<html>")])
def test_an_answer_that_is_not_retried_restores_the_patience(pauses_s, refused):
    with answering(http(503), refused) as server, client.connect(server.url) as given:
        with pytest.raises(FonteError):
            fetch(server.url, START, END, ["power"], given)
        assert len(server.requests) == 2
        assert given.rest_s() == given.patience_s


def test_a_repeated_column_is_refused_before_any_request():
    with answering(http()) as server, pytest.raises(RequestRefused, match="power is requested twice: name it once"):
        fetch(server.url, START, END, ["power", "wind_speed", "wind_speed", "power"])
    assert server.requests == []


def test_a_connector_that_is_not_set_up_is_not_retried(pauses_s):
    problem = {"detail": "Fonte's database is not set up: it has no table data, which `python seed.py` makes"}
    with answering(http(503, body=problem)) as server, pytest.raises(FonteError, match="no table data, which `python"):
        fetch(server.url, START, END, ["power"])
    assert len(server.requests) == 1
    for again in (http(503, problem, headers=["Retry-After: 1"]), http(503, {"detail": "the upstream restarts"})):
        with answering(again, http(body=[row(0)])) as server:
            fetch(server.url, START, END, ["power"])
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        RESET,
        http(404, {"detail": "Not Found"}),
        http(body=b"no JSON"),
        http(body=b"\xff"),
        http(body=b"[" * 100_000),
        http(body=[{"name": "power"}]),
        http(body=["power"]),
        http(body=b"7"),
        http(body=[{"name": "power", "unit": "k" * 4 * client.MAX_ERROR_BYTES}]),
        http(body=[{"name": "power", "unit": "kW", "highest": 10**400}]),
    ],
)
def test_a_connector_without_a_description_is_accepted(answer):
    with answering(answer, every_route=True) as server, client.connect(server.url) as connected:
        assert client.variables(connected) == {}
        assert client.period(connected) == ""
