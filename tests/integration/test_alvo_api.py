"""Alvo's API, over real HTTP and a real Alvo."""

import csv
import io
import logging
import socket
import threading
import uuid
from contextlib import contextmanager
from datetime import timedelta

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from support.project import ADMIN, TOKEN, alvo_api, alvo_values, begun, fill_year, running, set_admin, wait_until
from support.two_days import START, WINDOWS, WRITTEN, fill, filled

from alvo import api, schema
from alvo.load import Report, replace_period
from fonte_alvo import engine

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def shared_api(make_database):
    """The API over two days of two signals, for tests that only read."""
    with alvo_api(filled(make_database())) as base_url, httpx.Client(base_url=base_url) as client:
        yield client


@pytest.fixture
def base_url(alvo, alvo_pool, monkeypatch):
    """The API over the Alvo of one test, with an admin."""
    fill(alvo_pool)
    set_admin(monkeypatch, "Alvo", alvo)
    with alvo_api(alvo) as base_url:
        yield base_url


@pytest.fixture
def admin(base_url):
    with httpx.Client(base_url=base_url, headers=ADMIN) as client:
        yield client


def expected(first=0, last=288, signals=("power_mean", "power_std")):
    """The answer of /data for these windows: records ordered by time and signal."""
    return [
        {"timestamp": f"{WINDOWS[i].item():%Y-%m-%dT%H:%M:%S}Z", "signal": name, "value": WRITTEN[name][i]}
        for i in range(first, last)
        for name in sorted(signals)
        if not np.isnan(WRITTEN[name][i])
    ]


def test_signals_lists_the_loaded_signals(shared_api):
    assert shared_api.get("/signals").json() == [{"name": "power_mean"}, {"name": "power_std"}]


@pytest.mark.parametrize(
    ("query", "records"),
    [
        ("", expected()),
        ("signals=power_std", expected(signals=["power_std"])),
        ("signals=power_std&signals=power_mean&end_timestamp=2024-05-20T00:20", expected(0, 2)),
        ("start_timestamp=2024-05-21T23:50:00Z", expected(287, 288)),
        ("start_timestamp=2024-05-20T00:10&end_timestamp=2024-05-20T00:20", expected(1, 2)),
        ("start_timestamp=2024-05-20T00:10:00.000001&end_timestamp=2024-05-20T00:20:00.000001", expected(2, 3)),
        ("start_timestamp=2024-05-20T03:00:00%2B03:00&end_timestamp=2024-05-20T00:20", expected(0, 2)),
        ("start_timestamp=2024-05-20&end_timestamp=2024-05-21", expected(0, 144)),
        ("start_timestamp=2030-01-01", []),
    ],
)
def test_a_period_is_half_open_and_ordered_in_every_format(shared_api, query, records):
    answer = shared_api.get(f"/data?{query}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == records
    assert all(list(record) == ["timestamp", "signal", "value"] for record in answer.json())
    answer = shared_api.get(f"/data?{query}", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].split(";")[0] == "text/csv"
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert answer.text.startswith("timestamp,signal,value\n")
    assert [line | {"value": float(line["value"])} for line in lines] == records


def test_the_format_parameter_overrides_the_accept_header(shared_api):
    answer = shared_api.get("/data?format=json", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"].startswith("Accept")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/data?signals=power", "signals='power': expected 'power_mean', 'power_std'"),
        ("/data?signals=power_mean&signals=x_y", "signals='x_y': expected 'power_mean', 'power_std'"),
        ("/data?signals=", "signals=''"),
        ("/data?signals=power%00mean", "signals='power\\x00mean'"),
        ("/data?signals=power_mean%27%3BDROP%20TABLE%20data--", "expected 'power_mean'"),
        ("/data?signals=power_mean&signals=power_mean", "expected each signal once"),
        ("/data?start_timestamp=yesterday", "start_timestamp='yesterday': expected a timestamp such as"),
        ("/data?start_timestamp=2024-05-20&end_timestamp=2024-05-20", "is not before"),
        ("/data?format=arrow", "format='arrow': expected 'json' or 'csv'"),
        ("/data?columns=power", "columns: no such parameter"),
    ],
)
def test_a_bad_request_is_a_422_that_names_the_value_and_what_is_allowed(shared_api, path, said):
    answer = shared_api.get(path)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_an_infinite_value_is_null_in_json_and_infinity_in_csv(base_url, alvo_pool):
    with alvo_pool.begin() as connection:
        connection.execute(text("INSERT INTO data VALUES ('2001-01-01Z', 1, 'Infinity'), ('2001-01-02Z', 1, 5e-324)"))
    answer = httpx.get(f"{base_url}/data?end_timestamp=2002-01-01")
    assert [record["value"] for record in answer.json()] == [None, 5e-324]
    assert "Infinity\n" in httpx.get(f"{base_url}/data?end_timestamp=2002-01-01&format=csv").text


def test_moments_beyond_the_years_1_to_9999_are_left_out(base_url, alvo_pool):
    moments = ["-infinity", "0044-01-01 00:00Z BC", "10000-01-01 00:00Z", "infinity"]
    before = httpx.get(f"{base_url}/data").json()
    with alvo_pool.begin() as connection:
        for moment in moments:
            connection.execute(text("INSERT INTO data VALUES (:moment, 1, 1)"), {"moment": moment})
    assert httpx.get(f"{base_url}/data").json() == before


@settings(max_examples=settings.default.max_examples // 5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), unique=True))
@example(
    names=[f"a{chr(code)}b" for code in range(1, 256)] + ["\\.", "\\N", '"', "\r\n", "\x01\x02", "%s", "\U0001f300"]
)
def test_any_signal_name_is_the_same_in_every_answer(base_url, alvo_pool, names):
    with alvo_pool.begin() as connection:
        connection.execute(text("TRUNCATE signal CASCADE"))
    replace_period(alvo_pool, START, START + DAY, WINDOWS[:1], {name: np.ones(1) for name in names})
    with httpx.Client(base_url=base_url) as client:
        assert [signal["name"] for signal in client.get("/signals").json()] == sorted(names)
        asked = {"signals": names[:20]}
        for params, held in (({}, names), (asked, asked["signals"] or names)):
            assert [record["signal"] for record in client.get("/data", params=params).json()] == sorted(held)
            lines = client.get("/data", params={**params, "format": "csv"}).content.decode()
            rows = csv.DictReader(io.StringIO(lines, newline=""))
            assert [row["signal"] for row in rows] == sorted(held)


def test_many_rows_are_streamed_and_a_client_that_disconnects_ends_the_query(base_url, alvo, alvo_pool, administrator):
    with alvo_pool.begin() as connection:
        many = (
            "SELECT moment, 1, 1 FROM generate_series('2000-01-01Z', '2012-01-01Z'::timestamptz, '10 minutes') moment"
        )
        connection.execute(text(f"INSERT INTO data {many}"))
    transport = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)])
    with administrator.connect() as connection, httpx.Client(transport=transport) as client:
        with client.stream("GET", f"{base_url}/data") as answer:
            assert answer.status_code == 200
            next(answer.iter_raw(1000))
        wait_until(lambda: running(connection, alvo.database) == 0)
    assert httpx.get(f"{base_url}/health").json() == {"status": "ok"}


def test_a_day_of_any_signals_is_read_through_the_primary_key(alvo_pool):
    with alvo_pool.begin() as connection:
        fill_year(connection)
        query = api.DataQuery(start_timestamp="2023-05-20", end_timestamp="2023-05-21")
        for ids in ([3], list(range(1, 9))):
            for form in ("json", "csv"):
                plan = connection.exec_driver_sql(
                    f"EXPLAIN {api._sql(query, form)}", query.bounds() | {"signal_ids": ids}
                )
                plan = "\n".join(plan.scalars())
                assert "data_pkey" in plan
                assert "Seq Scan on data" not in plan


def test_an_alvo_without_its_tables_answers_503_and_says_so(make_database):
    with alvo_api(make_database()) as base_url:
        for path in ("/signals", "/data", "/health"):
            answer = httpx.get(base_url + path)
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, None)
            made = "it has no table signal, which `python -m alvo.schema` makes"
            assert answer.json()["detail"] == f"Alvo's database is not set up: {made}"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DROP TABLE data", "it has no table data, which `python -m alvo.schema` makes"),
        (
            "ALTER TABLE data RENAME value TO reading",
            "its table data has no column value, so it is not Alvo's: correct ALVO_DATABASE_URL",
        ),
        ("ALTER TABLE data DROP CONSTRAINT data_not_nan, ALTER value TYPE text", "it refuses the query; its log"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_with_a_remedy(base_url, alvo_pool, damage, said):
    with alvo_pool.begin() as connection:
        connection.execute(text(damage))
    for path in ("/data", "/health") if "TYPE" not in damage else ["/data"]:
        answer = httpx.get(base_url + path)
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, None), path
        assert answer.json()["detail"].startswith(f"Alvo's database is not set up: {said}")


def test_an_empty_alvo_answers_empty_lists(make_database, make_pool):
    url = make_database()
    with make_pool(url).begin() as connection:
        schema.create_absent(connection)
    with alvo_api(url) as base_url:
        assert httpx.get(f"{base_url}/signals").json() == []
        assert httpx.get(f"{base_url}/data").json() == []
        assert httpx.get(f"{base_url}/data?format=csv").text == "timestamp,signal,value\n"
        refused = httpx.get(f"{base_url}/data?signals=power_mean")
        assert (refused.status_code, refused.json()["detail"]) == (
            422,
            "signals='power_mean': expected none, for Alvo knows no signal yet",
        )


def test_an_unreachable_database_is_a_503(refused_port, alvo):
    with alvo_api(alvo.set(host="127.0.0.1", port=refused_port)) as base_url:
        for path in ("/signals", "/data", "/health"):
            answer = httpx.get(base_url + path)
            assert answer.status_code == 503
            assert str(refused_port) not in answer.text


def test_without_an_admin_a_deletion_is_refused(shared_api):
    answer = shared_api.delete("/data", headers=ADMIN)
    assert answer.status_code == 403
    assert len(shared_api.get("/data").json()) == len(expected())


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}"])
def test_without_the_token_a_deletion_is_refused(base_url, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = httpx.delete(f"{base_url}/data", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith('Bearer realm="admin"')
    assert httpx.get(f"{base_url}/data").json() == expected()


def test_the_admin_deletes_a_period_and_then_all(admin, caplog):
    with caplog.at_level(logging.INFO, logger="uvicorn.error"):
        query = "start_timestamp=2024-05-20T00:10&end_timestamp=2024-05-20T00:20"
        assert admin.delete(f"/data?{query}").json() == {"rows": 2}
    assert (
        'audit action="DELETE /data" client="127.0.0.1" rows=2 start_timestamp="2024-05-20 00:10:00+00:00"'
        in caplog.text
    )
    assert admin.get("/data").json() == expected(0, 1) + expected(2)
    assert admin.delete("/data").json() == {"rows": len(expected()) - 2}
    assert admin.get("/data").json() == []
    assert admin.get("/signals").json() == [{"name": "power_mean"}, {"name": "power_std"}]
    assert admin.delete("/data?signals=power_mean").status_code == 422


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/signals", "/data", "/health"])
def test_no_other_request_changes_anything(admin, method, path):
    if (method, path) != ("DELETE", "/data"):
        answered = {"HEAD": 200, "OPTIONS": 204, "DELETE": 200 if path == "/signals" else 405}
        assert admin.request(method, path).status_code == answered.get(method, 405)
        assert admin.get("/data").json() == expected()
        assert len(admin.get("/signals").json()) == 2


def test_a_deletion_during_a_load_leaves_the_whole_loaded_day(admin, alvo_pool):
    """The deletion runs after the load has read the old rows, most of which it would leave unchanged."""
    changed = np.r_[-1.0, WRITTEN["power_mean"][1:144]]
    deletions = []

    def delete(connection, cursor, statement, *others):
        if "CREATE TEMP TABLE" in statement:
            deletions.append(admin.delete("/data").json()["rows"])

    event.listen(alvo_pool, "before_cursor_execute", delete)
    report = replace_period(alvo_pool, START, START + DAY, WINDOWS[:144], {"power_mean": changed})
    assert deletions == [len(expected())]
    assert report == Report(144, 0, 0)
    assert [value for _, value in sorted(alvo_values(alvo_pool).items())] == changed.tolist()


def test_a_deletion_waits_for_a_running_load(admin, alvo, alvo_pool, administrator):
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND wait_event_type = 'Lock'")
    with alvo_pool.begin() as load, administrator.connect() as connection:
        load.execute(text("UPDATE data SET value = 7 WHERE signal_id = 1"))
        load.execute(text("INSERT INTO data VALUES ('2001-01-01Z', 1, 7)"))
        answers = []
        thread = threading.Thread(target=lambda: answers.append(admin.delete("/data").json()["rows"]))
        thread.start()
        wait_until(lambda: connection.scalar(waiting, {"name": alvo.database}))
        assert admin.get("/data").json() == expected()
    thread.join()
    assert answers == [len(expected()) + 1]
    assert alvo_values(alvo_pool) == {}


def test_a_bound_may_be_a_datetime():
    assert api.DataQuery(start_timestamp=START).bounds() == {"start": START, "end": None}


@pytest.mark.parametrize(("encoding", "name"), [("LATIN1", "größe_mean"), ("SQL_ASCII", "größe_mean")])
def test_an_alvo_in_another_encoding_serves_utf_8(administrator, server, encoding, name):
    with encoded(administrator, server, encoding) as url:
        pool = engine.create(url, "test")
        replace_period(pool, START, START + DAY, WINDOWS[:1], {name: np.ones(1)})
        pool.dispose()
        with alvo_api(url) as base_url:
            for form in ("json", "csv"):
                assert name in httpx.get(f"{base_url}/data?format={form}").raise_for_status().content.decode()


def test_names_that_are_not_utf_8_are_a_503_without_a_traceback(administrator, server, caplog):
    with encoded(administrator, server, "SQL_ASCII") as url:
        with begun(url) as connection:
            schema.create_absent(connection)
            connection.execute(text(r"INSERT INTO signal (name) VALUES (E'gr\xf6\xdfe_mean')"))
        with alvo_api(url) as base_url:
            for path in ("/signals", "/data", "/data?format=csv"):
                assert httpx.get(base_url + path).status_code == 503
        assert [record.exc_info for record in caplog.records if record.levelname == "ERROR"] == [None] * 3


@contextmanager
def encoded(administrator, server, encoding):
    """Create a database with another encoding than the server's; drop it at the end."""
    name = f"test_{encoding.lower()}_{uuid.uuid4().hex}"
    with administrator.connect() as connection:
        options = f"ENCODING '{encoding}' TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"
        connection.execute(text(f"CREATE DATABASE {name} {options}"))
    try:
        yield server.set(database=name)
    finally:
        with administrator.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
