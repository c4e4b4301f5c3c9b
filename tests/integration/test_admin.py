"""The routes that change data: whom they admit, which rows they change, and how the log records it."""

import hmac
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from sqlalchemy import text
from support.project import ADMIN, TOKEN, connector_over, set_admin

import seed
from fonte import seeding, synthetic

CHANGES = [("DELETE", "/data"), ("POST", "/data/randomize")]


@pytest.fixture
def admin_settings(fonte, monkeypatch):
    set_admin(monkeypatch, "Fonte", fonte)


@pytest.fixture
def connector(fonte, admin_settings):
    with connector_over(fonte) as base_url:
        yield base_url


@pytest.fixture
def admin(connector):
    with httpx.Client(base_url=connector, headers=ADMIN) as client:
        yield client


@pytest.fixture
def held(fonte_pool):
    """Read the rows of Fonte as tuples, ordered by time."""

    def read(where="true"):
        with fonte_pool.connect() as connection:
            return connection.execute(text(f"SELECT * FROM data WHERE {where} ORDER BY timestamp")).all()

    return read


@contextmanager
def audited(caplog):
    """Give a list that holds the audit lines of the log after the block."""
    lines = []
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="uvicorn.error"):
        yield lines
    lines += [record.getMessage() for record in caplog.records if record.getMessage().startswith("audit ")]


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("missing", ["FONTE_ADMIN_DATABASE_URL", "FONTE_ADMIN_TOKEN"])
def test_without_an_admin_every_change_is_refused(
    fonte, admin_settings, monkeypatch, held, caplog, method, path, missing
):
    monkeypatch.delenv(missing)
    before = held()
    with audited(caplog) as lines, connector_over(fonte) as base_url:
        for headers in ({}, ADMIN, {"Authorization": "Basic eA=="}):
            answer = httpx.request(method, base_url + path, headers=headers)
            assert answer.status_code == 403
            assert answer.json()["detail"].startswith("nothing can be changed here")
    assert held() == before
    assert len(lines) == 3


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    ("authorization", "challenge"),
    [
        (None, 'Bearer realm="admin"'),
        ("", 'Bearer realm="admin"'),
        ("Bearer", 'Bearer realm="admin"'),
        (TOKEN, 'Bearer realm="admin"'),
        ("Basic dXNlcjpwYXNz", 'Bearer realm="admin"'),
        ("Bearer wrong", 'Bearer realm="admin", error="invalid_token"'),
        (f"Bearer {TOKEN[:-1]}", 'Bearer realm="admin", error="invalid_token"'),
        (f"Bearer {TOKEN}=", 'Bearer realm="admin", error="invalid_token"'),
        (f"Bearer {TOKEN.upper()}", 'Bearer realm="admin", error="invalid_token"'),
        (f"Bearer {TOKEN} {TOKEN}", 'Bearer realm="admin", error="invalid_token"'),
        (b"Bearer \xe9\xff", 'Bearer realm="admin", error="invalid_token"'),
    ],
)
def test_without_the_token_nothing_changes_and_the_log_names_the_client(
    connector, held, caplog, method, path, authorization, challenge
):
    before = held()
    headers = {} if authorization is None else {"Authorization": authorization}
    with audited(caplog) as lines:
        answer = httpx.request(method, f"{connector}{path}", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == challenge
    assert answer.json()["detail"].startswith("the admin token is ")
    [line] = lines
    assert line.startswith(f'audit action="{method} {path}" client="127.0.0.1" status=401 refused="the admin token is ')
    assert held() == before


def test_the_token_is_compared_in_constant_time(connector, monkeypatch):
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: compared.append(pair) or False)
    for token in (TOKEN, "wrong"):
        answer = httpx.delete(f"{connector}/data", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401
    assert compared == [(TOKEN.encode(), TOKEN.encode()), (b"wrong", TOKEN.encode())]


@pytest.mark.parametrize("path", ["/data/randomize", "/data?start_timestamp=2024-05-20"])
def test_a_get_changes_nothing_even_with_the_token(admin, held, path):
    before = held()
    assert admin.get(path).status_code == (405 if "randomize" in path else 200)
    assert admin.head(path).status_code == admin.get(path).status_code
    assert held() == before


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_case_of_the_scheme_does_not_matter(connector, scheme):
    answer = httpx.delete(f"{connector}/data?end_timestamp=2001-01-01", headers={"Authorization": f"{scheme} {TOKEN}"})
    assert (answer.status_code, answer.json()) == (200, {"rows": 0})


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("start_timestamp=2024-05-20T00:01&end_timestamp=2024-05-20T00:02", 1),
        ("start_timestamp=2024-05-21&end_timestamp=2024-05-22", 1440),
        ("end_timestamp=2024-05-20T03:00:00%2B02:00", 60),
        ("start_timestamp=2024-05-29T23:58", 2),
        ("start_timestamp=2030-01-01", 0),
        ("", 14400),
    ],
)
def test_a_period_is_deleted_and_no_other_row(admin, held, caplog, query, rows):
    bounds = dict(part.split("=") for part in query.split("&")) if query else {}
    start, end = bounds.get("start_timestamp", "-infinity"), bounds.get("end_timestamp", "infinity")
    outside = held(f"timestamp < '{start}' OR timestamp >= '{end.replace('%2B', '+')}'")
    with audited(caplog) as lines:
        answer = admin.delete(f"/data?{query}")
    assert (answer.status_code, answer.json()) == (200, {"rows": rows})
    assert held() == outside
    assert len(outside) == 14400 - rows
    [line] = lines
    assert line.startswith(f'audit action="DELETE /data" client="127.0.0.1" rows={rows} start_timestamp=')
    assert not re.search(r"[\r\n]", line)


@pytest.mark.parametrize(
    ("request_line", "said"),
    [
        ("DELETE /data?start_timestamp=yesterday", "start_timestamp='yesterday': expected a timestamp such as"),
        ("DELETE /data?start=2024-05-20", "start: no such parameter"),
        ("DELETE /data?start_timestamp=2024-05-21&end_timestamp=2024-05-20", "is not before end_timestamp"),
        ("POST /data/randomize?start_timestamp=2024-05-20&end_timestamp=2025-05-21T00:00:01", "366 days at most"),
        ("POST /data/randomize?start_timestamp=2030-01-01", "is not before end_timestamp 2024-05-30 00:00:00+00:00"),
        ("POST /data/randomize?profile=storm", "profile='storm': expected 'turbine' or 'uniform'"),
        ("POST /data/randomize?random_seed=-1", "random_seed='-1': expected greater than or equal to 0"),
        ("POST /data/randomize?random_seed=4294967296", "random_seed='4294967296': expected less than 4294967296"),
        *(
            (f"POST /data/randomize?step_minutes={step}", f"step_minutes='{step}': expected ")
            for step in ("0", "-1", "1441", "1.5", "day")
        ),
    ],
)
def test_an_invalid_change_is_a_422_and_changes_nothing(admin, held, request_line, said):
    before = held()
    method, path = request_line.split()
    answer = admin.request(method, path)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert held() == before


@pytest.mark.parametrize("request_line", ["DELETE /data", "POST /data/randomize"])
@pytest.mark.parametrize(
    "body", ["start_timestamp=2030-01-01", [b"end_timestamp=2022-01-02"]], ids=["whole", "chunked"]
)
def test_a_change_whose_parameters_are_in_its_body_is_refused(admin, held, request_line, body):
    """The route would ignore the body, and change all rows."""
    before = held()
    method, path = request_line.split()
    answer = admin.request(method, path, content=body)
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "expected no body: parameters belong in the URL, as in curl -G",
    )
    assert held() == before


def test_without_a_period_randomize_overwrites_the_seeded_days(admin, held, caplog):
    before = held()
    with audited(caplog) as lines:
        answer = admin.post("/data/randomize").json()
    assert answer["rows"] == 14400
    after = held()
    assert [row[0] for row in after] == [row[0] for row in before]
    assert [row[1:] for row in after] != [row[1:] for row in before]
    columns = synthetic.turbine(seeding.START, seeding.DAYS, answer["random_seed"])
    for place, values in enumerate(columns.values(), start=1):
        np.testing.assert_array_equal(np.array([row[place] for row in after], float), values)
    [line] = lines
    assert re.fullmatch(
        r'audit action="POST /data/randomize" client="127.0.0.1" rows=14400 '
        r'start_timestamp="2024-05-20 00:00:00\+00:00" end_timestamp="2024-05-30 00:00:00\+00:00" '
        rf'step_minutes=1 profile="turbine" random_seed={answer["random_seed"]}',
        line,
    )
    assert admin.post("/data/randomize").json()["random_seed"] != answer["random_seed"]


def test_randomize_fills_exactly_the_minutes_of_the_period(admin, held, fonte_pool):
    with fonte_pool.begin() as connection:
        connection.execute(text("INSERT INTO data VALUES ('2024-05-20 12:00:30Z', 1, 1, 1)"))
    start, end = "2024-05-20 11:59:00.5Z", "2024-05-21 00:01:00.000001Z"
    outside = held(f"timestamp < '{start}' OR timestamp >= '{end}'")
    query = {"start_timestamp": start, "end_timestamp": end, "profile": "uniform", "random_seed": 7}
    answer = admin.post("/data/randomize", params=query)
    assert (answer.status_code, answer.json()) == (200, {"rows": 722, "random_seed": 7})
    assert held(f"timestamp < '{start}' OR timestamp >= '{end}'") == outside
    expected = synthetic.uniform(seeding.START, 2, 7)
    minutes = synthetic.minutes(seeding.START, 2)
    inside = (minutes > np.datetime64("2024-05-20T11:59")) & (minutes <= np.datetime64("2024-05-21T00:01"))
    rows = held(f"timestamp >= '{start}' AND timestamp < '{end}'")
    assert [row[0].replace(tzinfo=None) for row in rows] == minutes[inside].astype(object).tolist()
    assert [row[1:] for row in rows] == list(zip(*(v[inside].tolist() for v in expected.values()), strict=True))


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        ("2024-01-01", "2024-03-01", 60 * 1440),
        ("9999-12-31", "9999-12-31T23:59:59.999999Z", 1440),
        ("0001-01-01", "0001-01-01T00:10:00", 10),
        ("2030-01-01T00:00:01", "2030-01-01T00:00:59", 0),
    ],
)
def test_randomize_takes_any_period_that_the_table_can_hold(admin, held, start, end, rows):
    answer = admin.post("/data/randomize", params={"start_timestamp": start, "end_timestamp": end}, timeout=60)
    assert (answer.status_code, answer.json()["rows"]) == (200, rows)
    assert len(held(f"timestamp >= '{start}Z' AND timestamp < '{end.removesuffix('Z')}Z'")) == rows


def test_concurrent_changes_wait_for_each_other(admin, fonte, held, monkeypatch, capsys):
    monkeypatch.setenv("FONTE_DATABASE_URL", fonte.render_as_string(hide_password=False))
    admin.delete("/data")
    with ThreadPoolExecutor(4) as threads:
        seeds = [threads.submit(admin.post, "/data/randomize", params={"random_seed": seed}) for seed in (1, 2, 3)]
        seeded = threads.submit(seed.main, ["--random-seed", "4"])
    assert [future.result().status_code for future in seeds] == [200, 200, 200]
    assert seeded.result() == 0
    possible = [synthetic.turbine(seeding.START, seeding.DAYS, number)["power"] for number in (1, 2, 3)]
    power = np.array([row[2] for row in held()], float)
    assert any(np.array_equal(power, values, equal_nan=True) for values in possible)


def test_a_change_that_fails_halfway_changes_nothing(admin, held, fonte_pool):
    with fonte_pool.begin() as connection:
        connection.execute(text("ALTER TABLE data ADD CHECK (timestamp < '2024-05-30Z' OR power < 0)"))
    before = held()
    answer = admin.post("/data/randomize?end_timestamp=2024-08-30")
    assert answer.status_code == 503
    assert held() == before


def test_without_its_table_fonte_answers_503_and_says_so(admin, fonte_pool):
    with fonte_pool.begin() as connection:
        connection.execute(text("DROP TABLE data"))
    for method, path in [*CHANGES, ("GET", "/data"), ("GET", "/period")]:
        answer = admin.request(method, path)
        assert answer.status_code == 503
        assert "is not set up" in answer.json()["detail"]


def test_a_reader_sees_the_old_samples_or_the_new_ones(admin, held):
    with ThreadPoolExecutor(1) as thread:
        change = thread.submit(admin.post, "/data/randomize")
        seen = [len(held())]
        while not change.done():
            seen.append(len(held()))
    assert set(seen) == {14400}


@pytest.mark.parametrize(
    ("start", "step", "minutes"),
    [
        ("2024-05-20T00:00:00Z", 7, [0, 7, 14, 21, 28]),
        ("2024-05-20T00:00:30Z", 10, [1, 11, 21]),
        ("2024-05-20T00:05:00Z", 1440, [5]),
    ],
)
def test_step_minutes_sets_the_interval_of_the_random_samples(admin, held, start, step, minutes):
    end = "2024-05-20T00:30:00Z"
    answer = admin.post(
        "/data/randomize", params={"start_timestamp": start, "end_timestamp": end, "step_minutes": step}
    )
    assert answer.json()["rows"] == len(minutes)
    assert [row[0].minute for row in held(f"timestamp >= '{start}' AND timestamp < '{end}'")] == minutes
