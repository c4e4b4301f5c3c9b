"""Ranges: order, overlap, resume, interruption, and the number of statements."""

import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from itertools import pairwise
from time import perf_counter
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event, text
from support.faulty import RESET, answering, http
from support.project import RANGE, SCRIPTS, alvo_values, external, interrupt, machine_in, wait_until

import etl
from alvo import load, schema
from fonte.client import connect
from fonte_alvo import engine
from orchestration import day as one
from orchestration import days


@pytest.mark.parametrize("zone", ["UTC", "America/Sao_Paulo", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe"])
def test_the_days_of_a_year_have_no_gap_between_them(zone):
    year = list(days.between(date(2023, 1, 1), date(2023, 12, 31), ZoneInfo(zone)))
    assert len(year) == 365
    assert all(day.end == following.start for day, following in pairwise(year))
    assert {(day.end - day.start) // timedelta(minutes=10) for day in year} <= {138, 141, 144, 147, 150}
    assert year[-1].end - year[0].start == timedelta(days=365)


def test_a_range_leaves_out_a_day_that_its_zone_skipped():
    apia = days.between(date(2011, 12, 29), date(2011, 12, 31), ZoneInfo("Pacific/Apia"))
    assert [period.date.day for period in apia] == [29, 31]


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_today_is_the_day_of_the_zone_and_its_bounds_are_utc(zone):
    # At any moment it is another day in one of these zones than in UTC.
    today = datetime.now(ZoneInfo(zone)).date()
    with machine_in("America/Sao_Paulo"):
        (day,) = days.between(today, today, ZoneInfo(zone))
        assert day.start.utcoffset() == day.end.utcoffset() == timedelta()
        with pytest.raises(days.BadPeriod, match="is in the future"):
            list(days.between(today, today + timedelta(days=1), ZoneInfo(zone)))


def test_only_a_complete_day_has_100_percent():
    """A second that is missing at 1 Hz would be rounded up."""
    (day,) = some_days(1)
    second, report = timedelta(seconds=1), load.Report(1, 0, 0)
    counts = {"interval": second, "expected": 86_400, "implausible": {}, "not_finite": 0, "overflowed": 0, "dropped": 0}
    done = one.Outcome({"power": 86_399}, {"power": 144}, **counts, report=report, seconds={"load": 1.0})
    assert "power  86,399 of 86,400 samples (99.9%), 144 windows" in one.summary(day, done)
    assert "(100.0%)" in one.summary(day, done._replace(samples={"power": 86_400}))


def some_days(count):
    return list(days.between(date(2024, 1, 1), date(2024, 1, count), ZoneInfo("UTC")))


def test_results_are_in_order_and_no_more_days_run_at_once_than_asked():
    running, most = set(), []
    both = threading.Barrier(2)

    def carry(period):
        running.add(period.date)
        if period.date.day <= 2:
            both.wait(20)
        most.append(len(running))
        running.remove(period.date)
        return period.date

    with ThreadPoolExecutor(8) as executor:
        results = [(period.date, future.result()) for period, future in days.in_order(some_days(9), carry, executor, 2)]
    assert results == [(period.date, period.date) for period in some_days(9)]
    assert max(most) == 2


def test_closing_a_range_starts_no_day_and_finishes_the_running_ones():
    started, finished = [], []
    proceed = threading.Event()

    def carry(period):
        started.append(period.date.day)
        if period.date.day > 1:
            assert proceed.wait(20)
        finished.append(period.date.day)

    with ThreadPoolExecutor(3) as executor:
        results = days.in_order(some_days(9), carry, executor, 3)
        next(results)
        results.close()
        proceed.set()
    assert sorted(finished) == sorted(started)
    assert max(started) <= 4


def test_consecutive_days_are_joined_to_ranges():
    chosen = [period for period in some_days(9) if period.date.day in (1, 2, 3, 5, 8, 9)]
    assert [(first.day, last.day) for first, last in days.ranges(chosen)] == [(1, 3), (5, 5), (8, 9)]
    decade = list(days.between(date(2014, 1, 1), date(2023, 12, 31), ZoneInfo("UTC")))
    assert days.ranges(decade) == [(date(2014, 1, 1), date(2023, 12, 31))]


def test_a_range_prints_a_line_per_day_and_a_total(fonte_api, alvo_pool, undisturbed, capsys):
    capsys.readouterr()
    assert etl.main(RANGE) == 0
    lines = re.sub(r"\d\.\d\d s", "0.00 s", capsys.readouterr().out).splitlines()
    done = "1,440 of 1,440 samples, 576 values written, 0 unchanged, 0 removed, 0.00 s"
    expected = [f"2024-05-{day} UTC  {done}" for day in range(20, 30)]
    # This day has a gap of two hours and three minutes without power.
    expected[8] = expected[8].replace("1,440 of", "1,317 of").replace("576", "528")
    expected[8] += ", left out: 123 values that are NULL, NaN or infinite"
    assert lines == [*expected, "10 days: 5,712 values written, 0 unchanged, 0 removed"]
    assert alvo_values(alvo_pool) == undisturbed
    assert etl.main(RANGE) == 0
    assert capsys.readouterr().out.endswith("10 days: 0 values written, 5,712 unchanged, 0 removed\n")


def test_a_bar_is_shown_only_on_a_terminal(connector, alvo):
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "etl.py", "2024-05-18", "2024-05-29"]
    with subprocess.Popen(command, cwd=SCRIPTS, env=external(connector, alvo), stdout=end, stderr=end) as run:
        os.close(end)
        shown = b""
        while True:
            try:
                shown += os.read(terminal, 4096)
            except OSError:
                break
    os.close(terminal)
    assert run.returncode == 5
    assert b"12/12" in shown
    assert b"day/s" in shown
    assert b"2024-05-20 UTC  2,880" not in shown
    # A day with an oddity has its line on a terminal too.
    assert b"left out: 123 values that are NULL, NaN or infinite" in shown
    assert b"Fonte holds no finite sample of wind_speed, power from 2024-05-18" in shown
    assert b"10 days loaded, 2 empty: 11,472 values written" in shown
    piped = subprocess.run(
        command, cwd=SCRIPTS, env=external(connector, alvo), capture_output=True, text=True, check=False
    )
    assert piped.stderr.count("\n") == 2
    assert "\r" not in piped.stderr


def resumed(capsys, *arguments):
    """Return the days that a resumed range ran, and its other lines."""
    capsys.readouterr()
    assert etl.main(["2024-05-20", "2024-05-23", "--resume", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line[8:10] for line in lines if line.startswith("2024-")], [line for line in lines if line[:5] != "2024-"]


def test_resume_leaves_out_days_that_are_recorded_as_asked(fonte_api, alvo_pool, capsys):
    for asked in (
        ["2024-05-20"],
        ["2024-05-21", "--statistics", "mean"],
        ["2024-05-22", "--columns", "power"],
        ["2024-05-23", "--timezone", "America/Sao_Paulo"],
    ):
        etl.main(asked)
    assert resumed(capsys) == (
        ["21", "22", "23"],
        ["3 days loaded, 1 left out: 1,584 values written, 1,872 unchanged, 0 removed"],
    )
    assert resumed(capsys) == ([], ["4 days left out: nothing to do"])
    assert etl.main(["2024-05-20", "--resume"]) == 0
    assert capsys.readouterr().out == "1 day left out: nothing to do\n"


def test_incomplete_loads_days_again_that_were_loaded_too_early(connector, fonte_pool, alvo_pool, monkeypatch, capsys):
    monkeypatch.setenv("FONTE_API_URL", connector)
    late = "timestamp >= '2024-05-21 02:00Z' AND timestamp < '2024-05-23 00:00Z'"
    with fonte_pool.begin() as connection:
        connection.execute(text(f"CREATE TABLE late AS SELECT * FROM data WHERE {late}"))
        connection.execute(text(f"DELETE FROM data WHERE {late}"))
    assert etl.main(["2024-05-20", "2024-05-23"]) == 5
    with fonte_pool.begin() as connection:
        connection.execute(text("INSERT INTO data SELECT * FROM late"))
    capsys.readouterr()
    assert etl.main(["2024-05-20", "2024-05-23", "--resume"]) == 0
    *_, total, note, again = capsys.readouterr().out.splitlines()
    assert total.startswith("1 day loaded, 3 left out: 1,152 values written")
    assert note == "1 day left out with fewer samples than expected. Load them again with:"
    assert again == "  python etl.py 2024-05-21 --incomplete"
    assert etl.main(again.split()[2:]) == 0
    assert "1,056 values written" in capsys.readouterr().out
    assert etl.main(["2024-05-20", "2024-05-23", "--incomplete"]) == 0
    assert capsys.readouterr().out == "4 days left out: nothing to do\n"


def test_resume_in_an_empty_alvo_runs_every_day(fonte_api, alvo_pool, capsys):
    assert etl.main([RANGE[0], "2024-05-21", "--resume"]) == 0
    assert capsys.readouterr().out.startswith("2024-05-20 UTC")


def day_answer(day):
    return http(body=[{"timestamp": f"2024-05-{day}T00:00:00Z", "power": day}])


def test_keep_going_runs_the_other_days_and_prints_how_to_run_the_failed_ones(alvo_pool, monkeypatch, capsys):
    answers = [day_answer(20), http(500), http(404), day_answer(23), http(body=b"<html>"), day_answer(25)]
    with answering(*answers) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        asked = [RANGE[0], "2024-05-25", "--columns", "power", "--keep-going", "--days-per-request", "1"]
        assert etl.main(asked) == 3
    output = capsys.readouterr()
    assert {moment.day for moment, _ in alvo_values(alvo_pool)} == {20, 23, 25}
    assert output.err.splitlines()[-3:] == [
        "etl.py: 3 days not loaded. Run them again with:",
        "  python etl.py 2024-05-21 2024-05-22 --columns power --keep-going --days-per-request 1",
        "  python etl.py 2024-05-24 --columns power --keep-going --days-per-request 1",
    ]


def test_the_line_of_a_day_names_all_its_oddities(alvo, monkeypatch, capsys):
    rows = [
        {"timestamp": f"2024-05-2{day}T00:{10 * step}:00Z", "power": 9999} for day in (0, 1) for step in range(1, 6)
    ]
    # Both ends of the range are plausible.
    for row, power in zip(rows, (None, 0, 9000), strict=False):
        row["power"] = power
    described = http(body=[{"name": "power", "unit": "kW", "lowest": 0, "highest": 9000}])
    with answering(http(body=rows), described, every_route=True) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        assert etl.main([RANGE[0], "2024-05-21", "--columns", "power"]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    odd = "one sample every 600 s, power: 2 implausible values, left out: 1 value that is NULL, NaN or infinite"
    assert first.endswith(f" s, {odd}")
    assert first.startswith("2024-05-20 UTC  4 of 144 samples, 12 values written, ")
    assert second.endswith(" s, one sample every 600 s, power: 5 implausible values")


def test_each_day_has_its_share_of_the_seconds_of_a_request(fonte_api):
    asked = some_days(10)
    began = perf_counter()
    with connect(fonte_api) as fonte:
        samples = one.extract(fonte, ["power"], asked)
    assert sum(each.seconds for each in samples) <= perf_counter() - began


def test_a_lost_executor_is_noticed_while_an_item_runs(monkeypatch):
    monkeypatch.setattr(days, "CHECK_EVERY_S", 0.01)
    lost = threading.Event()

    def check():
        lost.set()
        raise days.ClusterError("lost")

    with ThreadPoolExecutor(1) as executor, pytest.raises(days.ClusterError, match="lost"):
        list(days.in_order([1], lambda item: lost.wait(20), executor, 1, check))


def test_the_total_counts_days_that_are_empty_failed_or_not_run(fonte_api, alvo_pool, capsys):
    with alvo_pool.begin() as connection:
        schema.create_absent(connection)
        connection.execute(text("ALTER TABLE data ADD CHECK (timestamp::date <> '2024-05-28')"))
    assert etl.main(["2024-05-28", "2024-05-31", "--columns", "power", "--keep-going"]) == 4
    total = capsys.readouterr().out.splitlines()[-1]
    assert total == "1 day loaded, 2 empty, 1 failed: 576 values written, 0 unchanged, 0 removed"
    assert etl.main(["2024-05-27", "2024-05-31", "--columns", "power"]) == 4
    total = capsys.readouterr().out.splitlines()[-1]
    assert total == "1 day loaded, 1 failed, 3 not run: 576 values written, 0 unchanged, 0 removed"


@pytest.mark.parametrize("described", [http(503), http(404), http(body=[])])
def test_values_whose_plausible_range_is_unknown_are_reported(alvo, monkeypatch, capsys, described):
    rows = [{"timestamp": "2024-05-20T00:00:00Z", "power": -999}]
    with answering(http(body=rows), described, every_route=True) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        assert etl.main(["2024-05-20", "--columns", "power"]) == 0
    assert "\n  not checked for implausible values: power\n" in capsys.readouterr().out


# A shell's background processes ignore Ctrl-C, and their children inherit that.
HEARD = "import etl, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(etl.main())"


@contextmanager
def stuck(connector, alvo, alvo_pool, *options, loaded=("2024-05-20", "2024-05-21", "2024-05-22")):
    """Run a range that has loaded these days and waits for the lock of 2024-05-23, which this holds."""
    with alvo_pool.connect() as holder:
        days_since_epoch = date(2024, 5, 23).toordinal() - date(1970, 1, 1).toordinal()
        holder.execute(text("SELECT pg_advisory_xact_lock(hashtext('alvo.load'), :day)"), {"day": days_since_epoch})
        command = [sys.executable, "-c", HEARD, *RANGE, *options]
        with subprocess.Popen(
            command,
            cwd=SCRIPTS,
            env=external(connector, alvo),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as run:
            assert tuple(run.stdout.readline()[:10] for _ in loaded) == loaded
            while not holder.scalar(text("SELECT bool_or(NOT granted) FROM pg_locks WHERE locktype = 'advisory'")):
                assert run.poll() is None
            yield run, holder


def test_an_interrupted_range_finishes_its_day_and_prints_how_to_continue(connector, alvo, alvo_pool, undisturbed):
    with stuck(connector, alvo, alvo_pool) as (run, holder):
        interrupt(run)
        assert run.stderr.readline() == "etl.py: interrupted; finishing the running days. Continue with:\n"
        again = run.stderr.readline()
        holder.rollback()
        assert run.wait() == 130
    held = alvo_values(alvo_pool)
    assert {20, 21, 22, 23} <= {moment.day for moment, _ in held} <= {20, 21, 22, 23, 24}
    assert len(held) % 576 == 0
    assert held.items() <= undisturbed.items()
    assert again == "  python etl.py 2024-05-23 2024-05-29 --columns power\n"
    rest = [sys.executable, *shlex.split(again)[1:]]
    assert subprocess.run(rest, cwd=SCRIPTS, env=external(connector, alvo), check=False).returncode == 0
    assert alvo_values(alvo_pool) == undisturbed


@pytest.mark.parametrize("failure", [RESET, http(503, headers=["Retry-After: 60"])])
def test_an_interrupted_range_asks_fonte_for_nothing_more(alvo, failure):
    """Otherwise it would end after a minute."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", HEARD, *RANGE]
    with (
        answering(failure) as fonte,
        subprocess.Popen(command, cwd=SCRIPTS, env=external(fonte.url, alvo), stderr=end) as run,
    ):
        os.close(end)
        said = b""
        while b"retrying for" not in said:
            said += os.read(terminal, 4096)
        interrupt(run)
        assert run.wait(timeout=30) == 130
    os.close(terminal)


def test_an_interrupted_range_ends_the_download_in_progress(alvo):
    """Otherwise it would read the answer to its end, for up to five minutes."""
    command = [sys.executable, "-c", HEARD, *RANGE]
    with answering(http(body=b"[" + b" " * 10_000, length=10**9)) as fonte:
        fonte.pause_s = 0.01
        with subprocess.Popen(command, cwd=SCRIPTS, env=external(fonte.url, alvo), stderr=subprocess.PIPE) as run:
            wait_until(lambda: fonte.requests)
            interrupt(run)
            assert run.wait(timeout=30) == 130
            assert run.stderr.read().startswith(b"etl.py: interrupted; ")


def test_an_interrupted_range_names_its_failed_days_too(connector, alvo, alvo_pool):
    with alvo_pool.begin() as connection:
        schema.create_absent(connection)
        connection.execute(text("ALTER TABLE data ADD CHECK (timestamp::date <> '2024-05-21')"))
    with stuck(connector, alvo, alvo_pool, "--keep-going", loaded=("2024-05-20", "2024-05-22")) as (run, holder):
        interrupt(run)
        said = [run.stderr.readline() for _ in range(4)]
        holder.rollback()
        assert run.wait() == 130
    assert said[0].startswith("etl.py: 2024-05-21: Alvo failed: ")
    remedy = "; it holds the old day or the new one, whole: check ALVO_DATABASE_URL and run again\n"
    assert said[0].endswith(remedy)
    assert said[1] == "etl.py: interrupted; finishing the running days. Continue with:\n"
    assert [line.split()[2:-3] for line in said[2:]] == [["2024-05-21"], ["2024-05-23", "2024-05-29"]]


def test_a_second_interrupt_ends_at_once_and_rolls_the_running_day_back(connector, alvo, alvo_pool, undisturbed):
    with stuck(connector, alvo, alvo_pool) as (run, _):
        interrupt(run)
        run.stderr.readline()
        run.send_signal(signal.SIGINT)
        assert run.wait() == -signal.SIGINT
    held = alvo_values(alvo_pool)
    assert {20, 21, 22} <= {moment.day for moment, _ in held} <= {20, 21, 22, 24}
    assert len(held) % 576 == 0
    assert held.items() <= undisturbed.items()


@pytest.mark.faults
def test_overlapping_backfills_and_a_daily_run_end_in_the_right_table(fonte_api, alvo, alvo_pool, undisturbed):
    environment = external(fonte_api, alvo)
    runs = [RANGE, ["2024-05-23", RANGE[1], "--columns", "power"], RANGE, ["2024-05-24", "--columns", "power"]]
    processes = [
        subprocess.Popen([sys.executable, "etl.py", *run], cwd=SCRIPTS, env=environment, stdout=subprocess.DEVNULL)
        for run in runs
    ]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert alvo_values(alvo_pool) == undisturbed


@pytest.mark.faults
def test_resume_completes_a_killed_range(connector, alvo, alvo_pool, undisturbed):
    environment = external(connector, alvo)
    command = [sys.executable, "etl.py", *RANGE]
    for lines in (1, 3):
        with subprocess.Popen([*command, "--resume"], cwd=SCRIPTS, env=environment, stdout=subprocess.PIPE) as run:
            for _ in range(lines):
                run.stdout.readline()
            run.kill()
    assert subprocess.run([*command, "--resume"], cwd=SCRIPTS, env=environment, check=False).returncode == 0
    assert alvo_values(alvo_pool) == undisturbed


def test_a_day_is_one_request_for_samples_and_at_most_seven_statements(connector, alvo, monkeypatch):
    """Between BEGIN and COMMIT, where tables, signals and connections exist."""
    requests, statements = [], []
    copy_in = load.copy.copy_in
    pool = engine.create(alvo, "test")
    with connect(connector) as client:

        def run(day):
            (asked,) = days.between(date(2024, 5, day), date(2024, 5, day), ZoneInfo("UTC"))
            one.run(client, pool, asked, ["power"])

        run(20)
        client.event_hooks["request"] = [lambda request: requests.append(request.url.path)]
        event.listen(pool, "before_cursor_execute", lambda *event: statements.append(event[2].split()[0]))
        monkeypatch.setattr(load.copy, "copy_in", lambda *rows: (statements.append("COPY"), copy_in(*rows))[1])
        run(21)
        assert len(statements) <= 5
        statements.clear()
        run(21)
    pool.dispose()
    assert requests == ["/data", "/data"]
    assert len(statements) <= 7
