"""The connector, over real HTTP and a real Fonte: formats, bounds, streams, and a database that fails."""

import csv
import io
import json
import math
import socket
from datetime import datetime
from itertools import pairwise

import httpx
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from support.project import DAY, connector_over, running, terminate, wait_until

from fonte_alvo.copy import CopyOut
from fonte_alvo.streaming import json_list


@pytest.fixture(scope="module")
def api(shared_connector):
    with httpx.Client(base_url=shared_connector) as client:
        yield client


def test_a_day_is_a_list_of_flat_records_ordered_by_time(api):
    answer = api.get(DAY)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    records = answer.json()
    assert len(records) == 1440
    assert all(list(record) == ["timestamp", "wind_speed", "power"] for record in records)
    assert records[0]["timestamp"] == "2024-05-20T00:00:00Z"
    assert records[-1]["timestamp"] == "2024-05-20T23:59:00Z"
    assert [record["timestamp"] for record in records] == sorted(record["timestamp"] for record in records)


@pytest.mark.parametrize(
    ("query", "minutes"),
    [
        ("", 14400),
        ("start_timestamp=2024-05-29T23:58:00Z", 2),
        ("end_timestamp=2024-05-20T00:03:00Z", 3),
        ("start_timestamp=2024-05-20T00:01:00Z&end_timestamp=2024-05-20T00:02:00Z", 1),
        ("start_timestamp=2024-05-20T03:00:00%2B03:00&end_timestamp=2024-05-20T00:05:00", 5),
        ("start_timestamp=2024-05-20&end_timestamp=2024-05-21", 1440),
        ("start_timestamp=2030-01-01", 0),
        ("start_timestamp=0001-01-01&end_timestamp=9999-12-31T23:59:59Z", 14400),
    ],
)
def test_a_period_is_half_open_and_each_bound_optional(api, query, minutes):
    assert len(api.get(f"/data?{query}").json()) == minutes


def test_without_columns_all_variables_are_answered(api):
    record = api.get("/data?end_timestamp=2024-05-20T00:01").json()[0]
    assert list(record) == ["timestamp", "wind_speed", "power", "ambient_temperature"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/data?columns=wind", "columns='wind': expected 'wind_speed', 'power', 'ambient_temperature'"),
        ("/data?columns=wind_sped", "'ambient_temperature' (did you mean wind_speed?)"),
        ("/data?columns=wind_speed,power", "'ambient_temperature'; send several as columns=A&columns=B"),
        ("/data?columns=power&columns=power", "expected each column once"),
        ("/data?columns=timestamp", "columns='timestamp'"),
        ("/data?columns=", "columns=''"),
        ("/data?columns=power%3BDROP%20TABLE%20data", "columns='power;DROP TABLE data'"),
        ("/data?start_timestamp=yesterday", "start_timestamp='yesterday': expected a timestamp such as 2024-"),
        ("/data?start_timestamp=1716163200", "start_timestamp='1716163200'"),
        ("/data?start_timestamp=2024-05-20T00:00:00+00:00", "send a + as %2B"),
        ("/data?start_timestamp=", "start_timestamp=''"),
        ("/data?end_timestamp=2024-02-30", "end_timestamp='2024-02-30'"),
        ("/data?end_timestamp=infinity", "end_timestamp='infinity'"),
        ("/data?start_timestamp=0001-01-01T00:00:00%2B10:00", "start_timestamp='0001"),
        (
            "/data?start_timestamp=2024-05-21&end_timestamp=2024-05-20",
            "is not before end_timestamp 2024-05-20 00:00:00+00:00",
        ),
        ("/data?start_timestamp=2024-05-20&end_timestamp=2024-05-20", "is not before"),
    ],
)
def test_a_bad_request_is_a_422_that_names_the_value_and_what_is_allowed(api, path, said):
    answer = api.get(path)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def in_every_format(base_url, query):
    """Return the rows of an answer in JSON, CSV and Arrow, as other libraries decode them."""
    answers = {form: httpx.get(f"{base_url}/data?{query}&format={form}") for form in ("json", "csv", "arrow")}
    assert [answers[form].headers["content-type"].split(";")[0] for form in answers] == [
        "application/json",
        "text/csv",
        "application/vnd.apache.arrow.stream",
    ]
    table = pyarrow.ipc.open_stream(answers["arrow"].content).read_all()
    return answers["json"].json(), list(csv.DictReader(io.StringIO(answers["csv"].text))), table


def test_every_format_holds_the_same_rows(api, shared_connector):
    records, lines, table = in_every_format(shared_connector, "columns=power&columns=wind_speed")
    assert len(records) == len(lines) == table.num_rows == 14400
    assert table.schema.names == list(lines[0]) == list(records[0]) == ["timestamp", "power", "wind_speed"]
    assert table.schema.field("timestamp").type == pyarrow.timestamp("us", tz="UTC")
    assert [line["timestamp"] for line in lines] == [record["timestamp"] for record in records]
    assert table["timestamp"].to_pylist() == [datetime.fromisoformat(line["timestamp"]) for line in lines]
    for name in ("power", "wind_speed"):
        values = [float(line[name]) if line[name] else None for line in lines]
        assert values == [record[name] for record in records] == table[name].to_pylist()


def test_an_empty_period_is_an_empty_table_in_every_format(shared_connector):
    records, lines, table = in_every_format(shared_connector, "start_timestamp=2030-01-01&columns=power")
    assert records == lines == table.to_pylist() == []
    assert table.schema.names == ["timestamp", "power"]


def test_nan_and_infinity_are_null_in_json_but_not_in_csv_and_arrow(fonte_pool, connector):
    with fonte_pool.begin() as connection:
        connection.execute(
            text("""INSERT INTO data VALUES ('2020-01-01Z', 'NaN', 'Infinity', NULL),
                ('2020-01-01 00:00:00.5Z', '-Infinity', 5e-324, 1)""")
        )
    records, lines, table = in_every_format(connector, "end_timestamp=2021-01-01")
    moments = ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00.5Z"]
    assert [record["timestamp"] for record in records] == [line["timestamp"] for line in lines] == moments
    assert [list(record.values())[1:] for record in records] == [[None, None, None], [None, 5e-324, 1]]
    assert [list(line.values())[1:] for line in lines] == [["NaN", "Infinity", ""], ["-Infinity", "5e-324", "1"]]
    first, second = ([row[name] for name in table.schema.names[1:]] for row in table.to_pylist())
    assert math.isnan(first[0])
    assert first[1:] == [math.inf, None]
    assert second == [-math.inf, 5e-324, 1]


OFFERED = {"json": "application/json", "csv": "text/csv", "arrow": "application/vnd.apache.arrow.stream"}


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("text/csv", "csv"),
        ("text/*", "csv"),
        ("Text/CSV ; Q=0.5", "csv"),
        ("application/vnd.apache.arrow.stream, application/json;q=0.5", "arrow"),
        ("application/json;q=0.1, text/csv;q=0.9, */*;q=0.05", "csv"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "json"),
        ("image/png", "json"),
        ("text/csv;q=0, application/json", "json"),
        ("text/csv;q=many", "json"),
        ("text/csv;q=2, application/json;q=0.1", "json"),
        ("application/json;q=0, */*", "csv"),
        ("text/*;q=0.9, text/csv;q=0.1, application/json;q=0.5", "json"),
        ("text/csv, application/json", "csv"),
        (";;,,;q=", "json"),
    ],
)
def test_the_accept_header_chooses_the_format(api, accept, name):
    answer = api.get("/data?end_timestamp=2024-05-20T00:01", headers={"Accept": accept})
    assert answer.headers["content-type"].split(";")[0] == OFFERED[name]
    assert answer.headers["vary"].startswith("Accept")


def test_every_line_of_an_accept_header_counts(api):
    lines = [("Accept", "image/png"), ("Accept", "text/csv")]
    # Not api.get: it would add the default header of httpx.
    answer = api.send(httpx.Request("GET", f"{api.base_url}/data?end_timestamp=2024-05-20T00:01", headers=lines))
    assert answer.headers["content-type"].startswith("text/csv")


@given(lines=st.lists(st.integers(0, 9999)), cuts=st.lists(st.integers(0, 300)))
def test_lines_become_a_json_list_however_they_are_split(lines, cuts):
    copied = b"".join(b"%d\n" % line for line in lines)
    pieces = [copied[start:end] for start, end in pairwise(sorted({0, *cuts, len(copied)}))]
    assert json.loads(b"".join(json_list(pieces))) == lines


def test_rows_are_streamed_in_pieces_of_256_kib(fonte_pool):
    pieces = [len(piece) for piece in CopyOut(fonte_pool, "SELECT * FROM data", {}, "FORMAT csv")]
    assert len(pieces) > 2
    assert max(pieces) == 256 * 1024


@pytest.mark.parametrize("form", ["json", "csv", "arrow"])
def test_a_client_that_disconnects_ends_the_query(administrator, large_fonte, form):
    with connector_over(large_fonte) as base_url, administrator.connect() as connection:
        with httpx.stream("GET", f"{base_url}/data?format={form}") as answer:
            pieces = answer.iter_raw(1000)
            next(pieces)
            assert running(connection, large_fonte.database) == 1
        wait_until(lambda: running(connection, large_fonte.database) == 0)
        assert httpx.get(f"{base_url}/health").status_code == 200


def test_closing_a_copy_ends_its_waiting_query(administrator, fonte, fonte_pool):
    with fonte_pool.begin() as holder, administrator.connect() as connection:
        holder.execute(text("LOCK TABLE data"))
        rows = CopyOut(fonte_pool, "SELECT * FROM data", {}, "FORMAT csv")
        wait_until(lambda: running(connection, fonte.database) == 2)
        rows.close()
        wait_until(lambda: running(connection, fonte.database) == 1)
        wait_until(lambda: fonte_pool.pool.checkedout() == 1)


def test_a_copy_closed_before_its_query_sends_none(fonte_pool):
    class Awaited(dict):
        """Parameters that can be read only after the copy is closed."""

        def __getitem__(self, name):
            wait_until(lambda: rows._closed)
            with rows._connected:
                return super().__getitem__(name)

    with fonte_pool.begin() as holder:
        holder.execute(text("LOCK TABLE data"))
        rows = CopyOut(fonte_pool, "SELECT power + %(one)s FROM data", Awaited(one=1), "FORMAT csv")
        wait_until(lambda: rows._raw)
        rows.close()
        wait_until(lambda: fonte_pool.pool.checkedout() == 1)


def test_a_copy_closed_before_its_connection_yields_no_row(fonte, make_pool):
    pool = make_pool(fonte)
    with pool.connect(), pool.connect():
        rows = CopyOut(pool, "SELECT * FROM data", {}, "FORMAT csv")
        rows.close()
    assert list(rows) == []


def test_the_settings_of_server_and_environment_do_not_change_an_answer(administrator, fonte, fonte_pool, monkeypatch):
    third = 1 / 3
    with fonte_pool.begin() as connection:
        connection.execute(
            text("INSERT INTO data (timestamp, power) VALUES ('2020-01-01 00:00Z', :third)"), {"third": third}
        )
    with administrator.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {fonte.database} SET extra_float_digits = -5"))
        connection.execute(text(f"ALTER DATABASE {fonte.database} SET timezone = 'America/Sao_Paulo'"))
    monkeypatch.setenv("PGOPTIONS", "-c extra_float_digits=-5")
    with connector_over(fonte) as base_url:
        assert httpx.get(f"{base_url}/data?end_timestamp=2021-01-01&columns=power").json()[0]["power"] == third
        assert httpx.get(f"{base_url}/period").json()["first_timestamp"] == "2020-01-01T00:00:00Z"


def test_rows_beyond_the_year_9999_are_left_out_of_the_period(fonte_pool, connector):
    with fonte_pool.begin() as connection:
        connection.execute(text("ALTER TABLE data DROP CONSTRAINT data_timestamp_has_four_digit_year"))
        connection.execute(text("INSERT INTO data VALUES ('10500-01-01 00:00Z', 1, 1, 1), ('infinity', 1, 1, 1)"))
    assert httpx.get(f"{connector}/period").json()["last_timestamp"] == "2024-05-29T23:59:00Z"


def test_columns_have_units_and_descriptions(api):
    assert [(c["name"], c["unit"]) for c in api.get("/columns").json()] == [
        ("wind_speed", "m/s"),
        ("power", "kW"),
        ("ambient_temperature", "degC"),
    ]
    assert all(column["description"] for column in api.get("/columns").json())


def test_the_period_is_that_of_the_table(api, connector, fonte_pool):
    assert api.get("/period").json() == {
        "first_timestamp": "2024-05-20T00:00:00Z",
        "last_timestamp": "2024-05-29T23:59:00Z",
        "rows": 14400,
    }
    with fonte_pool.begin() as connection:
        connection.execute(text("DELETE FROM data"))
    assert httpx.get(f"{connector}/period").json() == {"first_timestamp": None, "last_timestamp": None, "rows": 0}
    assert httpx.get(f"{connector}/data").json() == []


def test_an_unreachable_database_is_a_503_until_it_returns(administrator, fonte):
    name = fonte.database
    with connector_over(fonte) as base_url, administrator.connect() as connection:
        assert httpx.get(base_url + DAY).status_code == 200
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        terminate(connection, name)
        for path in (DAY, "/health", "/period"):
            answer = httpx.get(base_url + path)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert name not in answer.text
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        assert len(httpx.get(base_url + DAY).json()) == 1440
        assert httpx.get(f"{base_url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("name", ["engine", "streams"])
def test_the_connections_of_the_connector_are_read_only(fonte, name):
    from fonte.connector import app

    async def statement():
        async with app.router.lifespan_context(app) as state:
            with state[name].connect() as connection:
                connection.execute(text("DELETE FROM data"))

    import asyncio

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FONTE_DATABASE_URL", fonte.render_as_string(hide_password=False))
        with pytest.raises(Exception, match="read-only transaction"):
            asyncio.run(statement())


def test_a_database_lost_during_an_answer_aborts_it(administrator, large_fonte):
    # A small receive buffer, so that the answer does not fit into it.
    transport = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)])
    with connector_over(large_fonte) as base_url, httpx.Client(transport=transport) as client:
        with client.stream("GET", f"{base_url}/data") as answer, administrator.connect() as connection:
            chunks = answer.iter_raw(1000)
            next(chunks)
            terminate(connection, large_fonte.database)
            with pytest.raises(httpx.RemoteProtocolError):
                for _ in chunks:
                    pass


def test_the_description_has_the_parameters_and_units_of_the_samples(api):
    description = api.get("/openapi.json").json()
    operation = description["paths"]["/data"]["get"]
    # OpenAPI describes an Accept header by the media types of the answer, not as a parameter.
    assert [p["name"] for p in operation["parameters"]] == ["start_timestamp", "end_timestamp", "columns", "format"]
    assert operation["parameters"][2]["schema"]["uniqueItems"]
    sample = description["components"]["schemas"]["Sample"]["properties"]
    assert sample["wind_speed"]["description"] == "Wind speed at the nacelle, m/s"


def test_the_description_links_columns_and_period_to_data(api):
    paths = api.get("/openapi.json").json()["paths"]
    links = {path: paths[path]["get"]["responses"]["200"]["links"]["data"] for path in ("/columns", "/period")}
    assert links == {
        "/columns": {"operationId": "data", "parameters": {"columns": "$response.body#/0/name"}},
        "/period": {"operationId": "data", "parameters": {"start_timestamp": "$response.body#/first_timestamp"}},
    }
    assert paths["/data"]["get"]["operationId"] == "data"


def test_the_sessions_of_the_connector_carry_its_name(administrator, fonte, connector):
    with administrator.connect() as connection:
        known = text("SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = :name")
        assert httpx.get(f"{connector}/health").status_code == 200
        assert "fonte connector" in connection.execute(known, {"name": fonte.database}).scalars().all()


def test_a_connection_lost_during_a_copy_prints_no_other_error(run_command, fonte):
    """In another process, where unhandled log records go to standard error."""
    code = """
from fonte_alvo import settings
from fonte_alvo import copy, engine
from sqlalchemy import text

url = settings.fonte_database_url()
rows = iter(copy.CopyOut(engine.create(url, "reader"), "SELECT generate_series(1, 9999999)", {}, "FORMAT csv"))
next(rows)
with engine.create(url, "killer").connect() as killer:
    other = "datname = current_database() AND pid <> pg_backend_pid()"
    killer.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {other}"))
try:
    list(rows)
except Exception as error:
    print(engine.reason(error))
"""
    run = run_command("-c", code, FONTE_DATABASE_URL=fonte.render_as_string(hide_password=False))
    # psycopg2 may print a second error that it met while raising the first.
    assert (run.returncode, "during reset" in run.stderr) == (0, False)
    assert run.stdout.count("\n") == 1
