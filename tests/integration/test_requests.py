"""Several days per request: how days are grouped, which days a fault loses, and that results equal single days."""

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from functools import partial
from itertools import pairwise
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.days_connector import Connector, holds
from support.faults import NETWORK, HttpLink, Script, proxied
from support.faulty import HANG, answering, http
from support.project import RANGE, alvo_values, connector_over, seeded, wait_until

import etl
from fonte import arrow, client
from orchestration import day as one
from orchestration import days
from orchestration.days import Limit

POWER = ["--columns", "power"]
BAD_DAY = date(2024, 5, 23)


def between(first, last, zone="UTC"):
    return list(days.between(first, last, ZoneInfo(zone)))


def numbers(groups):
    return [[each.date.day for each in group] for group in groups]


@pytest.fixture
def asked(monkeypatch):
    """The first and last day of each request for samples that the command sends."""
    connect, requests = etl.connect, []

    def note(request):
        if request.url.path == "/data":
            bounds = (datetime.fromisoformat(request.url.params[f"{bound}_timestamp"]) for bound in ("start", "end"))
            start, end = bounds
            requests.append((start.date(), (end - timedelta(minutes=1)).date()))

    def watched(*arguments):
        http = connect(*arguments)
        http.event_hooks["request"] = [note]
        return http

    monkeypatch.setattr(etl, "connect", watched)
    return requests


# How days are grouped.


@pytest.mark.parametrize(
    ("chosen", "limit", "groups"),
    [
        (range(1, 10), Limit(4), [[1, 2, 3, 4], [5, 6, 7, 8], [9]]),
        (range(1, 10), Limit(100), [list(range(1, 10))]),
        (range(1, 4), Limit(1), [[1], [2], [3]]),
        ([1, 2, 4, 5, 6, 9], Limit(10), [[1, 2], [4, 5, 6], [9]]),
        (range(1, 6), Limit(10, fitting=2), [[1, 2], [3, 4], [5]]),
        ([], Limit(10), []),
    ],
)
def test_consecutive_days_share_a_request_up_to_the_limit(chosen, limit, groups):
    month = between(date(2024, 5, 1), date(2024, 5, 31))
    assert numbers(days.requests([month[day - 1] for day in chosen], limit)) == groups


def test_a_changed_limit_applies_to_the_next_request():
    limit = Limit(3)
    groups = days.requests(between(date(2024, 5, 1), date(2024, 5, 9)), limit)
    first = next(groups)
    limit.fitting = 1
    second = next(groups)
    limit.fitting, limit.asked = 100, 2
    assert numbers([first, second, *groups]) == [[1, 2, 3], [4], [5, 6], [7, 8], [9]]


@given(
    st.sets(st.integers(0, 400)).map(sorted),
    st.integers(1, 30),
    st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Apia"]),
)
def test_requests_have_each_day_once_in_order_without_gaps(chosen, most, zone):
    year = between(date(2011, 6, 1), date(2012, 8, 1), zone)
    asked = [year[number] for number in chosen]
    groups = list(days.requests(asked, Limit(most)))
    assert [day for group in groups for day in group] == asked
    assert all(len(group) <= most for group in groups)
    assert all(day.end == following.start for group in groups for day, following in pairwise(group))
    assert all(len(group) == most or group[-1].end < other[0].start for group, other in pairwise(groups))


def test_a_long_range_is_a_request_for_every_ten_days(make_database, alvo, asked, monkeypatch, capsys):
    with connector_over(seeded(make_database(), 65)) as base_url:
        monkeypatch.setenv("FONTE_API_URL", base_url)
        assert etl.main(["2024-05-20", "2024-07-23", *POWER]) == 0
    assert [(last - first).days + 1 for first, last in asked] == [10] * 6 + [5]
    assert "\n65 days: 37,392 values written" in capsys.readouterr().out


def test_resume_requests_only_the_missing_days(fonte_api, alvo_pool, asked, undisturbed):
    for day in (22, 23, 26):
        assert etl.main([f"2024-05-{day}", *POWER]) == 0
    asked.clear()
    assert etl.main([*RANGE, "--resume"]) == 0
    assert [(first.day, last.day) for first, last in asked] == [(20, 21), (24, 25), (27, 29)]
    assert alvo_values(alvo_pool) == undisturbed


# The results equal those of single days.


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Sao_Paulo"])
def test_one_request_gives_the_same_samples_as_a_request_per_day(fonte_api, zone):
    asked = between(date(2024, 5, 19), date(2024, 5, 30), zone)
    requested = []
    with client.connect(fonte_api) as fonte:
        fonte.event_hooks["request"] = [requested.append]
        together = one.extract(fonte, ["power", "wind_speed"], asked)
        assert len(requested) == 1
        for day, samples in zip(asked, together, strict=True):
            (alone,) = one.extract(fonte, ["power", "wind_speed"], [day])
            np.testing.assert_array_equal(samples.timestamps, alone.timestamps)
            for name, values in alone.values.items():
                np.testing.assert_array_equal(samples.values[name], values)
    assert sum(len(samples.timestamps) for samples in together) == 14_400


@pytest.mark.parametrize("per_request", [1, 3, 100])
@pytest.mark.parametrize("at_once", [1, 5])
def test_the_number_of_days_per_request_does_not_change_the_results(
    fonte_api, alvo_pool, undisturbed, capsys, per_request, at_once
):
    options = ["--days-per-request", str(per_request), "--days-at-once", str(at_once)]
    capsys.readouterr()
    assert etl.main(["2024-05-19", *RANGE[1:], *options]) == 5
    output = capsys.readouterr()
    assert alvo_values(alvo_pool) == undisturbed
    assert re.findall("^2024-05-(..)", output.out, re.MULTILINE) == [str(day) for day in range(20, 30)]
    assert output.err.startswith("etl.py: 2024-05-19: Fonte holds no finite sample of power from 2024-05-19 00:00:00")


def test_the_next_request_runs_while_days_of_the_last_one_load(serve, alvo, monkeypatch):
    connector, replace, seen = serve(Connector()), one.replace_period, []

    def wait_for_the_next_request(*arguments):
        wait_until(lambda: len(connector.asked) == min(2 + len(seen) // 3, 3))
        seen.append(len(connector.asked))
        return replace(*arguments)

    monkeypatch.setattr(one, "replace_period", wait_for_the_next_request)
    assert etl.main(["2024-05-20", "2024-05-28", *POWER, "--days-per-request", "3", "--days-at-once", "1"]) == 0
    assert seen == [2, 2, 2, 3, 3, 3, 3, 3, 3]


# A task of a Dask cluster, here on threads: test_dask.py has a cluster.


@pytest.fixture
def on_threads(monkeypatch):
    """The options of a range whose tasks run on threads of this process."""

    @contextmanager
    def executor(dask, at_once):
        with ThreadPoolExecutor(at_once) as threads:
            yield threads, lambda: None

    monkeypatch.setattr(days, "_executor", executor)
    return ["--dask", "threads"]


@pytest.mark.parametrize("per_request", [1, 4, 100])
def test_tasks_give_the_same_results(on_threads, fonte_api, alvo_pool, undisturbed, capsys, per_request):
    capsys.readouterr()
    assert etl.main(["2024-05-19", *RANGE[1:], *on_threads, "--days-per-request", str(per_request)]) == 5
    assert alvo_values(alvo_pool) == undisturbed
    output = capsys.readouterr()
    assert re.findall("^2024-05-(..)", output.out, re.MULTILINE) == [str(day) for day in range(20, 30)]
    assert output.err.startswith("etl.py: 2024-05-19: Fonte holds no finite sample of ")


@pytest.mark.parametrize("asked", [["power", "mean"], ["ambient_temperature", "std", "count"]])
def test_tasks_load_the_asked_variables_and_statistics(on_threads, fonte_api, alvo_pool, asked):
    column, *statistics = asked
    assert etl.main([*RANGE, *on_threads, "--columns", column, "--statistics", *statistics]) == 0
    assert {signal for _, signal in alvo_values(alvo_pool)} == {f"{column}_{statistic}" for statistic in statistics}


@pytest.mark.parametrize(("options", "lost"), [([], range(23, 30)), (["--keep-going"], [23])])
def test_a_task_ends_at_a_failed_day_and_a_new_one_runs_the_others(serve, on_threads, alvo_pool, options, lost):
    connector = serve(Connector(http(500), holds(BAD_DAY)))
    assert etl.main([*RANGE, *POWER, *on_threads, *options]) == 3
    assert {moment.day for moment, _ in alvo_values(alvo_pool)} == {*range(20, 30)} - {*lost}
    one_by_one = [(day, day) for day in range(20, 24)]
    last = [(24, 29)] if options else []
    assert [(first.day, last.day) for first, last in connector.asked] == [(20, 29), *one_by_one, *last]


# Large answers.


def test_days_with_many_samples_get_smaller_requests(serve, alvo, monkeypatch):
    connector = serve(Connector())
    # Room for three days of 24 samples, each a timestamp and a value.
    monkeypatch.setattr(days, "REQUEST_BYTES", 2 * 8 * 24 * 3 + 100)
    assert etl.main(["2024-05-01", "2024-05-31", *POWER]) == 0
    lengths = [(last - first).days + 1 for first, last in connector.asked]
    # The second request starts before a day of the first one is loaded.
    assert lengths == [10, 10, 3, 3, 3, 2]


def test_a_day_that_fills_more_than_a_request_is_requested_alone(serve, alvo, monkeypatch):
    connector = serve(Connector())
    monkeypatch.setattr(days, "REQUEST_BYTES", 1)
    assert etl.main(["2024-05-01", "2024-05-24", *POWER]) == 0
    # The second request is under way before the first answer is known.
    assert [(last - first).days + 1 for first, last in connector.asked] == [10, 10, 1, 1, 1, 1]


def test_the_days_of_a_too_large_answer_are_requested_one_by_one(serve, alvo_pool, monkeypatch):
    monkeypatch.setattr(one, "SEVERAL_DAYS_BYTES", 50_000)
    monkeypatch.setattr(days, "REQUEST_BYTES", 2 * 8 * 1440 * 2 + 100)
    connector = serve(Connector(interval=timedelta(minutes=1)))
    assert etl.main(["2024-05-01", "2024-05-20", *POWER]) == 0
    assert [(last - first).days + 1 for first, last in connector.asked] == [10, *[1] * 10, *[2] * 5]
    assert len(alvo_values(alvo_pool)) == 20 * 144 * 4


def test_only_the_answer_for_several_days_has_a_smaller_limit(serve, alvo_pool, monkeypatch):
    # Less than a day of 1440 timestamps and values.
    monkeypatch.setattr(one, "SEVERAL_DAYS_BYTES", 20_000)
    connector = serve(Connector(interval=timedelta(minutes=1)))
    assert etl.main(["2024-05-01", "2024-05-02", *POWER]) == 0
    assert [(last - first).days + 1 for first, last in connector.asked] == [2, 1, 1]


# A fault loses only its own day.


def rows(*moments):
    return http(body=[{"timestamp": moment, "power": number} for number, moment in enumerate(moments)])


BAD_ANSWERS = {
    "500": (http(500), 3),
    "422": (http(422, body={"detail": "no"}), 2),
    "503 without Retry-After": (http(503, body={"detail": "not set up"}), 3),
    "connection closed": (b"", 3),
    "broken Arrow": (http(body=b"ARROW1", content_type=arrow.MEDIA_TYPE), 3),
    "wrong order": (rows("2024-05-23T01:00Z", "2024-05-23T00:00Z"), 3),
}


@pytest.mark.parametrize(("fault", "code"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_day_that_fails_in_every_request_is_the_only_one_lost(serve, alvo_pool, capsys, fault, code):
    connector = serve(Connector(fault, holds(BAD_DAY)))
    assert etl.main(["2024-05-20", "2024-06-08", *POWER, "--keep-going"]) == code
    output = capsys.readouterr()
    assert {moment.date() for moment, _ in alvo_values(alvo_pool)} == {
        date(2024, 5, 20) + timedelta(days=number) for number in range(20)
    } - {BAD_DAY}
    assert output.err.splitlines()[0].startswith("etl.py: 2024-05-23: Fonte at ")
    assert output.err.splitlines()[1:] == [
        "etl.py: 1 day not loaded. Run them again with:",
        "  python etl.py 2024-05-23 --columns power --keep-going",
    ]
    assert connector.asked[1:11] == [(date(2024, 5, 20 + number),) * 2 for number in range(10)]
    assert Counter(first <= BAD_DAY <= last for first, last in connector.asked)[True] == 2


def test_without_keep_going_a_range_stops_at_its_bad_day(serve, alvo_pool, capsys):
    connector = serve(Connector(http(500), holds(BAD_DAY)))
    assert etl.main(["2024-05-20", "2024-06-08", *POWER]) == 3
    assert {moment.day for moment, _ in alvo_values(alvo_pool)} == {20, 21, 22}
    assert [(first.day, last.day) for first, last in connector.asked] == [
        (20, 29),
        *((day, day) for day in range(20, 24)),
    ]
    assert capsys.readouterr().err.startswith("etl.py: 2024-05-23: Fonte at ")


def test_an_unexpected_failure_is_reported_for_each_day_of_its_request(alvo, fonte_api, monkeypatch, capsys):
    def broken(*arguments):
        raise ArithmeticError("a bug")

    monkeypatch.setattr(one, "fetch", broken)
    assert etl.main([*RANGE, "--keep-going"]) == 1
    assert capsys.readouterr().err.count("unexpected ArithmeticError: a bug") == 10


# Retries.


@pytest.mark.parametrize("fault", [http(503), b""], ids=["503", "closed"])
def test_a_bad_day_costs_one_minute_of_retries(serve, alvo_pool, pauses_s, fault):
    connector = serve(Connector(fault, holds(BAD_DAY)))
    assert etl.main(["2024-05-20", "2024-06-08", *POWER, "--keep-going"]) == 3
    assert sum(pauses_s) == pytest.approx(60)
    assert len({moment.date() for moment, _ in alvo_values(alvo_pool)}) == 19
    assert connector.asked.count((BAD_DAY, BAD_DAY)) == 1


def test_an_unreachable_connector_costs_one_minute_of_retries(serve, alvo, pauses_s, capsys):
    connector = serve(Connector(http(503), lambda first, last: True))
    assert etl.main(["2024-05-20", "2024-06-08", *POWER, "--keep-going"]) == 3
    assert sum(pauses_s) == pytest.approx(60)
    assert "20 days not loaded" in capsys.readouterr().err
    alone = [first for first, last in connector.asked if first == last]
    assert len(set(alone)) == len(alone) == 20


def test_a_connector_that_returns_in_time_needs_no_smaller_request(serve, alvo, pauses_s):
    connector = serve(Connector(http(503), lambda first, last: len(connector.asked) < 4))
    assert etl.main(["2024-05-20", "2024-05-29", *POWER]) == 0
    assert set(connector.asked) == {(date(2024, 5, 20), date(2024, 5, 29))}
    assert 0 < sum(pauses_s) < 60


def test_a_fault_that_is_not_retried_shrinks_no_request(serve, alvo, pauses_s):
    connector = serve(Connector(http(500), holds(BAD_DAY)))
    assert etl.main(["2024-05-20", "2024-06-08", *POWER, "--keep-going"]) == 3
    assert connector.asked[-1] == (date(2024, 5, 30), date(2024, 6, 8))


def test_requests_shrink_where_a_connector_answers_only_short_ones(serve, alvo_pool, pauses_s):
    connector = serve(Connector(http(504), lambda first, last: (last - first).days > 2))
    assert etl.main(["2024-05-01", "2024-06-30", *POWER]) == 0
    assert sum(pauses_s) == pytest.approx(120)
    assert len({moment.date() for moment, _ in alvo_values(alvo_pool)}) == 61
    assert (date(2024, 6, 30) - connector.asked[-1][0]).days <= 2


def test_a_hanging_connector_fails_each_day(alvo, monkeypatch, capsys):
    """The remaining time for retries is never negative."""
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(client, "GRACE_S", 0.01)
    with answering(HANG) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        assert etl.main(["2024-05-20", "2024-05-25", *POWER, "--keep-going", "--days-per-request", "2"]) == 3
    failures = capsys.readouterr().err.splitlines()[:-2]
    assert [line[:18] for line in failures] == [f"etl.py: 2024-05-{day}" for day in range(20, 26)]
    assert all("timed out" in line for line in failures)


# Network faults.


@pytest.mark.parametrize("kind", NETWORK)
def test_one_network_fault_at_any_operation_loses_no_day(
    fonte_api, alvo, alvo_pool, make_pool, undisturbed, monkeypatch, capsys, kind
):
    script = Script()
    host, port = urlsplit(fonte_api).hostname, urlsplit(fonte_api).port
    wanted = {key: value for key, value in undisturbed.items() if key[0].day < 23}
    with proxied(partial(HttpLink, "connector", script), host, port) as proxy:
        monkeypatch.setenv("FONTE_API_URL", f"http://127.0.0.1:{proxy.port}")
        number = 0
        while True:
            number += 1
            script.begin({number: kind})
            assert etl.main(["2024-05-20", "2024-05-22", *POWER]) == 0
            assert alvo_values(alvo_pool) == wanted
            if not script.struck:
                break
    assert number > 5
    assert capsys.readouterr().err == ""


# The executor.


def test_after_a_failure_the_next_item_starts_on_demand():
    started = []

    def carry(item):
        started.append(item)
        if item == 1:
            raise ValueError

    with ThreadPoolExecutor(1) as executor:
        results = days.in_order([0, 1, 2, 3], carry, executor, 1)
        next(results)
        next(results)
        assert started == [0, 1]
        next(results)
        results.close()
    assert started[:3] == [0, 1, 2]


def test_a_loaded_day_is_given_before_the_next_request_is_answered():
    """The second request blocks until the first result is given: an executor that waits for it never ends."""
    given = threading.Event()

    def requested():
        yield 1
        assert given.wait(60)
        yield 2

    with ThreadPoolExecutor(1) as executor:
        results = days.in_order(requested(), lambda item: item, executor, 1, ahead=False)
        assert next(results)[0] == 1
        given.set()
        assert [item for item, _ in results] == [2]
