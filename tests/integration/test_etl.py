"""The command etl.py: its results, its output, and the exit code of every failure."""

import csv
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from support import reference
from support.faulty import HANG, RESET, answering, http
from support.project import ROOT, alvo_values, bare

import etl
import seed
from alvo import schema
from fonte import client, local
from orchestration import day

STATISTICS = ("mean", "min", "max", "std")


@pytest.fixture
def own_fonte(connector, monkeypatch):
    """Set FONTE_API_URL to a connector over a Fonte that only this test uses."""
    monkeypatch.setenv("FONTE_API_URL", connector)


def exact_values(pool, start, end, columns):
    """Return the expected values: the correctly rounded statistics of Fonte's rows, computed as fractions."""
    windows = {}
    with pool.connect() as connection:
        rows = connection.execute(
            text(f"SELECT timestamp, {', '.join(columns)} FROM data WHERE timestamp >= :start AND timestamp < :end"),
            {"start": start, "end": end},
        )
        for timestamp, *values in rows:
            window = timestamp.astimezone(UTC).replace(minute=timestamp.minute // 10 * 10, second=0)
            for column, value in zip(columns, values, strict=True):
                windows.setdefault((window, column), []).append(value)
    expected = {}
    for (window, column), values in windows.items():
        exact = (reference.mean(values), min(values), max(values), reference.std(values))
        expected |= {(window, f"{column}_{s}"): reference.as_double(e) for s, e in zip(STATISTICS, exact, strict=True)}
    return expected


def run_failing(capsys, *arguments):
    """Run etl.py in this process; return the exit code and the one line on standard error."""
    try:
        code = etl.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("etl.py: ")
    assert output.err.count("\n") == 1
    return code, output.err


def test_a_day_goes_from_fonte_to_alvo_and_a_rerun_changes_nothing(
    fonte_api, alvo_pool, make_pool, seeded_template, server, capsys
):
    start = datetime(2024, 5, 20, tzinfo=UTC)
    assert etl.main(["2024-05-20"]) == 0
    first = capsys.readouterr()
    assert first.err == ""
    assert re.sub(r"\d\.\d\d", "0.00", first.out) == (
        "2024-05-20 UTC\n"
        "  wind_speed  1,440 of 1,440 samples (100.0%), 144 windows\n"
        "  power       1,440 of 1,440 samples (100.0%), 144 windows\n"
        "  Alvo: 1,152 values written, 0 unchanged, 0 removed\n"
        "  0.00 s: start 0.00, extract 0.00, aggregate 0.00, load 0.00\n"
    )
    expected = exact_values(
        make_pool(server.set(database=seeded_template)), start, start + timedelta(days=1), ("wind_speed", "power")
    )
    assert len(expected) == 1152
    assert alvo_values(alvo_pool) == expected
    assert etl.main(["2024-05-20"]) == 0
    assert "Alvo: 0 values written, 1,152 unchanged, 0 removed" in capsys.readouterr().out
    assert alvo_values(alvo_pool) == expected


def test_only_the_asked_variables_are_replaced(own_fonte, fonte_pool, alvo_pool, capsys):
    assert etl.main(["2024-05-20", "--columns", "power", "wind_speed", "ambient_temperature"]) == 0
    before = alvo_values(alvo_pool)
    assert len(before) == 1728
    assert len({name for _, name in before}) == 12
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET power = power + 1, wind_speed = wind_speed + 1"))
    assert etl.main(["2024-05-20", "--columns", "power"]) == 0
    # Shifting the values changes the standard deviation only by rounding.
    changed = {key for key, value in alvo_values(alvo_pool).items() if value != before[key]}
    assert {name for _, name in changed} <= {"power_mean", "power_min", "power_max", "power_std"}
    assert len([name for _, name in changed if name == "power_mean"]) == 144


def test_values_that_a_trigger_drops_are_reported(fonte_api, alvo_pool, capsys):
    drops = "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    when = "FOR EACH ROW WHEN (NEW.timestamp = '2024-05-20Z') EXECUTE FUNCTION skip()"
    with alvo_pool.begin() as connection:
        schema.create_absent(connection)
        connection.execute(text(f"{drops}; CREATE TRIGGER skip BEFORE INSERT ON data {when}"))
    for statistics, dropped in ((["mean"], "1 value"), (["min", "max"], "2 values")):
        assert etl.main(["2024-05-20", "--columns", "power", "--statistics", *statistics]) == 0
        said = f"  not kept by Alvo: {dropped}; look for a trigger or rule of its table data\n"
        assert said in capsys.readouterr().out


def test_windows_with_one_sample_count_although_they_have_no_std(alvo, monkeypatch, capsys):
    body = [{"timestamp": f"2024-05-20T00:{minute}0:00Z", "power": minute} for minute in range(5)]
    with answering(http(body=body)) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        assert etl.main(["2024-05-20", "--columns", "power", "--statistics", "mean", "std"]) == 0
        assert etl.main(["2024-05-20", "--columns", "power", "--statistics", "std"]) == 0
    assert capsys.readouterr().out.count("5 of 144 samples (3.4%), 5 windows\n") == 2


def test_only_the_asked_statistics_of_a_variable_are_kept(own_fonte, alvo_pool, capsys):
    def held():
        return {name for _, name in alvo_values(alvo_pool)}

    assert etl.main(["2024-05-20"]) == 0
    assert etl.main(["2024-05-20", "--columns", "power", "--statistics", "mean", "count"]) == 0
    said = capsys.readouterr().out
    assert "Alvo: 144 values written, 144 unchanged, 432 removed" in said
    assert said.endswith("Alvo keeps only these statistics of these variables: mean count\n")
    assert held() == {"power_mean", "power_count", *(f"wind_speed_{statistic}" for statistic in STATISTICS)}
    assert {value for (_, name), value in alvo_values(alvo_pool).items() if name == "power_count"} == {10.0}
    assert etl.main(["2024-05-20", "--columns", "power"]) == 0
    assert held() == {f"{variable}_{statistic}" for variable in ("power", "wind_speed") for statistic in STATISTICS}


def test_missing_samples_are_counted_and_never_filled(own_fonte, fonte_pool, alvo_pool, capsys):
    etl.main(["2024-05-20"])
    capsys.readouterr()
    with fonte_pool.begin() as connection:
        for statement in (
            "DELETE FROM data WHERE timestamp >= '2024-05-20 01:00Z' AND timestamp < '2024-05-20 01:30Z'",
            "UPDATE data SET power = NULL WHERE timestamp < '2024-05-20 00:05Z'",
            "UPDATE data SET power = 'NaN' WHERE timestamp >= '2024-05-20 00:10Z' AND timestamp < '2024-05-20 00:19Z'",
            "UPDATE data SET wind_speed = 'Infinity' WHERE timestamp = '2024-05-20 00:20Z'",
        ):
            connection.execute(text(statement))
    assert etl.main(["2024-05-20"]) == 0
    report = capsys.readouterr().out
    assert "wind_speed  1,409 of 1,440 samples (97.8%), 141 windows" in report
    assert "power       1,396 of 1,440 samples (96.9%), 141 windows" in report
    assert "left out: 15 values that are NULL, NaN or infinite" in report
    # Three windows of eight signals, and the standard deviation of the window with one sample.
    assert "25 removed" in report
    names = {name for moment, name in alvo_values(alvo_pool) if moment == datetime(2024, 5, 20, 0, 10, tzinfo=UTC)}
    assert "power_mean" in names
    assert "power_std" not in names


def test_a_variable_without_samples_loses_its_rows(own_fonte, fonte_pool, alvo_pool, capsys):
    etl.main(["2024-05-20"])
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET power = NULL"))
    assert etl.main(["2024-05-20"]) == 0
    assert "power       0 of 1,440 samples (0.0%), 0 windows" in capsys.readouterr().out
    assert {name for _, name in alvo_values(alvo_pool)} == {f"wind_speed_{s}" for s in STATISTICS}


def test_a_result_beyond_the_largest_double_gives_no_row_and_is_counted(own_fonte, fonte_pool, alvo_pool, capsys):
    with fonte_pool.begin() as connection:
        connection.execute(text("DELETE FROM data"))
        connection.execute(
            text(
                "INSERT INTO data (timestamp, power) "
                "VALUES ('2024-05-20 00:00Z', 1.7e308), ('2024-05-20 00:01Z', -1.7e308)"
            )
        )
    assert etl.main(["2024-05-20", "--columns", "power"]) == 0
    report = capsys.readouterr().out
    assert "left out: 1 result beyond the largest double" in report
    assert "3 values written" in report
    assert alvo_values(alvo_pool)[datetime(2024, 5, 20, tzinfo=UTC), "power_mean"] == 0


def test_real_minutes_become_the_published_statistics(make_database, alvo_pool, monkeypatch, capsys):
    fonte = make_database()
    monkeypatch.setenv("FONTE_DATABASE_URL", fonte.render_as_string(hide_password=False))
    assert seed.main(["--csv", str(ROOT / "tests/data/arm_source.csv")]) == 0
    for date_ in ("2019-01-01", "2019-01-02"):
        assert etl.main([date_, "--columns", "wind_speed", "ambient_temperature"]) == 0
    held = alvo_values(alvo_pool)
    with Path(ROOT / "tests/data/arm_expected.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(held) == 4 * len(rows) == 2304
    for row in rows:
        for column, statistic in (("mean", "mean"), ("min", "min"), ("max", "max"), ("std_sample", "std")):
            value = held[datetime.fromisoformat(row["timestamp"]), f"{row['signal']}_{statistic}"]
            # The file has ten significant digits.
            assert f"{value:.10g}" == f"{float(row[column]):.10g}", (row, statistic)


@pytest.mark.parametrize(
    ("zone", "day", "first", "windows"),
    [
        ("America/Sao_Paulo", "2024-05-21", datetime(2024, 5, 21, 3, tzinfo=UTC), 144),
        ("Asia/Kolkata", "2024-05-21", datetime(2024, 5, 20, 18, 30, tzinfo=UTC), 144),
        ("Europe/Berlin", "2024-03-31", datetime(2024, 3, 30, 23, tzinfo=UTC), 138),
        ("Europe/Berlin", "2024-10-27", datetime(2024, 10, 26, 22, tzinfo=UTC), 150),
    ],
)
def test_a_local_day_has_as_many_windows_as_its_clocks_give_it(
    make_database, alvo_pool, monkeypatch, zone, day, first, windows
):
    fonte = make_database()
    monkeypatch.setenv("FONTE_DATABASE_URL", fonte.render_as_string(hide_password=False))
    before = date.fromisoformat(day) - timedelta(days=1)
    seed.main(["--start", str(before), "--days", "3"])
    assert etl.main([day, "--timezone", zone, "--columns", "power"]) == 0
    moments = sorted({moment for moment, _ in alvo_values(alvo_pool)})
    assert moments == [first + number * timedelta(minutes=10) for number in range(windows)]


def test_today_is_loaded_and_reported_as_unfinished(alvo_pool, monkeypatch, capsys):
    now = datetime.now(UTC)
    with answering(http(body=[{"timestamp": f"{now:%Y-%m-%d}T00:00:00Z", "power": 1}])) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        assert etl.main([f"{now:%Y-%m-%d}", "--columns", "power"]) == 0
    assert f"{now:%Y-%m-%d} UTC, not over yet\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "DATE"),
        (["20240520"], "'20240520' is not a date"),
        (["2024-05-20", ""], "argument LAST_DATE: '' is empty"),
        (["2024-05-20", "--plot", ""], "argument --plot: '' is empty"),
        (["2024-05-20", "--dask="], "argument --dask: '' is empty"),
        (["2024-05-20", "--columns", "caf\udce9"], r"argument --columns: 'caf\udce9' is not UTF-8"),
        (["2024-05-20", "--res"], "unrecognized arguments: --res (did you mean --resume?)"),
        (["2024-02-30"], "'2024-02-30' is not a date"),
        (["2999-01-01"], "2999-01-01 is in the future: the last day that can be run is today"),
        (["9999-12-31"], "9999-12-31 is in the future"),
        (["2024-05-20", "2999-01-01"], "2999-01-01 is in the future"),
        (["2024-05-21", "2024-05-20"], "the range ends on 2024-05-20, before it begins on 2024-05-21"),
        (["0001-01-01", "--timezone", "Etc/GMT-9"], "0001-01-01 in Etc/GMT-9 begins before the year 1"),
        (["2024-05-20", "--days-at-once", "0"], "'0' is not a number from 1 to 100"),
        (["2024-05-20", "--timezone", "Europe/Atlantis"], "'Europe/Atlantis' is not a time zone"),
        (
            ["2024-05-20", "--timezone", "Asia/Kathmandu"],
            "2024-05-20 in Asia/Kathmandu does not begin and end on a 10-minute boundary",
        ),
        (["2011-12-30", "--timezone", "Pacific/Apia"], "2011-12-30 does not exist in Pacific/Apia"),
        (["2024-05-20", "--columns"], "--columns"),
        (["2024-05-20", "--columns", "ambient_temprature"], "(did you mean ambient_temperature?)"),
        (["2024-05-20", "--columns", "wind"], "columns='wind': expected 'wind_speed', 'power', 'ambient_temperature'"),
        (["2024-05-20", "--columns", "power", "power"], "argument --columns: power power: expected each name once"),
        (
            ["2024-05-20", "--statistics", "min", "max", "min"],
            "argument --statistics: min max min: expected each name once",
        ),
        (["2024-05-20", "--statistics", "median"], "argument --statistics: invalid choice: 'median'"),
    ],
)
def test_bad_input_is_exit_code_2(fonte_api, alvo_pool, capsys, arguments, said):
    code, message = run_failing(capsys, *arguments)
    assert code == 2
    assert said in message
    assert alvo_values(alvo_pool) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FONTE_API_URL", "localhost:8000"),
        ("ALVO_DATABASE_URL", "mysql://u:secret@localhost/alvo"),
        ("ALVO_DATABASE_URL", "postgresql://u:sec/ret@localhost:port/alvo"),
    ],
)
def test_an_invalid_url_in_a_setting_is_exit_code_2_and_not_repeated(fonte_api, alvo, capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    code, message = run_failing(capsys, "2024-05-20")
    assert code == 2
    assert name in message
    assert "sec" not in message


@pytest.mark.parametrize(
    ("fault", "expected_code", "said"),
    [
        (http(404, body={"detail": "Not Found"}), 3, "HTTP 404 x: Not Found, at http://127.0.0.1:"),
        (http(422, body={"detail": "columns='power': not sold here"}), 2, "columns='power': not sold here"),
        (http(500, body=b"<h1>oops</h1>", content_type="text/html"), 3, "HTTP 500"),
        (http(body=b"<html></html>", content_type="text/html"), 3, "no JSON"),
        (http(body=b'[{"timestamp"', length=2000), 3, "peer closed connection"),
        (http(503), 3, "HTTP 503"),
        (RESET, 3, "reset by peer"),
        (HANG, 3, "timed out"),
    ],
    ids=["404", "422", "500", "HTML", "half a body", "503", "reset", "hanging"],
)
def test_a_failing_fonte_has_its_exit_code_and_leaves_alvo_unchanged(
    fonte_api, alvo_pool, capsys, monkeypatch, fault, expected_code, said
):
    etl.main(["2024-05-20"])
    before = alvo_values(alvo_pool)
    capsys.readouterr()
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.2)
    with answering(fault) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        code, message = run_failing(capsys, "2024-05-20")
    assert code == expected_code
    assert said in message
    assert ("check FONTE_API_URL" in message) == (code == 3)
    assert alvo_values(alvo_pool) == before


@pytest.mark.parametrize("dates_last", [False, True])
def test_the_command_that_is_printed_after_a_failure_runs(fonte_api, alvo_pool, capsys, monkeypatch, dates_last):
    options = ["--keep-going", "--days-per-request", "1", "--columns", "power"]
    dates = ["2024-05-20", "2024-05-21"]
    with answering(http(404), http(404)) as server, monkeypatch.context() as environment:
        environment.setenv("FONTE_API_URL", server.url)
        assert etl.main([*options, "--", *dates] if dates_last else [*dates, *options]) == 3
    again = capsys.readouterr().err.splitlines()[-1].split()
    assert again == ["python", "etl.py", *dates, *options]
    assert etl.main(again[2:]) == 0


def test_an_unreachable_fonte_database_is_exit_code_3(alvo, capsys, monkeypatch, refused_port):
    monkeypatch.setenv("FONTE_DATABASE_URL", f"postgresql://u:secret@127.0.0.1:{refused_port}/x")
    code, message = run_failing(capsys, "2024-05-20")
    assert code == 3
    assert "Fonte's database does not answer" in message


def test_an_embedded_server_that_does_not_start_has_the_exit_code_of_its_side(fonte_api, capsys, monkeypatch, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".embedded").write_text("a file instead of the folder")
    assert run_failing(capsys, "2024-05-20")[0] == 4
    monkeypatch.delenv("FONTE_API_URL")
    assert run_failing(capsys, "2024-05-20")[0] == 3


@pytest.mark.parametrize(("last_id", "code"), [(2**31 - 1, 0), (2**31, 4)])
def test_a_signal_id_beyond_an_integer_is_exit_code_4_and_one_line(fonte_api, alvo_pool, capsys, last_id, code):
    assert etl.main(["2024-05-20"]) == 0
    signals = 8
    with alvo_pool.begin() as connection:
        connection.execute(text("ALTER TABLE signal ALTER id TYPE bigint"))
        connection.execute(text("UPDATE signal SET name = name || '_before'"))
        connection.execute(text(f"ALTER TABLE signal ALTER id RESTART WITH {last_id - signals + 1}"))
    capsys.readouterr()
    assert etl.main(["2024-05-20"]) == code
    message = capsys.readouterr().err
    assert message.count("\n") == (code > 0)
    assert ("the signal id 2147483648 is beyond an integer" in message) == (code > 0)
    assert len(alvo_values(alvo_pool)) == 1152 * (1 if code else 2)


def test_an_unreachable_alvo_is_exit_code_4(fonte_api, capsys, monkeypatch, refused_port):
    monkeypatch.setenv("ALVO_DATABASE_URL", f"postgresql://u:secret@127.0.0.1:{refused_port}/alvo")
    code, message = run_failing(capsys, "2024-05-20")
    assert code == 4
    assert "refused" in message
    assert "check ALVO_DATABASE_URL" in message
    assert "secret" not in message


def test_a_wrong_password_is_exit_code_4_and_never_printed(fonte_api, alvo, capsys, monkeypatch):
    url = alvo.set(password="not-the-secret").render_as_string(hide_password=False)
    monkeypatch.setenv("ALVO_DATABASE_URL", url)
    code, message = run_failing(capsys, "2024-05-20")
    assert code == 4
    assert "password authentication failed" in message
    assert "not-the-secret" not in message


def test_values_of_the_embedded_fonte_in_another_alvo_are_named(run_command, alvo, shared_connector):
    """A lost FONTE_API_URL would otherwise load the demo's plausible values without a word."""
    own = {"ALVO_DATABASE_URL": alvo.render_as_string(hide_password=False)}
    said = "Fonte is the embedded demo: FONTE_API_URL or FONTE_DATABASE_URL names another one\n"
    for last_date in ([], ["2024-05-21"]):
        run = run_command("etl.py", "2024-05-20", *last_date, **own)
        assert (run.returncode, run.stderr) == (0, said)
    assert run_command("etl.py", "2024-05-20", FONTE_API_URL=shared_connector, **own).stderr == ""


def test_an_empty_day_is_exit_code_5_and_leaves_alvo_unchanged(own_fonte, fonte_pool, alvo_pool, capsys):
    etl.main(["2024-05-20"])
    before = alvo_values(alvo_pool)
    capsys.readouterr()
    with fonte_pool.begin() as connection:
        connection.execute(text("UPDATE data SET power = NULL, wind_speed = 'NaN'"))
    code, message = run_failing(capsys, "2024-05-20")
    assert code == 5
    assert "Fonte holds no finite sample of wind_speed, power from 2024-05-20 00:00:00+00:00 to 2024-05-21" in message
    with fonte_pool.begin() as connection:
        connection.execute(text("DELETE FROM data"))
    assert run_failing(capsys, "2024-05-20")[0] == 5
    assert alvo_values(alvo_pool) == before


def test_a_traceback_is_shown_with_debug_only(alvo, capsys, monkeypatch, refused_port):
    monkeypatch.setenv("FONTE_API_URL", f"http://127.0.0.1:{refused_port}")
    _, line = run_failing(capsys, "2024-05-20")
    assert etl.main(["2024-05-20", "--debug"]) == 3
    traceback, last_line = capsys.readouterr().err.strip().rsplit("\n", 1)
    assert traceback.startswith("Traceback")
    assert "FonteError" in traceback
    assert last_line == line.strip()


def test_a_closed_pipe_ends_a_range_without_an_error_message(folder, fonte_api, alvo):
    command = f"{sys.executable} etl.py 2024-05-20 2024-05-22 | head -n 1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    assert run.returncode in (141, 0)
    assert run.stdout.startswith("2024-05-20 UTC  2,880 of 2,880 samples")
    assert (run.stdout.count("\n"), run.stderr) == (1, "")


def test_an_unreachable_fonte_is_exit_code_3_and_one_line(alvo, capsys, monkeypatch, refused_port):
    monkeypatch.setenv("FONTE_API_URL", f"http://127.0.0.1:{refused_port}")
    code, message = run_failing(capsys, "2024-05-20")
    assert code == 3
    assert f"Fonte at http://127.0.0.1:{refused_port} failed: " in message


def test_an_interrupted_day_is_exit_code_130_and_one_line(fonte_api, alvo, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(day, "fetch", interrupted)
    assert run_failing(capsys, "2024-05-20") == (130, "etl.py: interrupted; nothing is left half done\n")


def test_the_commands_run_without_any_setting(run_command, folder):
    first = run_command("etl.py", "2024-05-20")
    assert (first.returncode, first.stderr) == (0, "")
    assert "1,152 values written" in first.stdout
    second = run_command("etl.py", "2024-05-20", "--columns", "power", "wind_speed", "ambient_temperature")
    assert "576 values written, 1,152 unchanged" in second.stdout
    # Other programs' settings, which the libraries of ours would read.
    odd = run_command("etl.py", "2024-05-20", WEB_CONCURRENCY="auto")
    assert (odd.returncode, odd.stderr) == (0, "")
    seeded = run_command("seed.py", "--days", "11")
    assert "1,440 rows inserted, 14,400 were there already" in seeded.stdout
    held = run_command(
        "-c",
        "from fonte_alvo import settings;"
        "from sqlalchemy import create_engine, text; c = create_engine(settings.alvo_database_url()).connect();"
        "print(c.scalar(text('SELECT count(*) FROM data')), c.scalar(text('SELECT count(*) FROM signal')))",
    )
    assert held.stdout.split() == ["1728", "12"]


def test_two_concurrent_first_runs_share_the_embedded_server(folder):
    command = [sys.executable, "etl.py", "2024-05-20"]
    environment = bare(folder)
    runs = [
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sorted(re.search(r"([\d,]+) values written", out).group(1) for out, _ in outputs) == ["0", "1,152"]


def test_the_tables_can_be_created_beforehand(run_command, alvo, alvo_pool):
    url = alvo.render_as_string(hide_password=False)
    for _ in range(2):
        made = run_command("-m", "alvo.schema", ALVO_DATABASE_URL=url)
        assert (made.returncode, made.stdout) == (0, "Alvo has the tables signal, data and load\n")
    assert alvo_values(alvo_pool) == {}
    assert run_command("-m", "alvo.schema", ALVO_DATABASE_URL="nonsense").returncode == 2
    assert run_command("-m", "alvo.schema", ALVO_DATABASE_URL="postgresql://127.0.0.1:1/x").returncode == 4


def test_help_names_options_settings_exit_codes_and_the_data_folder(run_command, folder):
    for command, words in (
        (
            "etl.py",
            [
                "--columns",
                "--timezone",
                "exit codes",
                "FONTE_API_URL",
                "ALVO_DATABASE_URL",
                f"{folder}/.embedded",
                "delete that folder",
            ],
        ),
        ("seed.py", ["--start", "2024-05-20", "--days", "--profile", "--csv", "--random-seed", "Exit codes"]),
    ):
        said = run_command(command, "--help").stdout
        assert [word for word in words if word not in said] == []


def modules_loaded(run):
    """Return the modules that -X importtime lists."""
    return {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}


def test_a_day_loads_no_command_line_library(run_command, connector, alvo):
    services = {"FONTE_API_URL": connector, "ALVO_DATABASE_URL": alvo.render_as_string(hide_password=False)}
    run = run_command("-X", "importtime", "etl.py", "2024-05-20", **services)
    assert run.returncode == 0
    assert "httpx" in (loaded := modules_loaded(run))
    assert not loaded & {"click", "rich", "pygments"}


WAITING_SERVER = """
import sys, time
import etl
from fonte_alvo import settings

def start():
    deadline = time.monotonic() + 60
    while "fastapi" not in sys.modules:
        assert time.monotonic() < deadline, "no import runs meanwhile"
    return database_url()

database_url, settings.fonte_database_url = settings.fonte_database_url, start
code = etl.main(["2024-05-20"])
from fonte import connector
print("description:", connector.app.openapi_schema)
sys.exit(code)
"""


def test_the_embedded_server_starts_during_the_imports_and_no_description_is_built(run_command):
    run = run_command("-c", WAITING_SERVER)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("description: None\n")


def test_no_server_is_left_running_when_the_interpreter_ends(run_command):
    """A server's thread that still ran at exit crashed one process in thirty, after the day was loaded."""
    code = "import etl, threading; etl.main(['2024-05-20']); print([each.name for each in threading.enumerate()])"
    assert "serve" not in run_command("-c", code).stdout.splitlines()[-1]


def test_a_connector_stops_with_its_context(fonte, monkeypatch):
    monkeypatch.setenv("FONTE_DATABASE_URL", fonte.render_as_string(hide_password=False))
    with local.base_url() as base_url:
        httpx.get(f"{base_url}/health").raise_for_status()
    assert not listens(base_url)


def listens(base_url):
    try:
        httpx.get(base_url)
    except httpx.TransportError:
        return False
    return True
