"""Dagster in this process: days, ranges, ticks, failures and checks, over a real Fonte and a real Alvo."""

import base64
import importlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from sqlalchemy import text
from support.faulty import RESET, answering, http
from support.project import ROOT, SCRIPTS, SETTINGS, alvo_values, bare, values_of_days_alone

dg = pytest.importorskip("dagster", reason="tox -e orchestration has it")
import grpc  # noqa: E402
from dagster_shared.yaml_utils import load_run_config_yaml  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402

import etl  # noqa: E402
from fonte.client import FonteError  # noqa: E402
from fonte_alvo.settings import SettingsError  # noqa: E402
from orchestration import day as one  # noqa: E402
from orchestration.dagster import __main__ as one_command  # noqa: E402
from orchestration.dagster import resources, thumbnail  # noqa: E402
from orchestration.dagster.definitions import Range, defs  # noqa: E402
from orchestration.dagster.partitions import DAYS  # noqa: E402
from orchestration.dagster.quality import ALVO, ASSET, CHECKS, COMPLETE, FONTE  # noqa: E402
from orchestration.dagster.resources import FonteApi  # noqa: E402

DAY = "2024-05-21"
EMPTY_DAY = "2024-06-21"
Type = dg.DagsterEventType


@pytest.fixture
def instance(monkeypatch):
    """An instance of Dagster for one test, without pauses before retries."""
    monkeypatch.setattr(resources, "BACKOFF_S", 0)
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def daily_job():
    return defs.resolve_job_def("materialize_ten_minute_statistics")


@pytest.fixture
def materialize(daily_job, instance):
    """Run the daily job for a partition, or for a range of them in one run."""

    def run(first=DAY, last=None, instance=instance, **config):
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
        partition = {"tags": tags} if last else {"partition_key": first}
        run_config = {"ops": {"ten_minute_statistics": {"config": config}}}
        return daily_job.execute_in_process(run_config=run_config, instance=instance, raise_on_error=False, **partition)

    return run


def events(run, kind):
    return [event.event_specific_data for event in run.all_events if event.event_type == kind]


def materialized(run):
    """Return the materialization of each partition."""
    made = [data.materialization for data in events(run, Type.ASSET_MATERIALIZATION)]
    return {each.partition: each for each in made if each.asset_key == ASSET}


def checked(run):
    """Return whether each check passed, by day and name."""
    return {(data.partition, data.check_name): data.passed for data in events(run, Type.ASSET_CHECK_EVALUATION)}


def figures(run, *names, day=DAY):
    return tuple(materialized(run)[day].metadata[name].value for name in names)


def failure(run):
    """Return the name and the message of the exception that failed the step."""
    (data,) = events(run, Type.STEP_FAILURE)
    return data.error.cause


def test_a_partition_equals_the_day_of_etl_py(materialize, fonte_api, alvo, make_database):
    assert materialize().success
    assert alvo_values(alvo) == values_of_days_alone(make_database(), fonte_api, [DAY, DAY])


def test_a_second_materialization_changes_nothing(materialize, fonte_api, alvo):
    names = ("values_written", "values_unchanged", "values_removed")
    assert figures(materialize(), *names) == (1152, 0, 0)
    before = alvo_values(alvo)
    assert figures(materialize(), *names) == (0, 1152, 0)
    assert alvo_values(alvo) == before


def test_a_materialization_has_figures_a_summary_and_a_picture(materialize, fonte_api, alvo):
    run = materialize(variables=["power"])
    found = figures(run, "samples", "coverage_percent", "windows", "dagster/partition_row_count")
    assert found == (1440, 100.0, 144, 576)
    assert figures(run, "seconds")[0] > 0
    assert "1,440 of 1,440 samples (100.0%), 144 windows" in figures(run, "summary")[0]
    assert image(figures(run, "picture")[0]).format == "PNG"


def image(markdown):
    """Decode a picture in Markdown."""
    encoded = markdown.partition("base64,")[2].removesuffix(")")
    return Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))


def test_metadata_begins_with_the_summary_and_the_pictures(materialize, fonte_api, alvo):
    metadata = materialized(materialize())[DAY].metadata
    assert list(metadata)[:4] == ["summary", "wind_speed (m/s)", "power (kW)", "picture"]


@pytest.mark.parametrize("values", ["value", "random() * 1e6", "0", "(random() - 0.5) * 1e300"])
def test_the_small_pictures_are_shown_inline(materialize, connector, fonte_pool, alvo, monkeypatch, values):
    """Dagster hides Markdown of 1,000 characters and more behind a click."""
    monkeypatch.setenv("FONTE_API_URL", connector)
    with fonte_pool.begin() as connection:
        connection.execute(text(f"UPDATE data SET power = {values.replace('value', 'power')}"))
    for name in ("wind_speed (m/s)", "power (kW)"):
        (markdown,) = figures(materialize(), name)
        assert len(markdown) < 1000
        picture = image(markdown)
        assert (picture.format, *picture.size) == ("WEBP", 288, 80)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 8e307])
@pytest.mark.parametrize("seed", range(5))
def test_a_small_picture_of_noise_on_the_longest_day_is_shown_inline(scale, seed):
    windows = np.arange("2024-05-21T00", "2024-05-22T01", np.timedelta64(600, "s"), dtype="datetime64[us]")
    low, mean, high = np.sort(np.random.default_rng(seed).uniform(-scale, scale, (3, 150)), axis=0)
    assert len(thumbnail.markdown("-1.235e+300 to 1.235e+300", windows, windows, low, mean, high)) < 1000


def test_a_small_picture_shows_a_gap_and_the_level_of_the_values(materialize, connector, fonte_pool, alvo, monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", connector)
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET power = CASE WHEN timestamp::time < '12:00' THEN 1 ELSE 9 END"))
        connection.execute(text("DELETE FROM data WHERE timestamp::time >= '06:00' AND timestamp::time < '12:00'"))
    picture = image(figures(materialize(), "power (kW)")[0]).convert("L")
    dark = [[y for y in range(picture.height) if picture.getpixel((x, y)) < 128] for x in (10, 110, 200)]
    assert dark == [[78, 79], [], [0, 1]]


def test_a_variable_without_values_has_no_picture(materialize, connector, fonte_pool, alvo, monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", connector)
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET power = NULL"))
    metadata = materialized(materialize())[DAY].metadata
    assert [name for name in ("wind_speed (m/s)", "power (kW)") if name in metadata] == ["wind_speed (m/s)"]


def test_the_checks_of_a_whole_day_pass(materialize, fonte_api, alvo):
    run = materialize()
    assert checked(run) == {(DAY, name): True for name in CHECKS}


@pytest.mark.parametrize(
    ("check", "damage"),
    [
        ("every_window_has_its_rows", "DELETE FROM data WHERE timestamp = '2024-05-21 13:00Z'"),
        ("every_window_has_its_rows", "INSERT INTO data SELECT '2024-05-21 12:00Z', id, 1 FROM signal"),
        ("mean_between_min_and_max", "UPDATE data SET value = 1e9 FROM signal WHERE id = signal_id AND name ~ 'min'"),
        ("mean_between_min_and_max", "UPDATE data SET value = -1e9 FROM signal WHERE id = signal_id AND name ~ 'max'"),
        ("values_are_finite", "UPDATE data SET value = 'infinity' FROM signal WHERE id = signal_id AND name ~ 'std'"),
        (COMPLETE, "DELETE FROM data WHERE timestamp >= '2024-05-21 23:50Z'"),
        (COMPLETE, "DELETE FROM data USING signal WHERE id = signal_id AND name ~ 'power'"),
    ],
)
def test_a_check_detects_damage_in_alvo(materialize, connector, fonte_pool, monkeypatch, alvo_pool, check, damage):
    monkeypatch.setenv("FONTE_API_URL", connector)
    with fonte_pool.begin() as connection:
        twelve = "timestamp >= '2024-05-21 12:00Z' AND timestamp < '2024-05-21 12:10Z'"
        connection.execute(text(f"DELETE FROM data WHERE {twelve}"))
    carry = one.run

    def carry_and_damage(*arguments, **options):
        done = carry(*arguments, **options)
        with alvo_pool.begin() as connection:
            connection.execute(text(damage))
        return done

    monkeypatch.setattr(one, "run", carry_and_damage)
    run = materialize()
    failed = {event.check_name for event in events(run, Type.ASSET_CHECK_EVALUATION) if not event.passed}
    assert run.success
    assert check in failed


def test_a_day_that_ends_early_is_incomplete(materialize, connector, fonte_pool, alvo, monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", connector)
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET power = NULL WHERE timestamp >= '2024-05-21 23:50Z'"))
    checks = events(materialize(), Type.ASSET_CHECK_EVALUATION)
    assert [(check.check_name, check.severity.value) for check in checks if not check.passed] == [(COMPLETE, "WARN")]


def test_implausible_values_are_a_warning(materialize, connector, fonte_pool, alvo, monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", connector)
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET wind_speed = -999 WHERE timestamp < '2024-05-21 01:00Z'"))
    checks = events(materialize(), Type.ASSET_CHECK_EVALUATION)
    failed = [check for check in checks if not check.passed]
    assert [(check.check_name, check.severity.value) for check in failed] == [("values_are_plausible", "WARN")]
    assert failed[0].metadata["wind_speed_implausible"].value == 60


def test_values_whose_plausible_range_is_unknown_are_a_warning(materialize, fonte_api, alvo, monkeypatch):
    monkeypatch.setattr(one, "variables", lambda fonte: {})
    checks = events(materialize(), Type.ASSET_CHECK_EVALUATION)
    assert [check.check_name for check in checks if not check.passed] == ["values_are_plausible"]


@pytest.mark.parametrize("variables", [["wind_speed"], ["ambient_temperature"]])
def test_an_empty_day_has_its_reason_and_only_a_warning(materialize, fonte_api, alvo, variables):
    run = materialize(EMPTY_DAY, variables=variables)
    assert run.success
    metadata = materialized(run)[EMPTY_DAY].metadata
    assert metadata["empty"].value is True
    assert metadata["reason"].value.startswith(f"Fonte holds no finite sample of {variables[0]} from {EMPTY_DAY}")
    assert checked(run) == {(EMPTY_DAY, name): name != COMPLETE for name in CHECKS}
    assert alvo_values(alvo) is None


def test_an_empty_day_leaves_its_old_rows_and_fails_its_check(materialize, connector, fonte_pool, alvo, monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", connector)
    assert materialize().success
    before = alvo_values(alvo)
    with fonte_pool.begin() as connection:
        connection.execute(text("DELETE FROM data WHERE timestamp::date = '2024-05-21'"))
    run = materialize()
    assert run.success
    assert checked(run)[DAY, "every_window_has_its_rows"] is False
    assert alvo_values(alvo) == before


def fonte_is_down(monkeypatch, port):
    monkeypatch.setenv("FONTE_API_URL", f"http://127.0.0.1:{port}")


def alvo_is_down(monkeypatch, port):
    monkeypatch.setenv("ALVO_DATABASE_URL", f"postgresql://nobody:secret@127.0.0.1:{port}/alvo")


@pytest.mark.parametrize(
    ("goes", "kind", "said"),
    [(fonte_is_down, "FonteError", "check FONTE_API_URL"), (alvo_is_down, "DatabaseError", "check ALVO_DATABASE_URL")],
)
def test_an_unreachable_service_fails_the_run_after_its_retries(
    materialize, fonte_api, alvo, monkeypatch, refused_port, goes, kind, said
):
    goes(monkeypatch, refused_port)
    run = materialize()
    assert not run.success
    assert len(events(run, Type.STEP_UP_FOR_RETRY)) == resources.RETRIES
    assert failure(run).cls_name == kind
    assert said in failure(run).message
    assert "secret" not in failure(run).message
    assert materialized(run) == {}


def test_an_endless_health_answer_is_not_read_to_its_end(monkeypatch):
    def endless():
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"10000\r\n" + bytes(65536) + b"\r\n"

    with answering(endless) as server, resources.FonteApi(url=server.url).connect() as http:
        assert str(http.base_url) == server.url


@pytest.mark.parametrize("answer", [http(503), RESET], ids=["503", "reset"])
def test_a_password_in_the_url_of_fonte_is_not_repeated(answer):
    with answering(answer) as server:
        url = server.url.replace("http://", "http://user:s3cret@")
        with pytest.raises(FonteError, match=server.url) as failure, resources.FonteApi(url=url).connect():
            pass
    assert "s3cret" not in str(failure.value)


def test_a_connector_without_its_database_fails_the_run(materialize, alvo, monkeypatch):
    with answering(http(503, body={"detail": "Fonte does not answer"})) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        run = materialize()
    assert "is not ready: it answers 503, Fonte does not answer; check FONTE_API_URL" in failure(run).message
    assert len(server.requests) == 1 + resources.RETRIES


def test_a_transient_fault_costs_only_a_retry(materialize, alvo, monkeypatch):
    record = {"timestamp": f"{DAY}T00:00:00Z", "wind_speed": 5.0, "power": 300.0}
    # Each attempt requests /health before /data.
    with answering(http(), http(500), http(), http(body=[record])) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        run = materialize()
    assert run.success
    assert len(events(run, Type.STEP_UP_FOR_RETRY)) == 1
    assert len(alvo_values(alvo)) == 6


def test_a_day_does_not_need_the_period_of_fonte(materialize, alvo, monkeypatch, capfd):
    """It is only metadata, and counting the rows may time out."""
    record = {"timestamp": f"{DAY}T00:00:00Z", "wind_speed": 5.0, "power": 300.0}
    with answering(http(), RESET, http(404), http(body=[record]), every_route=True) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        run = materialize()
    assert [request.split()[1].split("?")[0] for request in server.requests] == [
        "/health",
        "/period",
        "/columns",
        "/data",
    ]
    assert list(materialized(run)) == [DAY]
    assert "the period of Fonte is not recorded: Fonte at " in capfd.readouterr().err


def test_an_unusable_answer_is_not_requested_again(materialize, alvo, monkeypatch):
    record = {"timestamp": f"{DAY}T00:00:00Z", "wind_speed": 5.0, "power": 300.0}
    with answering(http(), http(body=[record, record | {"power": 301.0}])) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        run = materialize()
    assert "power" in failure(run).message
    assert (events(run, Type.STEP_UP_FOR_RETRY), len(server.requests)) == ([], 2)


@pytest.mark.parametrize("change", ["ALTER COLUMN value TYPE bigint", "DROP CONSTRAINT data_pkey"])
def test_a_table_that_alvo_cannot_use_is_not_retried(materialize, fonte_api, alvo_pool, change):
    assert materialize(variables=["power"]).success
    with alvo_pool.begin() as connection:
        connection.execute(text(f"ALTER TABLE data {change}"))
    run = materialize(variables=["power"])
    assert "; as its owner: ALTER TABLE data " in failure(run).message
    assert events(run, Type.STEP_UP_FOR_RETRY) == []


def as_it_is(monkeypatch, fonte):
    """Change no setting."""


def a_bad_url(monkeypatch, fonte):
    monkeypatch.setenv("FONTE_API_URL", "ftp://elsewhere")


def a_connector_in_this_process(monkeypatch, fonte):
    monkeypatch.delenv("FONTE_API_URL")
    monkeypatch.setenv("FONTE_DATABASE_URL", fonte.render_as_string(hide_password=False))


@pytest.mark.parametrize(
    ("config", "settings", "kind"),
    [
        ({"variables": ["wind"]}, as_it_is, "RequestRefused"),
        ({}, a_bad_url, "SettingsError"),
        ({"dask": "tcp://127.0.0.1:1"}, a_connector_in_this_process, "SettingsError"),
    ],
)
def test_bad_input_fails_the_run_at_once(materialize, fonte_api, fonte, alvo, monkeypatch, config, settings, kind):
    settings(monkeypatch, fonte)
    run = materialize(**config)
    assert failure(run).cls_name == kind
    assert events(run, Type.STEP_UP_FOR_RETRY) == []
    assert alvo_values(alvo) is None


@pytest.mark.parametrize("dask", [None, ""])
def test_a_range_is_one_run_with_a_partition_per_day(materialize, fonte_api, alvo, undisturbed, dask):
    """The launchpad's form makes an empty text of a field that is cleared."""
    run = materialize("2024-05-20", "2024-05-29", variables=["power"], dask=dask)
    assert run.success
    assert sorted(materialized(run)) == [f"2024-05-{day}" for day in range(20, 30)]
    assert alvo_values(alvo) == undisturbed
    assert len(events(run, Type.ASSET_CHECK_EVALUATION)) == 10 * len(CHECKS)


def test_an_empty_day_neither_stops_a_range_nor_hides_its_checks(materialize, fonte_api, alvo):
    run = materialize("2024-05-28", "2024-05-31")
    assert run.success
    empty = {day: "empty" in done.metadata for day, done in materialized(run).items()}
    assert empty == {"2024-05-28": False, "2024-05-29": False, "2024-05-30": True, "2024-05-31": True}
    assert checked(run) == {(day, name): name != COMPLETE or not empty[day] for day in empty for name in CHECKS}


def test_the_checks_of_each_day_are_those_of_its_latest_materialization(materialize, instance, fonte_api, alvo):
    """The UI shows checks of earlier materializations as missing."""
    for _ in range(2):
        materialize("2024-05-28", "2024-05-31")
    keys = [(dg.AssetCheckKey(ASSET, name), DAYS) for name in CHECKS]
    for key, state in instance.event_log_storage.get_asset_check_state(keys).items():
        days = {status.name: subset.subset_value for status, subset in state.subsets.items() if not subset.is_empty}
        shown = {status: sorted(subset.get_partition_keys()) for status, subset in days.items()}
        good, empty = ["2024-05-28", "2024-05-29"], ["2024-05-30", "2024-05-31"]
        expected = {"SUCCEEDED": good, "FAILED": empty} if key.name == COMPLETE else {"SUCCEEDED": good + empty}
        assert shown == expected


def test_a_failed_range_keeps_its_finished_days(materialize, fonte_api, alvo, monkeypatch):
    carry = one.run

    def fail_on_the_23rd(fonte, alvo, day, *others):
        if day.date.day == 23:
            raise ArithmeticError("a bug")
        return carry(fonte, alvo, day, *others)

    monkeypatch.setattr(one, "run", fail_on_the_23rd)
    run = materialize("2024-05-20", "2024-05-29")
    assert failure(run).cls_name == "ArithmeticError"
    assert sorted(materialized(run)) == ["2024-05-20", "2024-05-21", "2024-05-22"]


def test_a_range_on_dask_gives_the_same_results(materialize, fonte_api, alvo, undisturbed):
    distributed = pytest.importorskip("distributed", reason="pip install '.[dask]' has it")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as cluster:
        run = materialize("2024-05-20", "2024-05-29", variables=["power"], dask=cluster.scheduler_address)
    assert run.success
    assert alvo_values(alvo) == undisturbed


def test_an_unreachable_dask_cluster_is_retried(materialize, fonte_api, alvo, refused_port, monkeypatch):
    pytest.importorskip("distributed", reason="pip install '.[dask]' has it")
    monkeypatch.setattr("orchestration.days.DASK_TIMEOUT_S", 0.1)
    run = materialize(dask=f"tcp://127.0.0.1:{refused_port}")
    assert failure(run).cls_name == "ClusterError"
    assert len(events(run, Type.STEP_UP_FOR_RETRY)) == resources.RETRIES


# Dagster itself causes this warning.
@pytest.mark.filterwarnings("ignore:Function `JobDefinition.run_request_for_partition`:DeprecationWarning")
@pytest.mark.parametrize(
    ("tick", "day"),
    [
        ("2024-05-21 06:00", "2024-05-20"),
        ("2024-05-21 23:59", "2024-05-20"),
        ("2024-05-22 00:00", "2024-05-21"),
        ("2024-05-22 06:00", "2024-05-21"),
    ],
)
def test_a_tick_runs_the_day_before(daily_job, instance, fonte_api, alvo, make_database, tick, day):
    moment = datetime.fromisoformat(tick).replace(tzinfo=UTC)
    schedule = defs.resolve_schedule_def("daily")
    with dg.build_schedule_context(instance, scheduled_execution_time=moment) as context:
        request = schedule.evaluate_tick(context).run_requests[0]
    run = daily_job.execute_in_process(
        run_config=request.run_config, partition_key=request.partition_key, tags=request.tags, instance=instance
    )
    assert list(materialized(run)) == [day]
    assert alvo_values(alvo) == values_of_days_alone(make_database(), fonte_api, [day, day])


def tick_of(schedule, instance, moment):
    with dg.build_schedule_context(instance, scheduled_execution_time=moment) as context:
        return schedule.evaluate_tick(context).run_requests


DAMAGE = {
    "DELETE FROM load WHERE period_start = '2024-05-22Z'",  # eight days before
    "UPDATE load SET finished_at = '2024-05-24 12:00Z' WHERE period_start = '2024-05-24Z'",  # before the day was over
    # A day that was empty or failed has no record.
    "DELETE FROM load WHERE period_start = '2024-05-26Z' AND variable = 'wind_speed'",
    "DELETE FROM data WHERE timestamp >= '2024-05-27Z' AND timestamp < '2024-05-28Z'",
    "DELETE FROM load WHERE period_start = '2024-05-29Z'",  # requested in any case
}


def test_a_tick_also_requests_incomplete_days_of_the_last_seven(instance, fonte_api, alvo_pool):
    assert etl.main(["2024-05-21", "2024-05-29"]) == 0
    with alvo_pool.begin() as connection:
        for statement in DAMAGE:
            connection.execute(text(statement))
    requests = tick_of(defs.resolve_schedule_def("daily"), instance, datetime(2024, 5, 30, 6, tzinfo=UTC))
    # The last of them lacks samples in Fonte.
    late = ["2024-05-24", "2024-05-26", "2024-05-27", "2024-05-28"]
    assert [request.partition_key for request in requests] == ["2024-05-29", *late]
    assert len({request.run_key for request in requests}) == 5


def test_a_late_day_is_requested_at_each_tick(instance, alvo):
    """Dagster starts no second run for a run key."""
    schedule = defs.resolve_schedule_def("daily")
    ticks = [tick_of(schedule, instance, datetime(2024, 5, day, 6, tzinfo=UTC)) for day in (29, 30)]
    keys = [request.run_key for tick in ticks for request in tick if request.partition_key == "2024-05-26"]
    assert len({*keys}) == 2


def test_without_alvo_a_tick_requests_only_the_day_before(instance, monkeypatch, refused_port):
    alvo_is_down(monkeypatch, refused_port)
    (request,) = tick_of(defs.resolve_schedule_def("daily"), instance, datetime(2024, 5, 30, 6, tzinfo=UTC))
    assert request.partition_key == "2024-05-29"


def test_a_tick_before_the_end_of_the_first_day_is_skipped_with_a_reason(instance):
    moment = datetime(2024, 5, 20, 6, tzinfo=UTC)
    with dg.build_schedule_context(instance, scheduled_execution_time=moment) as context:
        result = defs.resolve_schedule_def("daily").evaluate_tick(context)
    assert result.run_requests == []
    assert result.skip_message


@pytest.fixture
def load_definitions(monkeypatch):
    """Give a function that reloads the definitions with settings."""

    def load(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        for name in ("partitions", "quality", "definitions"):
            monkeypatch.delitem(sys.modules, f"orchestration.dagster.{name}")
            monkeypatch.delattr(f"orchestration.dagster.{name}")
        # The package does this when it is first imported.
        for kind in (dg.BetaWarning, dg.PreviewWarning):
            warnings.filterwarnings("ignore", category=kind)
        return importlib.import_module("orchestration.dagster.definitions").defs

    return load


def test_partitions_can_be_the_local_days_of_a_site(load_definitions, instance, fonte_api, alvo, make_database):
    zone = "America/Sao_Paulo"
    local = load_definitions(DAGSTER_TIMEZONE=zone)
    schedule = local.resolve_schedule_def("daily")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", zone)
    request = tick_of(schedule, instance, datetime(2024, 5, 22, 3, tzinfo=ZoneInfo(zone)))[0]
    job = local.resolve_job_def("materialize_ten_minute_statistics")
    run = job.execute_in_process(partition_key=request.partition_key, instance=instance)
    assert list(materialized(run)) == [DAY]
    assert checked(run) == {(DAY, name): True for name in CHECKS}
    assert alvo_values(alvo) == values_of_days_alone(make_database(), fonte_api, [DAY, DAY, "--timezone", zone])


def test_partitions_include_the_days_on_which_clocks_change(load_definitions):
    """On 2018-11-04, clocks in Sao Paulo skipped midnight."""
    local = load_definitions(DAGSTER_TIMEZONE="America/Sao_Paulo", DAGSTER_START_DATE="2018-02-01")
    days = local.resolve_asset_graph().get(ASSET).partitions_def.get_partition_keys()
    assert days[0] == "2018-02-01"
    assert {"2018-02-17", "2018-02-18", "2018-11-04"} <= set(days)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DAGSTER_TIMEZONE", "America/Brasilia"),
        ("DAGSTER_TIMEZONE", "/etc/localtime"),
        ("DAGSTER_TIMEZONE", "America"),
        # 5:45 ahead of UTC: no day of it begins with a window.
        ("DAGSTER_TIMEZONE", "Asia/Kathmandu"),
        ("DAGSTER_START_DATE", "yesterday"),
    ],
)
def test_the_one_command_names_an_invalid_setting_of_partitions(run_command, fonte_api, alvo, name, value):
    known = {"FONTE_API_URL": fonte_api, "ALVO_DATABASE_URL": os.environ["ALVO_DATABASE_URL"]}
    run = run_command("-m", "orchestration.dagster", **known, **{name: value})
    assert (run.returncode, run.stdout) == (2, "")
    assert len(run.stderr.splitlines()) == 1
    assert name in run.stderr
    assert value in run.stderr


def test_the_one_command_keeps_a_configuration_that_is_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path))
    for _ in range(2):
        folder = one_command._dagster_home()
        assert "default_limit" in (folder / "dagster.yaml").read_text()
    assert capsys.readouterr().err == ""
    (tmp_path / "theirs.yaml").write_text("storage: {}\n")
    (folder / "dagster.yaml").unlink()
    (folder / "dagster.yaml").symlink_to(tmp_path / "theirs.yaml")
    one_command._dagster_home()
    assert (folder / "dagster.yaml").read_text() == "storage: {}\n"
    assert capsys.readouterr().err == f"{folder / 'dagster.yaml'} stays as it is; delete it for the project's\n"


def test_the_resource_reads_the_period_of_fonte(fonte_api):
    with FonteApi().connect() as http:
        held = resources.period(http)
    assert (held.first, held.last) == (datetime(2024, 5, 20, tzinfo=UTC), datetime(2024, 5, 29, 23, 59, tzinfo=UTC))
    assert held.rows == 14_400


@pytest.mark.parametrize(
    "answer",
    [
        http(404),
        http(body=[]),
        http(body={"first_timestamp": None, "last_timestamp": None, "rows": 0}),
        http(body={"first_timestamp": "soon", "last_timestamp": "later", "rows": 1}),
    ],
)
def test_an_absent_or_invalid_period_is_none(answer):
    with answering(http(), answer) as server, FonteApi(server.url).connect() as connection:
        assert resources.period(connection) is None


def test_a_naive_period_is_utc():
    body = {"first_timestamp": "2024-05-20T00:00:00", "last_timestamp": "2024-05-21T00:00:00Z", "rows": 1}
    with answering(http(), http(body=body), every_route=True) as server, FonteApi(server.url).connect() as connection:
        assert resources.period(connection).first == datetime(2024, 5, 20, tzinfo=UTC)


def test_a_run_and_a_manual_observation_record_the_rows_of_fonte(materialize, instance, fonte_api, alvo):
    click = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={FONTE.key})
    for made in (materialize(), click.execute_in_process(instance=instance)):
        (observed,) = [data.asset_observation for data in events(made, Type.ASSET_OBSERVATION)]
        assert observed.asset_key == FONTE.key
        assert observed.metadata["dagster/row_count"].value == 14_400
        assert observed.metadata["first_timestamp"].value == datetime(2024, 5, 20, tzinfo=UTC).timestamp()


def test_the_graph_leads_from_fontes_data_to_alvos():
    graph = defs.resolve_asset_graph()
    assert graph.get(ASSET).parent_keys == {FONTE.key}
    assert graph.get(ALVO.key).parent_keys == {ASSET}
    for node in map(graph.get, (FONTE.key, ASSET, ALVO.key)):
        assert node.description
        assert node.owners
        assert node.kinds


def test_only_the_day_before_today_makes_alvo_fresh(materialize, connector, fonte_pool, alvo, monkeypatch):
    """A load of older data does not make the newest data fresh."""
    monkeypatch.setenv("FONTE_API_URL", connector)
    yesterday, today = (datetime.now(UTC).date() - timedelta(days=days) for days in (1, 0))
    with fonte_pool.begin() as connection:
        connection.execute(text(shifted("2024-05-29", yesterday)))
        connection.execute(text(shifted("2024-05-28", yesterday - timedelta(days=1))))
        connection.execute(text(f"DELETE FROM data WHERE timestamp::date = '{today}'"))
    fresh = [loaded(materialize(str(day))) for day in (DAY, yesterday - timedelta(days=1), yesterday)]
    assert fresh == [False, False, True]
    assert not loaded(materialize(str(yesterday), variables=["power"]))
    with fonte_pool.begin() as connection:
        connection.execute(text(f"DELETE FROM data WHERE timestamp >= '{yesterday} 23:50Z'"))
    assert not loaded(materialize(str(yesterday)))


def loaded(run):
    """Return whether a run made Alvo's data fresh."""
    made = [data.materialization.asset_key for data in events(run, Type.ASSET_MATERIALIZATION)]
    return ALVO.key in made


def shifted(day, to):
    """Return SQL that moves a day of Fonte."""
    moved = f"timestamp + ('{to}' - timestamp::date) * interval '1 day'"
    return f"UPDATE data SET timestamp = {moved} WHERE timestamp::date = '{day}'"


def test_the_schedule_is_on_and_fires_at_three_in_sao_paulo():
    schedule = defs.resolve_schedule_def("daily")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 6 * * *", "UTC")
    assert datetime.fromisoformat("2024-05-21T03:00-03:00").astimezone(UTC).hour == 6


def test_the_documented_run_configuration_works_unchanged(instance, fonte_api, alvo, make_database):
    written = (ROOT / "orchestration/dagster/etl.yaml").read_text()
    run = defs.resolve_job_def("etl").execute_in_process(load_run_config_yaml(written), instance)
    assert total(run) == "3 days: 3,456 values written, 0 unchanged, 0 removed"
    assert alvo_values(alvo) == values_of_days_alone(make_database(), fonte_api, ["2024-05-20", "2024-05-22"])


def total(run):
    (output,) = events(run, Type.STEP_OUTPUT)
    return output.metadata["total"].value


def run_range(instance, first, last, places, **config):
    run_config = {
        "ops": {"run_etl": {"config": {"start_date": first, "end_date": last, **config}}},
        "resources": places,
    }
    return defs.resolve_job_def("etl").execute_in_process(run_config, instance, raise_on_error=False)


def resource(name, url):
    return {name: {"config": {"url": url}}}


def test_a_range_uses_the_resources_of_its_configuration(instance, shared_connector, make_database, monkeypatch):
    url = make_database()
    monkeypatch.setenv("ELSEWHERE", url.render_as_string(hide_password=False))
    places = resource("fonte", shared_connector) | resource("alvo", {"env": "ELSEWHERE"})
    run = run_range(instance, "2024-05-28", "2024-05-30", places, variables=["power"])
    # The first day has a gap.
    assert total(run) == "2 days loaded, 1 empty: 1,104 values written, 0 unchanged, 0 removed"
    assert len(alvo_values(url)) == 1104


@pytest.mark.parametrize(
    ("dates", "places", "config", "kind"),
    [
        (("2024-05-20", "tomorrow"), {}, {}, "BadPeriod"),
        (("2024-05-21", "2024-05-20"), {}, {}, "BadPeriod"),
        ((DAY, DAY), resource("fonte", "localhost:8000"), {}, "SettingsError"),
        ((DAY, DAY), resource("alvo", "mysql://localhost"), {}, "SettingsError"),
        ((DAY, DAY), {}, {"days_at_once": 0}, "ValidationError"),
        ((DAY, DAY), {}, {"variables": []}, "ValidationError"),
        (("2001-01-01", "2001-01-02"), {}, {}, "EmptyPeriod"),
    ],
)
def test_a_wrong_run_configuration_fails_at_once(instance, fonte_api, alvo, dates, places, config, kind):
    run = run_range(instance, *dates, places, **config)
    assert failure(run).cls_name == kind
    assert events(run, Type.STEP_UP_FOR_RETRY) == []
    assert alvo_values(alvo) is None


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("alvo", "postgresql://user:secret@host/alvo"),
        ("alvo", "postgresql://user:se/cret@host/alvo"),
        ("alvo", "postgresql://host/alvo?user=u&password=secret"),
        ("fonte", "http://user:secret@host:8000"),
        ("fonte", "http://secret@host"),
        ("fonte", "https://host/?api_token=secret"),
        ("alvo", {"env": "NOT_SET"}),
    ],
)
@pytest.mark.parametrize("job", ["etl", "materialize_ten_minute_statistics"])
def test_a_secret_in_a_run_configuration_is_refused_before_the_run(instance, job, name, url):
    """Dagster stores and shows the configuration of every run."""
    partition = {} if job == "etl" else {"partition_key": DAY}
    with pytest.raises(SettingsError) as refused:
        defs.resolve_job_def(job).execute_in_process({"resources": resource(name, url)}, instance, **partition)
    assert "env: NAME" in str(refused.value) or "NOT_SET" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert instance.get_runs() == []


@pytest.mark.parametrize(
    "value", ["http://user:secret@127.0.0.1:{port}/?token=secret", "http://secret@127.0.0.1:{port}"]
)
def test_no_secret_of_a_setting_reaches_the_event_log(materialize, instance, alvo, refused_port, monkeypatch, value):
    monkeypatch.setenv("FONTE_API_URL", value.format(port=refused_port))
    run = materialize()
    assert not run.success
    assert f"Fonte at http://127.0.0.1:{refused_port}" in failure(run).message
    assert "secret" not in "".join(map(str, instance.all_logs(run.run_id)))


def test_the_launchpad_opens_with_yesterday_and_the_two_variables():
    """The run resolves the word, so it is right on later days too."""
    config = defs.resolve_job_def("etl").run_config
    assert config["ops"]["run_etl"]["config"] == {
        "start_date": "yesterday",
        "end_date": "yesterday",
        "variables": ["wind_speed", "power"],
        "days_at_once": 2,
    }


def test_the_day_that_the_launchpad_opens_with_is_yesterday(instance, connector, fonte_pool, alvo, monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", connector)
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    with fonte_pool.begin() as connection:
        connection.execute(text(shifted("2024-05-29", yesterday)))
    run = defs.resolve_job_def("etl").execute_in_process(instance=instance)
    assert total(run) == "1 day: 1,152 values written, 0 unchanged, 0 removed"
    assert {timestamp.date() for timestamp, _ in alvo_values(alvo)} == {yesterday}


def test_the_description_of_end_date_says_that_it_is_inclusive():
    assert "inclusive" in Range.model_fields["end_date"].description


def test_dagster_can_keep_its_runs_in_postgresql(materialize, fonte_api, alvo, make_database, tmp_path, monkeypatch):
    """A second instance finds the run of the first one."""
    pytest.importorskip("dagster_postgres", reason="tox -e orchestration has it")
    monkeypatch.setenv("DAGSTER_DATABASE_URL", make_database().render_as_string(hide_password=False))
    shutil.copy(ROOT / "orchestration/dagster/dagster.postgres.yaml", tmp_path / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert materialize(instance=instance).success
    with dg.DagsterInstance.from_config(str(tmp_path)) as another:
        assert another.get_materialized_partitions(ASSET) == {DAY}


def test_both_configurations_have_the_same_limits_and_telemetry():
    development, postgres = (
        yaml.safe_load((ROOT / "orchestration/dagster" / name).read_text())
        for name in ("dagster.yaml", "dagster.postgres.yaml")
    )
    for part in ("telemetry", "nux", "concurrency", "run_monitoring"):
        assert development[part] == postgres[part]


def test_the_command_line_of_dagster_loads_the_definitions():
    """As `dagster dev` does, outside the checkout."""
    validate = [Path(sys.executable).with_name("dagster"), "definitions", "validate", "--module-name"]
    run = subprocess.run(
        [*validate, "orchestration.dagster.definitions"], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "All code locations passed validation" in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("FONTE_API_URL", "localhost:8000"), ("ALVO_DATABASE_URL", "mysql://host/d")]
)
def test_the_one_command_names_an_invalid_setting(run_command, fonte_api, name, value):
    run = run_command("-m", "orchestration.dagster", **{"FONTE_API_URL": fonte_api, name: value})
    assert (run.returncode, run.stdout) == (2, "")
    assert len(run.stderr.splitlines()) == 1
    assert name in run.stderr


@pytest.mark.parametrize(
    "port", ["abc", "0", "-1", "65536", "70000", "9" * 5000, "8e3", "٣٠٠٠", " 3000", "", "--debug"]
)
@pytest.mark.parametrize("more", [[], ["--code-server", "127.0.0.1"]])
def test_the_one_command_refuses_an_invalid_port(monkeypatch, capsys, port, more):
    monkeypatch.setattr(sys, "argv", ["dagster", *more, "--port", port])
    with pytest.raises(SystemExit) as stopped:
        one_command.main()
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "argument --port: " in said.err


def test_the_one_command_reports_a_busy_port_before_its_services_start(run_command, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = run_command("-m", "orchestration.dagster", "--port", port)
    assert (run.returncode, run.stdout) == (2, "")
    said = rf"python -m orchestration.dagster: port {port} cannot be used: .*; choose another by --port\n"
    assert re.fullmatch(said, run.stderr)
    assert not (folder / ".embedded").exists()


def test_the_partitions_of_a_code_server_start_with_the_data_of_fonte(connector, fonte_pool, alvo, folder):
    """With the command of compose.yaml."""
    with fonte_pool.begin() as connection:
        connection.execute(text("DELETE FROM data WHERE timestamp < '2024-05-25 01:00Z'"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "orchestration.dagster", "--code-server", "127.0.0.1", "--port", str(port)]
    environment = bare(folder) | {"FONTE_API_URL": connector, "DAGSTER_TIMEZONE": "Asia/Tokyo"}
    with (
        subprocess.Popen(command, cwd=folder, env=environment) as process,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        asked = health_pb2.HealthCheckRequest(service="DagsterApi")
        answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=60, wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert psutil.Process(process.pid).environ()["DAGSTER_START_DATE"] == "2024-05-25"
        process.kill()


def test_the_one_command_names_a_folder_that_it_cannot_write(run_command, fonte_api, alvo, tmp_path):
    file = tmp_path / "file"
    file.touch()
    url = alvo.render_as_string(hide_password=False)
    settings = {"FONTE_API_URL": fonte_api, "ALVO_DATABASE_URL": url, "FONTE_ALVO_HOME": str(file)}
    run = run_command("-m", "orchestration.dagster", **settings)
    said = f"{file}/.dagster cannot be written: Not a directory; set FONTE_ALVO_HOME to another folder"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"python -m orchestration.dagster: {said}\n")


@pytest.mark.parametrize(("goes", "code"), [(fonte_is_down, 3), (alvo_is_down, 4)])
def test_the_one_command_does_not_start_without_its_services(
    run_command, fonte_api, alvo, monkeypatch, refused_port, goes, code
):
    goes(monkeypatch, refused_port)
    run = run_command(
        "-m", "orchestration.dagster", **{name: os.environ[name] for name in SETTINGS if name in os.environ}
    )
    assert (run.returncode, run.stdout) == (code, "")
    assert len(run.stderr.splitlines()) == 1
    assert f"{refused_port}" in run.stderr
    assert "secret" not in run.stderr
