import gzip
import io
import json
import math
import re
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fonte import arrow, client
from fonte.client import FonteError, RequestRefused, fetch
from tests.faulty import HANG, RESET, answering, http

START = datetime(2024, 5, 20, tzinfo=UTC)
END = START + timedelta(days=1)


def row(minute, **values):
    return {"timestamp": f"2024-05-20T00:{minute:02}:00Z", **(values or {"power": 1.5})}


def fetch_answer(*answers, columns=("power",)):
    with answering(*answers) as server:
        return fetch(server.url, START, END, columns)


def test_a_day_comes_as_arrays(shared_connector):
    timestamps, columns = fetch(shared_connector, START, END, ["power", "wind_speed"])
    assert timestamps.dtype == np.dtype("datetime64[us]")
    assert (timestamps == np.datetime64("2024-05-20", "us") + np.arange(1440) * np.timedelta64(1, "m")).all()
    assert list(columns) == ["power", "wind_speed"]
    assert all(values.dtype == np.float64 and values.shape == (1440,) for values in columns.values())


@pytest.mark.parametrize(
    "start", [START.replace(tzinfo=None), START.astimezone(timezone(timedelta(hours=-3)))], ids=["naive", "offset"]
)
def test_a_bound_is_meant_in_utc_unless_it_has_an_offset(shared_connector, start):
    timestamps, _ = fetch(shared_connector, start, start + timedelta(minutes=2), ["power"])
    assert timestamps.tolist() == [datetime(2024, 5, 20, 0, 0), datetime(2024, 5, 20, 0, 1)]


def test_the_request_is_the_one_that_the_design_fixes():
    with answering(http()) as server:
        fetch(server.url + "/fonte/", START, END, ["power", "wind_speed"])
    assert server.requests == [
        "GET /fonte/data?start_timestamp=2024-05-20T00%3A00%3A00Z&end_timestamp=2024-05-21T00%3A00%3A00Z"
        "&columns=power&columns=wind_speed HTTP/1.1"
    ]


def test_an_empty_answer_is_an_empty_day():
    timestamps, columns = fetch_answer(http())
    assert timestamps.shape == columns["power"].shape == (0,)


def test_null_nan_and_infinity_are_no_error():
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
    body = [row(0), row(1, power=None), row(1, power=None), row(2), row(2), row(2), row(3)]
    timestamps, columns = fetch_answer(http(body=body))
    assert [moment.minute for moment in timestamps.tolist()] == [0, 1, 2, 3]
    np.testing.assert_array_equal(columns["power"], [1.5, math.nan, 1.5, 1.5])


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
        (http(body=[row(0), row(1, power="2.5")]), "power = '2.5', which is no number"),
        (http(body=[row(0, power=True)]), "power = True, which is no number"),
        (http(body=[row(0, power=10**400)]), "which is no number of double precision"),
        (http(body=[{"timestamp": 1716163200, "power": 1}]), "the timestamp 1716163200"),
        (http(body=[{"timestamp": "yesterday", "power": 1}]), "the timestamp 'yesterday'"),
        (http(body=[{"timestamp": "0001-01-01T00:00:00+10:00", "power": 1}]), "the timestamp '0001-01-01"),
        (
            http(body=[row(1), row(0)]),
            "rows out of order: 2024-05-20T00:00:00.000000Z after 2024-05-20T00:01:00.000000Z",
        ),
        (http(body=[row(0), {"timestamp": "2024-05-21T00:00:00Z", "power": 1}]), "outside the period"),
        (http(body=[{"timestamp": "2024-05-19T23:59:59Z", "power": 1}, row(0)]), "outside the period"),
        (http(body=[row(0), row(1, power=1), row(1, power=2)]), "two values of power for 2024-05-20T00:01"),
        (http(body=[row(1, power=1), row(1, power=None)]), "two values of power"),
        (http(301, headers=["Location: /elsewhere"]), "HTTP 301"),
        (http(404, body={"detail": "Not Found"}), "HTTP 404 x: Not Found"),
        (http(401, body=b"who are you?"), "HTTP 401 x: who are you?"),
        (http(500, body=b""), "HTTP 500"),
        (http(400, body=b"[" * 100_000), "HTTP 400"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "check FONTE_API_URL and that a connector runs there"),
        (http(headers=["Content-Encoding: gzip"]), "check FONTE_API_URL and that a connector runs there"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused_and_not_asked_for_again(answer, message):
    with answering(answer) as server, pytest.raises(FonteError) as failure:
        fetch(server.url, START, END, ["power"])
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)
    assert server.url in str(failure.value)
    assert len(server.requests) == (5 if answer.startswith(b"SSH") else 1)


def test_a_refused_request_repeats_the_detail_of_fonte():
    with pytest.raises(RequestRefused, match="columns='wind': expected 'wind_speed'"):
        fetch_answer(http(422, body={"detail": "columns='wind': expected 'wind_speed', 'power'"}))


@pytest.mark.parametrize(
    "fault",
    [
        http(502),
        http(503),
        http(504),
        RESET,
        HANG,
        b"",
        http(body=b"[", length=100),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[    \r\n",
    ],
    ids=["502", "503", "504", "reset", "hang", "closed", "half a body", "half a chunked body"],
)
def test_what_passes_by_itself_is_tried_again(fault, monkeypatch):
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.2)
    with answering(fault, fault, http(body=[row(0)])) as server:
        timestamps, _ = fetch(server.url, START, END, ["power"])
    assert len(timestamps) == 1
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [http(503), RESET, HANG], ids=["503", "reset", "hang"])
def test_what_does_not_pass_ends_after_five_attempts(fault, monkeypatch):
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.2)
    with answering(fault) as server, pytest.raises(FonteError, match="check FONTE_API_URL"):
        fetch(server.url, START, END, ["power"])
    assert len(server.requests) == 5


def test_nobody_there_is_an_error(refused_port):
    with pytest.raises(FonteError, match="check FONTE_API_URL and that a connector runs there"):
        fetch(f"http://127.0.0.1:{refused_port}", START, END, ["power"])


def test_a_password_in_the_url_is_not_repeated(refused_port):
    with pytest.raises(FonteError) as failure:
        fetch(f"http://user:secret@127.0.0.1:{refused_port}/?token=secret#secret", START, END, ["power"])
    assert "secret" not in str(failure.value)


def test_more_than_the_limit_is_refused_even_when_it_was_small_on_the_wire(monkeypatch):
    monkeypatch.setattr(client, "MAX_DECODED_BYTES", 2**20)
    bomb = gzip.compress(b" " * (2**20 + 1))
    with pytest.raises(FonteError, match="more than 1 MiB"):
        fetch_answer(http(body=bomb, headers=["Content-Encoding: gzip"]))


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(monkeypatch, refused_port, shared_connector):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{refused_port}")
    timestamps, _ = fetch(shared_connector, START, END, ["power"])
    assert len(timestamps) == 1440


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["timestamp", "power", "x"]), inner, max_size=3)
    ),
)


def checked(decode, body):
    """Decode and check as fetch does: arrays of one length, or the one error."""
    try:
        decoded = decode(body, ["timestamp", "power"])
        timestamps, columns = client._checked(decoded, START.replace(tzinfo=None), END.replace(tzinfo=None))
    except ValueError as error:
        assert str(error)
    else:
        assert timestamps.shape == columns["power"].shape


@given(body=st.binary(max_size=50) | JSON)
def test_any_json_body_gives_arrays_or_the_one_error(body):
    checked(client._from_json, body if isinstance(body, bytes) else json.dumps(body).encode())


def arrow_stream(columns, **options):
    """An Arrow stream as pyarrow writes it."""
    table = pyarrow.table(columns)
    written = io.BytesIO()
    with pyarrow.ipc.new_stream(written, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as stream:
        stream.write_table(table, max_chunksize=100)
    return written.getvalue()


MINUTES = np.datetime64("2024-05-20", "us") + np.arange(250) * np.timedelta64(1, "m")
WHOLE = arrow_stream({"timestamp": MINUTES, "power": pyarrow.array([None, math.nan, 2.5] * 83 + [1.0])})


@settings(max_examples=500)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, len(WHOLE)),
    end=st.sampled_from([b"", WHOLE[-8:]]),
)
def test_any_arrow_body_gives_arrays_or_the_one_error(changes, cut, end):
    body = bytearray(WHOLE)
    for position, byte in changes:
        body[position] = byte
    checked(arrow.decode, bytes(body[:cut]) + end)


@given(body=st.binary(max_size=200))
def test_any_bytes_as_arrow_give_arrays_or_the_one_error(body):
    checked(arrow.decode, body)


def test_an_arrow_stream_of_another_writer_comes_as_arrays():
    timestamps, columns = fetch_answer(http(body=WHOLE, content_type=arrow.MEDIA_TYPE))
    assert (timestamps == MINUTES).all()
    np.testing.assert_array_equal(columns["power"], [math.nan, math.nan, 2.5] * 83 + [1.0])


@pytest.mark.parametrize("resolution", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("number", [pyarrow.float64(), pyarrow.float32(), pyarrow.int64(), pyarrow.uint32()], ids=str)
def test_timestamps_of_any_resolution_and_numbers_of_any_kind_are_taken(resolution, number):
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
        (
            arrow_stream({"timestamp": pyarrow.array([None], pyarrow.timestamp("us")), "power": [1.0]}),
            "timestamp is null",
        ),
        (arrow_stream({"timestamp": MINUTES, "power": [1.0] * 250}, compression="zstd"), "compressed"),
        (arrow_stream({"timestamp": MINUTES[::-1], "power": [1.0] * 250}), "out of order"),
        (arrow_stream({"timestamp": MINUTES - np.timedelta64(1, "m"), "power": [1.0] * 250}), "outside the period"),
        (arrow_stream({"timestamp": MINUTES[[0, 0]], "power": [1.0, 2.0]}), "two values of power"),
    ],
)
def test_an_arrow_stream_that_cannot_be_used_is_refused(body, said):
    with pytest.raises(FonteError, match=re.escape(said)):
        fetch_answer(http(body=body, content_type=arrow.MEDIA_TYPE))
