import json
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from matplotlib import image
from sqlalchemy import text

from brt import capture, flows, load, pipeline, settings
from brt.map import AGES
from fonte_alvo.engine import DatabaseError
from tests.conftest import FIRST_MINUTE, captured, expected_positions, real_captures, vehicle


def positions(pool, where="true"):
    query = (
        "SELECT id, latitude, longitude, speed_kmh, round(extract(epoch FROM time) * 1000)::bigint, "
        f"line, coalesce(direction, ''), coalesce(route, '') FROM posicao_onibus WHERE {where}"
    )
    with pool.connect() as connection:
        return {row[0]: tuple(row[1:]) for row in connection.execute(text(query))}


def flags(pool):
    with pool.connect() as connection:
        query = text("SELECT id, speed_kmh, outside_city, clock_ahead FROM posicao_onibus ORDER BY id")
        return [tuple(row) for row in connection.execute(query)]


def results(name):
    return json.loads((settings.folder() / "dbt/target" / name).read_text())


def milliseconds(moment):
    return int(moment.timestamp() * 1000)


def captured_two_days_ahead(*vehicles):
    return capture.read(json.dumps(vehicles).encode(), datetime.now(UTC) + timedelta(days=2))


def load_captures(*captures, build_fails=False):
    for one in captures:
        capture.append(pipeline.captures_folder(), one, 60)
    pipeline.load_new()
    failure = pytest.raises(pipeline.ModelError, match="dbt build failed") if build_fails else nullcontext()
    with failure:
        pipeline.run_dbt("build")


def test_the_view_holds_the_last_position_of_each_bus(ten_captures):
    pipeline.load_new()
    pipeline.run_dbt("build")
    shown = {code: (*row[:4], row[4] or "0", *row[5:]) for code, row in positions(ten_captures).items()}
    assert shown == expected_positions()
    with ten_captures.connect() as connection:
        age, time, kind = connection.execute(
            text("SELECT age, now() - time, pg_typeof(time)::text FROM posicao_onibus LIMIT 1")
        ).one()
    assert (age, kind) == (time, "timestamp with time zone")


def test_doubtful_signals_are_flagged_and_not_dropped(pool):
    now = datetime.now(UTC)
    good = {"dataHora": milliseconds(now)}
    vehicles = [
        vehicle(codigo="1", **good),
        vehicle(codigo="2", latitude=-3.7, longitude=-38.5, **good),
        vehicle(codigo="3", dataHora=milliseconds(now + timedelta(days=365))),
        vehicle(codigo="4", dataHora=milliseconds(now + timedelta(minutes=3))),
        # A corrected clock: the signal that is ahead does not hide the one after it.
        vehicle(codigo="5", dataHora=milliseconds(now + timedelta(days=365)), velocidade=1),
        vehicle(codigo="5", velocidade=2, **good),
        vehicle(codigo="6", velocidade=172.4, **good),
    ]
    one = capture.read(json.dumps(vehicles).encode(), now)
    capture.append(pipeline.captures_folder(), one, 60)
    pipeline.load_new()
    pipeline.model()
    assert flags(pool) == [
        ("1", 0, False, False),
        ("2", 0, True, False),
        ("3", 0, False, True),
        ("4", 0, False, False),
        ("5", 2, False, False),
        ("6", 172.4, False, False),
    ]
    assert results("sources.json")["results"][0]["status"] == "pass"
    assert "source.brt.brt.brt_raw" in results("catalog.json")["sources"]
    assert (settings.folder() / "dbt/target/index.html").exists()
    picture = pipeline.draw().read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000


def run_sql(pool, sql):
    with pool.begin() as connection:
        return connection.execute(text(sql))


def failures():
    return [each["message"] for each in results("run_results.json")["results"] if each["status"] == "error"]


def test_a_second_run_of_dbt_keeps_the_views_that_others_built_on_its_views(ten_captures):
    pipeline.load_new()
    pipeline.run_dbt("run")
    run_sql(ten_captures, "CREATE VIEW report AS SELECT id FROM posicao_onibus JOIN stg_posicao USING (id)")
    pipeline.run_dbt("run")
    with ten_captures.connect() as connection:
        assert connection.scalar(text("SELECT count(DISTINCT id) FROM report")) == 453


@pytest.mark.parametrize("kind", ["TABLE", "MATERIALIZED VIEW"])
def test_dbt_drops_no_table_that_has_the_name_of_its_view(ten_captures, kind):
    pipeline.load_new()
    run_sql(ten_captures, f"CREATE {kind} posicao_onibus AS SELECT 1 AS id; CREATE VIEW report AS TABLE posicao_onibus")
    with pytest.raises(pipeline.ModelError, match="dbt run failed"):
        pipeline.run_dbt("run")
    (said,) = failures()
    assert (
        "public.posicao_onibus is no view of this pipeline: rename it, or set BRT_DATABASE_URL to another database"
        in said
    )
    with ten_captures.connect() as connection:
        assert connection.scalars(text("SELECT id FROM report")).all() == [1]


def test_dbt_waits_for_a_reader_of_its_views_only_until_its_time_limit(ten_captures):
    pipeline.load_new()
    pipeline.run_dbt("run")
    with ten_captures.connect() as reader:
        reader.execute(text("SELECT count(*) FROM posicao_onibus"))
        with pytest.raises(pipeline.ModelError, match="dbt run .*failed"):
            pipeline.run_dbt("run", "--vars", "lock_timeout: 100ms")
    assert [said for said in failures() if "canceling statement due to lock timeout" in said]


def test_the_map_of_old_captures_shows_them_as_they_were(ten_captures):
    pipeline.load_new()
    pipeline.run_dbt("run")
    drawn = (image.imread(pipeline.draw())[:, :, :3] * 255).round().astype(int)
    pixels = Counter(map(tuple, drawn.reshape(-1, 3)))
    green, grey = [pixels[tuple(bytes.fromhex(colour[1:]))] for _, _, colour in (AGES[-1], AGES[0])]
    assert green > grey > 0


@pytest.mark.parametrize(
    ("port", "remedy"), [(None, "make capture load run_dbt"), (1, "set BRT_DATABASE_URL or BRT_POSTGRES_PORT")]
)
def test_a_map_that_cannot_be_drawn_names_the_remedy(pool, monkeypatch, port, remedy):
    """The view is missing, or no server runs there."""
    if port:
        elsewhere = pool.url.set(port=port, host="127.0.0.1", query={})
        monkeypatch.setenv("BRT_DATABASE_URL", elsewhere.render_as_string(hide_password=False))
    with pytest.raises(DatabaseError, match=f"BRT's database failed: .*{remedy}"):
        pipeline.draw()


@pytest.mark.parametrize("dbt_fails", [False, True])
def test_a_load_with_too_many_rejects_fails_after_dbt_has_run(monkeypatch, dbt_fails):
    done = []

    def run_dbt():
        done.append("dbt")
        if dbt_fails:
            raise pipeline.ModelError("dbt build failed")

    monkeypatch.setattr(flows, "load_files", lambda: load.Report(faulty=("400 of 400 lines of a file",)))
    monkeypatch.setattr(flows, "run_dbt", run_dbt)
    with pytest.raises(load.RejectedError, match="400 of 400 lines of a file"):
        flows.load.fn()
    assert done == ["dbt"]


def test_a_repeated_signal_keeps_its_flag_of_a_clock_ahead(pool):
    ahead = vehicle(dataHora=milliseconds(FIRST_MINUTE + timedelta(minutes=10)))
    load_captures(*(captured(ahead, after_minutes=minute) for minute in range(9)))
    assert flags(pool) == [("901008", 0, False, True)]


@pytest.mark.parametrize(("ahead", "is_ahead"), [(range(1, 9), True), (range(4), False)], ids=["jumped", "corrected"])
def test_a_bus_whose_clock_changed_is_shown_at_its_current_position(pool, ahead, is_ahead):
    signals = [
        vehicle(
            velocidade=minute, dataHora=milliseconds(FIRST_MINUTE + timedelta(minutes=minute + 20 * (minute in ahead)))
        )
        for minute in range(9)
    ]
    load_captures(*(captured(signal, after_minutes=minute) for minute, signal in enumerate(signals)))
    assert flags(pool) == [("901008", 8, False, is_ahead)]


def test_a_bus_without_a_line_has_null(pool):
    load_captures(
        captured(*(vehicle(codigo=str(number), linha=line) for number, line in enumerate(("0", "", " ", None))))
    )
    assert {row[4] for row in positions(pool).values()} == {None}


def test_dbt_warns_of_doubtful_positions(pool):
    load_captures(captured(vehicle(latitude=-3.7, velocidade=172.4)))
    found = {each["unique_id"].split(".")[2]: each["status"] for each in results("run_results.json")["results"]}
    assert sorted(name.split("__")[0] for name, status in found.items() if status == "warn") == [
        "accepted_values_posicao_onibus_outside_city",
        "in_range_posicao_onibus_speed_kmh",
    ]
    assert set(found.values()) == {"success", "pass", "warn"}


@pytest.mark.parametrize("ahead", [False, True])
def test_a_stale_source_fails_the_model(pool, ahead):
    """A capture of a wrong clock, two days ahead, makes it no fresher."""
    capture.append(pipeline.captures_folder(), real_captures()[0], 60)
    if ahead:
        capture.append(pipeline.captures_folder(), captured_two_days_ahead(vehicle()), 60)
    pipeline.load_new()
    with pytest.raises(pipeline.ModelError, match="dbt source freshness failed"):
        pipeline.model()
    assert positions(pool)


def failed_tests():
    return [each["unique_id"].split(".")[-1] for each in results("run_results.json")["results"] if each["failures"]]


@pytest.mark.parametrize("ahead", [[], [captured_two_days_ahead(vehicle(codigo="901008", dataHora=2))]], ids=len)
@pytest.mark.parametrize(("minutes", "failed"), [(59, []), (61, ["new_signals_arrive"])])
def test_an_hour_of_captures_without_a_new_signal_fails_the_build(pool, minutes, failed, ahead):
    """The API repeats the last signals for an hour of 2023, by the captures' times; a wrong clock does not count."""
    last = vehicle(dataHora=milliseconds(FIRST_MINUTE))
    load_captures(captured(last), captured(last, after_minutes=minutes), *ahead, build_fails=bool(failed))
    assert positions(pool).keys() == {"901008"}
    assert [name for name in failed_tests() if "signals" in name] == failed


@pytest.mark.parametrize(
    ("good", "bad", "fails", "ahead"),
    [
        (20, 0, False, 0),
        (10, 10, False, 0),
        (9, 0, True, 0),
        (9, 11, True, 0),
        (0, 20, True, 0),
        (1, 0, True, 0),
        (9, 0, True, 20),
        (20, 0, False, 1),
    ],
)
def test_a_file_with_too_few_signals_per_capture_fails_the_build(pool, good, bad, fails, ahead):
    """Signals of a capture whose clock was ahead do not count."""
    usual = [vehicle(codigo=str(number), dataHora=milliseconds(FIRST_MINUTE)) for number in range(20)]
    now = [*usual[:good], *[vehicle(latitude="north")] * bad]
    captures = [captured(*(usual if minute < 20 else now), after_minutes=minute) for minute in range(22)]
    captures += [captured_two_days_ahead(*usual[:ahead])] if ahead else []
    load_captures(*captures, build_fails=fails)
    assert len(positions(pool)) == 20
    assert [name for name in failed_tests() if "signals" in name] == ["signals_are_as_many_as_usual"] * fails


def test_a_capture_without_any_signal_fails_the_build(pool):
    load_captures(captured(vehicle(latitude="north")), build_fails=True)
    assert sorted(failed_tests()) == ["new_signals_arrive", "signals_are_as_many_as_usual"]


def test_no_file_of_dbt_holds_the_password(ten_captures):
    password = ten_captures.url.password
    pipeline.load_new()
    pipeline.run_dbt("build")
    for file in (settings.folder() / "dbt").rglob("*"):
        if file.is_file():
            assert password.encode() not in file.read_bytes()
