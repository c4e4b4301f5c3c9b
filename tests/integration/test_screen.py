"""The routes of Alvo's page: periods reduced to a screen, the power curve, Fonte's samples, and its files."""

import math
import re
import statistics
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
from sqlalchemy import text
from support.faulty import answering, http
from support.project import alvo_api as served
from support.project import fill_year, plans

import etl
from alvo import api, schema, screen
from alvo.aggregation import aggregate
from alvo.load import replace_period
from fonte_alvo import engine

START = datetime(2024, 5, 20, tzinfo=UTC)
DAY = timedelta(days=1)
WINDOW = timedelta(minutes=10)
DAYS = 10
WINDOWS = np.datetime64("2024-05-20", "us") + np.arange(DAYS * 144) * np.timedelta64(600_000_000, "us")
GAPS = [(30, 50), (51, 52), (300, 700)]


def signals():
    """Ten days of two variables with gaps; one window has no standard deviation."""
    random = np.random.default_rng(1)
    speed = random.uniform(0, 25, len(WINDOWS))
    values = {}
    for name, mean in (("power", speed**3 / 10), ("wind_speed", speed)):
        spread = random.uniform(0, 2, (3, len(WINDOWS)))
        values |= {f"{name}_mean": mean, f"{name}_min": mean - spread[0], f"{name}_max": mean + spread[1]}
        values[f"{name}_std"] = spread[2]
    values["power_std"][7] = np.nan
    values["power_count"] = np.full(len(WINDOWS), 10.0)
    values["mean"] = values["_mean"] = np.ones(len(WINDOWS))
    for first, last in GAPS:
        for each in values.values():
            each[first:last] = np.nan
    return values


WRITTEN = signals()


@pytest.fixture(scope="module")
def filled(make_database):
    url = make_database()
    pool = engine.create(url, "test")
    replace_period(pool, START, START + DAYS * DAY, WINDOWS, WRITTEN)
    pool.dispose()
    return url


@pytest.fixture(scope="module")
def client(filled, shared_connector):
    """The API over Alvo and a Fonte."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FONTE_API_URL", shared_connector)
        with served(filled) as base_url, httpx.Client(base_url=base_url) as client:
            yield client


def asked(start, end, **more):
    return {"start_timestamp": start.isoformat(), "end_timestamp": end.isoformat(), **more}


def naive(name, first, last):
    """Return the statistics of the windows [first, last), computed one value at a time."""
    values = {s: [v for v in WRITTEN[f"{name}_{s}"][first:last].tolist() if v == v] for s in screen.STATISTICS}
    if not values["mean"]:
        return dict.fromkeys(screen.STATISTICS)
    squares = [value**2 for value in values["std"]]
    return {
        "mean": statistics.fmean(values["mean"]),
        "min": min(values["min"]),
        "max": max(values["max"]),
        "std": math.sqrt(statistics.fmean(squares) + statistics.pvariance(values["mean"])) if squares else None,
    }


@pytest.mark.parametrize(
    ("start", "end", "points", "bucket_s"),
    [
        (START, START + DAY, 144, 600),
        (START, START + DAY, 143, 1200),
        (START, START + DAY, 1000, 600),
        (START, START + 10 * DAY, 1000, 1200),
        (START, START + 10 * DAY, 100, 10800),
        (START, START + 10 * DAY, 12, 86400),
        (START, START + 10 * DAY, 6, 2 * 86400),
        (START, START + 10 * DAY, 1, 10 * 86400),
        (START - 30 * DAY, START + 30 * DAY, 7, 9 * 86400),
        (START + timedelta(minutes=3), START + timedelta(hours=7), 20, 1800),
        (START + timedelta(hours=5), START + timedelta(hours=8), 1000, 600),
    ],
)
def test_a_bucket_has_the_statistics_of_its_windows(client, start, end, points, bucket_s):
    answer = client.get("/view", params=asked(start, end, points=points)).json()
    begin = datetime.fromisoformat(answer["start_timestamp"])
    assert (answer["bucket_s"], begin) == (bucket_s, start - (start - START) % WINDOW)
    assert list(answer["variables"]) == ["power", "wind_speed"]
    for name, buckets in answer["variables"].items():
        assert buckets.keys() == {*screen.STATISTICS, "windows", "means"}
        assert {len(values) for values in buckets.values()} == {-((begin - end) // timedelta(seconds=bucket_s))}
        assert all(type(windows) is int for windows in buckets["windows"] + buckets["means"])
        for number, windows in enumerate(buckets["windows"]):
            bounds = [begin + timedelta(seconds=bucket_s) * each for each in (number, number + 1)]
            # Windows that begin in the bucket and in the period.
            first, last = (
                min(max(0, -((START - bound) // WINDOW)), len(WINDOWS))
                for bound in (max(bounds[0], start), min(bounds[1], end))
            )
            assert windows == buckets["means"][number] == np.isfinite(WRITTEN[f"{name}_mean"][first:last]).sum()
            for statistic, value in naive(name, first, last).items():
                assert buckets[statistic][number] == (value if value is None else pytest.approx(value, rel=1e-9))


def test_there_are_never_more_buckets_than_points(client):
    for points in (1, 2, 5, 99, 500, 5000):
        for days in (1, 7, 11, 366, 3653):
            answer = client.get("/view", params=asked(START, START + days * DAY, points=points)).json()
            assert len(answer["variables"]["power"]["windows"]) <= points


def test_a_view_may_span_all_years(client):
    query = {"start_timestamp": "0001-01-01", "end_timestamp": "9999-12-31T23:59:59.999999", "points": 3}
    answer = client.get("/view", params=query).json()
    found = np.isfinite(WRITTEN["power_mean"])
    assert sum(answer["variables"]["power"]["windows"]) == found.sum()
    assert client.get("/power-curve", params=asked(START, START + 3000 * DAY)).status_code == 200


@pytest.mark.parametrize(
    ("start", "end", "previous", "following"),
    [
        (START - DAY, START, None, 0),
        (START, START + 10 * DAY, None, None),
        (START + 10 * DAY, START + 11 * DAY, 1439, None),
        (START + 3 * DAY, START + 4 * DAY, 299, 700),
        (START + timedelta(minutes=5), START + timedelta(minutes=10), 0, 1),
    ],
)
def test_a_view_names_the_nearest_windows_outside_it(client, start, end, previous, following):
    answer = client.get("/view", params=asked(start, end)).json()
    expected = [
        None if number is None else f"{WINDOWS[number].item():%Y-%m-%dT%H:%M:%S}Z" for number in (previous, following)
    ]
    assert [answer["previous_timestamp"], answer["next_timestamp"]] == expected


def test_the_power_curve_has_a_point_for_each_window_or_cell(client):
    few = client.get("/power-curve", params=asked(START, START + timedelta(hours=1))).json()
    pairs = sorted(zip(WRITTEN["wind_speed_mean"][:6].tolist(), WRITTEN["power_mean"][:6].tolist(), strict=True))
    assert list(zip(few["wind_speed"], few["power"], strict=True)) == pairs
    assert few["windows"] == [1] * 6
    many = client.get("/power-curve", params=asked(START, START + DAYS * DAY)).json()
    found = np.isfinite(WRITTEN["power_mean"])
    assert sum(many["windows"]) == found.sum()
    assert len(many["windows"]) < 500
    assert many["wind_speed"] == sorted(many["wind_speed"])
    np.testing.assert_allclose(many["power"], np.array(many["wind_speed"]) ** 3 / 10, atol=25)
    mean = np.average(many["power"], weights=many["windows"])
    assert mean == pytest.approx(WRITTEN["power_mean"][found].mean())


def test_the_period_is_from_the_first_window_to_the_last(client):
    extent = {"first_timestamp": "2024-05-20T00:00:00Z", "last_timestamp": "2024-05-29T23:50:00Z"}
    assert client.get("/period").json() == extent | {"live": False}


def test_an_alvo_without_time_zones_has_the_same_period_and_neighbours(client, make_database, make_pool):
    url = make_database()
    replace_period(make_pool(url), START, START + DAYS * DAY, WINDOWS, WRITTEN)
    with make_pool(url).begin() as connection:
        connection.execute(text("ALTER TABLE data ALTER timestamp TYPE timestamp"))
    with served(url) as base_url:
        assert httpx.get(f"{base_url}/period").json() == client.get("/period").json()
        query = {"params": asked(START + 3 * DAY, START + 4 * DAY)}
        assert httpx.get(f"{base_url}/view", **query).json() == client.get("/view", **query).json()


@pytest.mark.parametrize(
    ("record", "live"),
    [
        ("INSERT INTO load VALUES ('2024-05-20Z', '2024-05-21Z', 'power', '{mean}', 1, 1, '2024-05-22 11:59Z')", True),
        ("INSERT INTO load VALUES ('2024-05-20Z', '2024-05-21Z', 'power', '{mean}', 1, 1, '2024-05-22 12:01Z')", False),
        ("DROP TABLE load", True),
    ],
)
def test_a_feed_is_live_after_a_load_within_36_hours_or_without_records(alvo, alvo_pool, record, live):
    with alvo_pool.begin() as connection:
        schema.create_absent(connection)
        connection.execute(text(record))
    with served(alvo) as base_url:
        assert httpx.get(f"{base_url}/period").json()["live"] is live


def test_the_variables_have_the_units_of_the_connector(client):
    units = [{"name": "power", "unit": "kW"}, {"name": "wind_speed", "unit": "m/s"}]
    assert client.get("/variables").json() == units
    assert client.get("/variables").json() == units


def test_the_samples_are_those_of_fonte(client, shared_connector):
    query = asked(START, START + timedelta(minutes=3), columns=["power", "wind_speed"])
    records = httpx.get(f"{shared_connector}/data", params=query).json()
    answer = client.get("/samples", params=query).json()
    assert answer["timestamps"] == [datetime.fromisoformat(record["timestamp"]).timestamp() for record in records]
    assert answer["columns"] == {name: [record[name] for record in records] for name in ("power", "wind_speed")}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/view", "start_timestamp"),
        ("/view?start_timestamp=2024-05-20", "end_timestamp: missing"),
        ("/view?start_timestamp=2024-05-20&end_timestamp=2024-05-20", "is not before"),
        ("/view?start_timestamp=2024-05-20&end_timestamp=2024-05-21&points=0", "points='0'"),
        ("/power-curve?start_timestamp=2024-05-20", "end_timestamp"),
        ("/samples?start_timestamp=2024-05-20&end_timestamp=2024-05-21", "columns"),
        ("/samples?start_timestamp=2024-05-20&end_timestamp=2024-05-23&columns=power", "a period of 2 days at most"),
        (
            "/samples?start_timestamp=2024-05-20&end_timestamp=2024-05-21&columns=gust",
            "columns='gust': expected 'wind_",
        ),
    ],
)
def test_a_bad_request_is_a_422_that_names_the_value(client, path, said):
    answer = client.get(path)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_without_fonte_there_are_no_units_and_samples_are_a_503_with_the_cause(filled):
    with served(filled) as base_url:
        assert [variable["unit"] for variable in httpx.get(f"{base_url}/variables").json()] == [None, None]
        answer = httpx.get(f"{base_url}/samples", params=asked(START, START + DAY, columns="power"))
    assert answer.status_code == 503
    assert (
        answer.json()["detail"] == "FONTE_API_URL is unset where this server runs: set it, and start the server again"
    )


def test_an_unreachable_fonte_affects_only_units_and_samples(filled, refused_port, monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", f"http://127.0.0.1:{refused_port}")
    with served(filled) as base_url:
        assert [variable["unit"] for variable in httpx.get(f"{base_url}/variables").json()] == [None, None]
        answer = httpx.get(f"{base_url}/samples", params=asked(START, START + DAY, columns="power"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["detail"] == "Fonte does not answer as it should; ask again later"
        assert httpx.get(f"{base_url}/view", params=asked(START, START + DAY)).status_code == 200


def test_samples_that_cannot_be_used_are_a_503_that_says_why_and_not_to_ask_later(filled, monkeypatch):
    twice = [{"timestamp": "2024-05-20T00:00:00Z", "power": value} for value in (1.0, 2.0)]
    with answering(http(body=twice), every_route=True) as fonte:
        monkeypatch.setenv("FONTE_API_URL", fonte.url)
        with served(filled) as base_url:
            answer = httpx.get(f"{base_url}/samples", params=asked(START, START + DAY, columns="power"))
    assert answer.status_code == 503
    assert "retry-after" not in answer.headers
    assert answer.json()["detail"].startswith("Fonte's answer cannot be used: ")


def test_the_units_come_once_fonte_answers(filled, monkeypatch):
    with answering(http(503), http(body=[{"name": "power", "unit": "kW"}]), every_route=True) as fonte:
        monkeypatch.setenv("FONTE_API_URL", fonte.url)
        with served(filled) as base_url:
            answers = [httpx.get(f"{base_url}/variables").json() for _ in range(2)]
    assert [[variable["unit"] for variable in answer] for answer in answers] == [[None, None], ["kW", None]]


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "1.7e308", "-1e150", "5e-324", "1e-200"])
def test_any_double_can_be_shown(alvo, alvo_pool, value):
    signals = {f"{name}_{s}": np.full(3, 2.0) for name in ("power", "wind_speed") for s in screen.STATISTICS}
    replace_period(alvo_pool, START, START + DAY, WINDOWS[:3], signals)
    with alvo_pool.begin() as connection:
        connection.execute(text(f"UPDATE data SET value = '{value}' WHERE timestamp = '2024-05-20 00:10Z'"))
    number = float(value)
    shown = number if math.isfinite(number) else None
    with served(alvo) as base_url:
        query = asked(START, START + timedelta(minutes=30))
        power = httpx.get(f"{base_url}/view", params=query).json()["variables"]["power"]
        assert (power["min"], power["max"], power["windows"]) == ([2, shown, 2], [2, shown, 2], [1, 1, 1])
        assert power["mean"] == [2, shown if abs(number) < 1e140 else None, 2]
        whole = httpx.get(f"{base_url}/view", params=query | {"points": 1}).json()["variables"]["power"]
        assert whole["mean"] == [pytest.approx(4 / 3) if abs(number) < 1 else None]
        curve = httpx.get(f"{base_url}/power-curve", params=query).json()
        assert sum(curve["windows"]) == (3 if abs(number) < 1 else 2)


def test_a_variable_without_some_statistics_has_the_others(alvo, alvo_pool):
    replace_period(alvo_pool, START, START + DAY, WINDOWS[:2], {"power_max": np.ones(2), "gust_std": np.ones(2)})
    with served(alvo) as base_url:
        view = httpx.get(f"{base_url}/view", params=asked(START, START + timedelta(minutes=20))).json()
        shown = {"windows": [1, 1], "means": [0, 0]}
        assert view["variables"] == {"gust": shown, "power": {"max": [1, 1], **shown}}
        curve = httpx.get(f"{base_url}/power-curve", params=asked(START, START + DAY)).json()
        assert curve == {"wind_speed": [], "power": [], "windows": []}


def test_windows_without_a_mean_do_not_count_in_a_mean(alvo, alvo_pool):
    extremes = {"power_mean": np.full(6, np.nan), "power_max": np.ones(6)}
    replace_period(alvo_pool, START, START + timedelta(hours=1), WINDOWS[:6], {**extremes, "power_mean": np.eye(6)[0]})
    replace_period(alvo_pool, START + DAY, START + 2 * DAY, WINDOWS[144:150], extremes)
    with served(alvo) as base_url:
        query = asked(START, START + 2 * DAY, points=2)
        power = httpx.get(f"{base_url}/view", params=query).json()["variables"]["power"]
    assert (power["windows"], power["means"]) == ([6, 6], [6, 0])


def test_counts_alone_are_no_part_of_the_period_that_is_shown(alvo, alvo_pool):
    replace_period(alvo_pool, START, START + DAY, WINDOWS[:2], {"power_mean": np.ones(2)})
    replace_period(alvo_pool, START + DAY, START + 2 * DAY, WINDOWS[144:146], {"power_count": np.ones(2)})
    with served(alvo) as base_url:
        period = httpx.get(f"{base_url}/period").json()
        view = httpx.get(f"{base_url}/view", params=asked(START, START + timedelta(minutes=10))).json()
    assert datetime.fromisoformat(period["last_timestamp"]) == START + WINDOW
    assert (datetime.fromisoformat(view["next_timestamp"]), view["previous_timestamp"]) == (START + WINDOW, None)


def test_an_empty_alvo_has_no_period_and_an_empty_view(alvo, alvo_pool):
    with alvo_pool.begin() as connection:
        schema.create_absent(connection)
    with served(alvo) as base_url:
        nothing = {"first_timestamp": None, "last_timestamp": None, "live": False}
        assert httpx.get(f"{base_url}/period").json() == nothing
        assert httpx.get(f"{base_url}/variables").json() == []
        view = httpx.get(f"{base_url}/view", params=asked(START, START + DAY)).json()
        assert (view["variables"], view["previous_timestamp"], view["next_timestamp"]) == ({}, None, None)


def test_a_day_is_viewed_through_the_primary_key(alvo_pool):
    with alvo_pool.begin() as connection:
        fill_year(connection)
        found = plans(connection)
        start, end = START.replace(year=2023), START.replace(year=2023) + DAY
        ids = {f"v_{number}": number for number in range(1, 9)}
        screen.buckets(connection, ids, ["v"], start, end, 144)
        screen.neighbours(connection, ids.values(), start, end)
        screen.curve(connection, 1, 2, start, end)
    assert len(found) == 3
    for plan in found:
        assert "data_pkey" in plan
        assert "Seq Scan on data" not in plan
    # The extent is computed once, not for each window.
    assert "CTE extent" in found[-1]


def test_the_page_and_its_files_are_cached_until_they_change(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name in ["", *set(re.findall(r'(?:src|href)="(page/[^"]+)"', page.text))]:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        again = client.get(f"/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert "://" not in page.text


@pytest.mark.parametrize("path", ["/page", "/page/", "/page/none.js", "/page/../api.py", "/page/%2e%2e/api.py", "/x"])
def test_no_other_path_is_served(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "no such path: /docs describes those that exist"})


@pytest.mark.parametrize("path", ["/", "/page/page.js"])
def test_the_page_refuses_post(client, path):
    answer = client.post(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert answer.json()["detail"] == f"POST {path}: expected GET or HEAD or OPTIONS"


def test_the_description_omits_the_routes_of_the_page(client):
    assert api.app.state.fonte_api_url is None
    assert client.get("/openapi.json").json()["paths"].keys() == {"/data", "/health", "/signals"}


def test_a_view_of_many_variables_has_no_more_values_than_one_of_few(make_database, make_pool):
    url = make_database()
    names = (
        "SELECT 'v' || number || '_' || s FROM generate_series(1, 250) number, unnest('{mean,min,max,std}'::text[]) s"
    )
    moments = "generate_series('2024-05-20Z', '2024-05-21Z'::timestamptz, '10 minutes') AS moment"
    with make_pool(url).begin() as connection:
        schema.create_absent(connection)
        connection.execute(text(f"INSERT INTO signal (name) {names}"))
        connection.execute(text(f"INSERT INTO data SELECT moment, id, 1 FROM signal, {moments}"))
    with served(url) as base_url:
        asked = {"start_timestamp": "2024-05-20", "end_timestamp": "2024-06-20", "points": 5000}
        answer = httpx.get(f"{base_url}/view", params=asked, timeout=60).raise_for_status()
    variables = answer.json()["variables"]
    assert len(variables) == 250
    values = sum(len(each) for statistics in variables.values() for each in statistics.values())
    assert 50_000 < values <= 1.25 * api.MOST_VALUES


def test_loaded_values_are_read_back_as_aggregated(alvo_pool):
    timestamps = np.datetime64("2024-05-20", "us") + np.arange(60) * np.timedelta64(1, "m")
    power = np.where(np.arange(60) // 10 == 2, np.nan, np.arange(60.0))
    window_starts, signals = aggregate(timestamps, {"power": power, "wind_speed": power * 2})
    end = START + timedelta(hours=1)
    replace_period(alvo_pool, START, end, window_starts, signals)
    read_starts, read_signals, not_finite = screen.values(alvo_pool, START, end, [*signals, "unknown_mean"])
    np.testing.assert_array_equal(read_starts, window_starts)
    assert np.isnan(read_signals.pop("unknown_mean")).all()
    np.testing.assert_equal(read_signals, signals)
    assert not_finite == 0


def test_values_outside_the_period_are_not_read(fonte_api, alvo_pool):
    assert etl.main(["2024-05-20"]) == 0
    hours = [START + timedelta(hours=hour) for hour in (1, 2)]
    starts, signals, _ = screen.values(alvo_pool, *hours, ["power_mean"])
    assert [str(starts[0]), str(starts[-1])] == ["2024-05-20T01:00:00.000000", "2024-05-20T01:50:00.000000"]
    assert len(signals["power_mean"]) == 6
