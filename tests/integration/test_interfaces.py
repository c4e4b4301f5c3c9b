"""Promises of both APIs to any program: methods, encodings, other origins, hosts, headers, timestamps, docs."""

import gzip
import re
import socket
import zlib
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from support.project import ROOT, alvo_api, connector_over, copying_threads, running, wait_until
from support.two_days import filled

from alvo.api import app as alvo_app
from fonte.connector import DataQuery
from fonte.connector import app as fonte_app
from fonte_alvo import settings
from fonte_alvo.serving import HEADERS

ORIGIN = "https://charts.example.org"
OPERATIONS = [
    (side, method, path)
    for side, app in (("Fonte", fonte_app), ("Alvo", alvo_app))
    for path, methods in app.openapi()["paths"].items()
    for method in methods
]
READING = [(side, path) for side, method, path in OPERATIONS if method == "get"]


@pytest.fixture(scope="module")
def databases(make_database, seeded_template):
    """A Fonte of ten days and an Alvo of two, by name."""
    return {"Fonte": make_database(seeded_template), "Alvo": filled(make_database())}


@pytest.fixture(scope="module")
def served(databases):
    """A client of each API, by name; both run without settings."""
    with connector_over(databases["Fonte"]) as fonte, alvo_api(databases["Alvo"]) as alvo:
        with httpx.Client(base_url=fonte) as fonte_client, httpx.Client(base_url=alvo) as alvo_client:
            yield {"Fonte": fonte_client, "Alvo": alvo_client}


@pytest.fixture
def start(databases, monkeypatch):
    """Serve the API of a side with these settings; give its context."""

    def started(side, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(f"{side.upper()}_{name}", value)
        return {"Fonte": connector_over, "Alvo": alvo_api}[side](databases[side])

    return started


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize(
    ("side", "path"), [*READING, ("Fonte", "/docs"), ("Fonte", "/"), ("Alvo", "/"), ("Alvo", "/x")]
)
def test_head_answers_as_get_does_without_the_body(served, side, path, encoding):
    headers = {"Accept-Encoding": encoding}
    whole, head = served[side].get(path, headers=headers), served[side].head(path, headers=headers)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    expected = {name: value for name, value in whole.headers.items() if name != "date"}
    assert expected.items() <= head.headers.items()


def test_head_of_the_data_ends_its_query(administrator, large_fonte):
    with connector_over(large_fonte) as base_url, administrator.connect() as connection:
        assert httpx.head(f"{base_url}/data").status_code == 200
        wait_until(lambda: running(connection, large_fonte.database) == 0)


@pytest.mark.parametrize(
    ("asked", "encoding"),
    [
        ("", "identity"),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("deflate, gzip;q=0.5", "gzip"),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip"),
        ("identity;q=0.5, gzip", "gzip"),
        ("GZIP", "gzip"),
        ("gzip;q=0", "identity"),
        ("gzip; q=0.000", "identity"),
        ("gzip;q=0, *", "identity"),
        ("*;q=0, gzip", "gzip"),
        ("identity, gzip;q=0.5", "identity"),
        ("br", "identity"),
        ("*", "identity"),
    ],
)
def test_quality_values_choose_the_encoding(served, asked, encoding):
    for side in served:
        with served[side].stream("GET", "/data", headers={"Accept-Encoding": asked}) as answer:
            assert answer.headers.get("content-encoding", "identity") == encoding
            assert answer.headers["vary"].startswith("Accept, Accept-Encoding" if encoding == "gzip" else "Accept")


@pytest.mark.parametrize(
    ("side", "path"),
    [
        *(("Fonte", f"/data?format={form}") for form in ("json", "csv", "arrow")),
        *(("Alvo", f"/data?format={form}") for form in ("json", "csv")),
        ("Alvo", "/view?start_timestamp=2024-05-20&end_timestamp=2024-05-22"),
    ],
)
def test_a_compressed_answer_has_the_same_content(served, side, path):
    with served[side].stream("GET", path, headers={"Accept-Encoding": "gzip"}) as packed:
        assert packed.headers["vary"].endswith("Accept-Encoding")
        compressed = b"".join(packed.iter_raw())
    plain = served[side].get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(compressed) == plain.content
    assert len(compressed) < len(plain.content) * 0.7


def test_a_compressed_stream_starts_early_and_stops_when_its_client_disconnects(administrator, large_fonte, fonte_pool):
    # Equal values, compressed, would fit into the buffers between both ends.
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET wind_speed = random(), power = random()"))
    # By default the kernel receives tens of megabytes for a program that does not read them.
    transport = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)])
    with (
        connector_over(large_fonte) as base_url,
        administrator.connect() as connection,
        httpx.Client(transport=transport, base_url=base_url) as client,
    ):
        with client.stream("GET", "/data?format=csv", headers={"Accept-Encoding": "gzip"}) as answer:
            # An iterator that nobody holds would close the connection.
            pieces = answer.iter_raw(4096)
            first = zlib.decompressobj(31).decompress(next(pieces))
            assert first.startswith(b"timestamp,wind_speed,power,ambient_temperature\n2000-01-01T00:00:00Z,")
            assert copying_threads()
        wait_until(lambda: running(connection, large_fonte.database) == 0 and not copying_threads())


@pytest.mark.parametrize("side", ["Fonte", "Alvo"])
def test_by_default_no_other_origin_may_read(served, side):
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    for answer in (served[side].get("/health", headers=asked), served[side].options("/data", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("side", ["Fonte", "Alvo"])
def test_only_pages_of_the_allowed_origins_may_read(start, side):
    with start(side, ALLOWED_ORIGINS=f"http://localhost:5173, {ORIGIN}") as base_url, httpx.Client() as client:
        for path in ("/data", "/health", "/data?x=1", "/none"):
            answer = client.get(base_url + path, headers={"Origin": ORIGIN})
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "Origin" in answer.headers["vary"]
            for other in (f"{ORIGIN}.evil.example", "http://localhost", "null"):
                answer = client.get(base_url + path, headers={"Origin": other})
                assert "access-control-allow-origin" not in answer.headers
        asked = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
        answer = client.options(f"{base_url}/data", headers={"Origin": ORIGIN, **asked})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert client.options(f"{base_url}/data", headers={"Origin": "null", **asked}).status_code == 400


@pytest.mark.parametrize("side", ["Fonte", "Alvo"])
def test_only_the_allowed_hosts_are_served(start, side):
    with start(side, ALLOWED_HOSTS="turbine.example.org *.internal") as base_url, httpx.Client() as client:
        for host, status in {
            "turbine.example.org": 200,
            "turbine.example.org:8000": 200,
            "a.internal": 200,
            "evil.example": 400,
            "turbine.example.org.evil.example": 400,
            "127.0.0.1": 200,
            "127.0.0.2": 400,
            "": 400,
        }.items():
            assert client.get(f"{base_url}/health", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize("side", ["Fonte", "Alvo"])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/data", 200),
        ("GET", "/docs", 200),
        ("GET", "/docs/swagger-ui-bundle.js", 200),
        ("GET", "/none", 404),
        ("PUT", "/data", 405),
        ("GET", "/data?x=1", 422),
        ("DELETE", "/data", 403),
        ("OPTIONS", "/data", 204),
        ("HEAD", "/data", 200),
    ],
)
def test_every_answer_has_the_security_headers(served, side, method, path, status):
    answer = served[side].request(method, path)
    assert answer.status_code == status
    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= answer.headers.items()


@pytest.mark.parametrize("side", ["Fonte", "Alvo"])
def test_no_host_makes_a_wrong_method_an_error_of_the_server(served, side):
    answer = served[side].put("/data", headers={"Host": "["})
    assert answer.status_code == 405
    assert answer.json()["detail"].startswith("PUT /data: expected ")


def test_the_root_of_the_connector_redirects_to_its_docs_by_a_relative_path(served):
    answer = served["Fonte"].get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")


@pytest.mark.parametrize("side", ["Fonte", "Alvo"])
def test_the_docs_come_from_this_server_alone(served, side):
    page = served[side].get("/docs").text
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(files) == 5
    for name in files:
        assert served[side].get(f"/{name}").status_code == 200, name
    assert "//" not in page
    assert "<style" not in page
    assert "<script>" not in page
    assert served[side].get("/redoc").status_code == 404


def moments():
    """The parts of an RFC 3339 timestamp: whole seconds, any number of decimals, separator, zone."""
    texts = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)).map(lambda moment: moment.replace(microsecond=0))
    return st.tuples(
        texts, st.text("0123456789", min_size=1, max_size=12), st.sampled_from("tT"), st.sampled_from("zZ")
    )


@given(moments())
def test_a_bound_with_any_decimals_keeps_the_half_open_period_exact(written):
    whole, decimals, separator, zone = written
    bound = DataQuery(start_timestamp=f"{whole:%Y-%m-%d}{separator}{whole:%H:%M:%S}.{decimals}{zone}").start_timestamp
    exact = Fraction(int(decimals), 10 ** len(decimals)) * 1_000_000
    microseconds = (bound - whole.replace(tzinfo=UTC)) // timedelta(microseconds=1)
    # A row, on a whole microsecond, lies on the same side of both.
    assert microseconds - 1 < exact <= microseconds


@pytest.mark.parametrize("query", ["start_timestamp={}", "end_timestamp={}"])
def test_a_bound_finer_than_a_microsecond_selects_the_right_rows(served, query):
    rows = {}
    for moment in ("2024-05-20T00:05:00Z", "2024-05-20T00:05:00.0000001Z", "2024-05-20t00:04:60z"):
        answer = served["Fonte"].get(f"/data?columns=power&{query.format(moment)}")
        rows[moment[10:]] = len(answer.json())
    exact, finer, leap = rows.values()
    assert (exact, finer) == ((14395, 14394) if "start" in query else (5, 6))
    assert leap == exact


@pytest.mark.parametrize("app", [fonte_app, alvo_app])
def test_the_description_serves_generators_and_readers(app):
    description = app.openapi()
    assert description["servers"][0]["url"] == "."
    assert description["info"]["contact"]["name"]
    tags = {tag["name"] for tag in description["tags"]}
    timestamps = 0
    for methods in description["paths"].values():
        for method, operation in methods.items():
            assert operation["summary"]
            assert operation["tags"] == ["reading" if method == "get" else "changing"]
            assert set(operation["tags"]) <= tags
            assert ("security" in operation) == (method != "get")
            refusals = set() if method == "get" else {"401", "403"}
            assert operation["responses"].keys() == {"200", "422", "503"} | refusals
            for parameter in operation.get("parameters", []):
                assert parameter["description"]
                if parameter["name"].endswith("_timestamp"):
                    schema = parameter["schema"]
                    assert (schema["type"], schema["format"]) == ("string", "date-time")
                    assert re.search(schema["pattern"], "0001-01-01T00:00:00Z")
                    assert not re.search(schema["pattern"], "0000-01-01T00:00:00Z")
                    timestamps += 1
    assert timestamps >= 4


@pytest.mark.parametrize(
    ("side", "query", "said"),
    [
        (
            "Fonte",
            "start=2024-05-20",
            "start: no such parameter, expected start_timestamp, end_timestamp, columns, format",
        ),
        ("Fonte", "start=2024-05-20", "format; did you mean start_timestamp?"),
        ("Fonte", "start_date=2024-05-20", "did you mean start_timestamp?"),
        ("Fonte", "end_date=2024-05-20", "did you mean end_timestamp?"),
        ("Fonte", "variables=power", "variables: no such parameter, expected start_timestamp, end_timestamp, columns"),
        ("Fonte", "columns[]=power", "did you mean columns=A&columns=B?"),
        ("Fonte", "columns[]=power&columns[]=wind_speed", "did you mean columns=A&columns=B?"),
        ("Fonte", "variables=power&variables=wind_speed", "variables: no such parameter, expected start_timestamp,"),
        ("Alvo", "signal=a&signal=b", "did you mean signals=A&signals=B?"),
        ("Fonte", "columns=power&columns=power", "expected each column once"),
        ("Fonte", "columns=power,wind_speed", "'ambient_temperature'; send several as columns=A&columns=B"),
        ("Fonte", "column=power", "did you mean columns=A&columns=B?"),
        ("Fonte", "start_timestamp=x", "start_timestamp='x': expected a timestamp such as 2024-"),
        ("Fonte", "format=x", "format='x': expected 'json', 'csv' or 'arrow'"),
        ("Alvo", "signal=power_mean", "did you mean signals=A&signals=B?"),
        ("Alvo", "signals=power_mean,power_std", "'power_std'; send several as signals=A&signals=B"),
        ("Alvo", "signals=", "signals='': expected at least 1 character"),
    ],
)
def test_a_refused_request_suggests_a_correct_one(served, side, query, said):
    answer = served[side].get(f"/data?{query}")
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert answer.json()["detail"].count("expected") == 1


@pytest.mark.parametrize(
    "value",
    [
        "charts.example.org",
        f"{ORIGIN}/",
        "https://*",
        f"{ORIGIN}, ftp://x",
        "https://u@h",
        "https://Charts.example.org",
        "https://x:443",
        "http://x:80",
    ],
)
def test_an_invalid_origin_is_named(monkeypatch, value):
    monkeypatch.setenv("ALVO_ALLOWED_ORIGINS", value)
    with pytest.raises(settings.SettingsError, match="^ALVO_ALLOWED_ORIGINS names .*: expected origins such as https:"):
        settings.allowed("Alvo")


@pytest.mark.parametrize("value", ["https://example.org", "example.org:8000", "a.*.example.org", "example.org/x"])
def test_an_invalid_host_is_named(monkeypatch, value):
    monkeypatch.setenv("FONTE_ALLOWED_HOSTS", value)
    with pytest.raises(settings.SettingsError, match="^FONTE_ALLOWED_HOSTS names .*: expected names without a port"):
        settings.allowed("Fonte")


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("side", ["Fonte", "Alvo"])
def test_a_client_of_http_1_0_gets_no_chunks(served, side, encoding):
    url = served[side].base_url
    with socket.create_connection((url.host, url.port)) as connection:
        asked = f"GET /data?format=csv HTTP/1.0\r\nHost: api\r\nAccept-Encoding: {encoding}\r\n\r\n"
        connection.sendall(asked.encode())
        head, body = connection.makefile("rb").read().split(b"\r\n\r\n", 1)
    assert b"transfer-encoding" not in head.lower()
    plain = served[side].get("/data?format=csv", headers={"Accept-Encoding": "identity"}).content
    assert (gzip.decompress(body) if encoding == "gzip" else body) == plain


def test_every_documented_server_command_supports_http_1_0():
    for name in ("README.md", "README.pt-BR.md", "compose.yaml", "Dockerfile", "docs/reference.md"):
        written = (ROOT / name).read_text().replace('", "', " ")
        commands = re.findall(r"uvicorn (?:fonte\.connector|alvo\.api):app(?=[^\n`]* --)[^\n`]*", written)
        assert commands, name
        assert [command for command in commands if "--http h11" not in command] == [], name
