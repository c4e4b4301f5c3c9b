import csv
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta

import pytest

from brt import capture, load, pipeline
from tests.conftest import ANSWERS, FIRST_MINUTE, PROJECT, captured, real_captures, vehicle

APPEND_FOR_EVER = """
import sys
from datetime import timedelta
from pathlib import Path
from brt import capture
from tests.conftest import captured, vehicle
for minute in range(int(sys.argv[2]), 100_000):
    one = captured(*(vehicle(codigo=str(number)) for number in range(300)), after_minutes=minute / 100)
    capture.append(Path(sys.argv[1]), one, 60)
    print(minute, flush=True)
"""


def rows(folder):
    """All records of a folder's files, as dicts."""
    return [record for file in capture.files(folder) for record in csv.DictReader(file.read_text().splitlines())]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*")}


def test_a_file_holds_ten_captures_a_minute_apart(folder):
    capture.append(folder, real_captures()[0], 60)
    for minute in range(1, 25):
        capture.append(folder, captured(vehicle(), after_minutes=minute), 60)
    times = [Counter(row["captured_at"] for row in csv.DictReader(file.open())) for file in capture.files(folder)]
    assert [len(each) for each in times] == [10, 10, 5]
    assert [file.name for file in capture.files(folder)] == [
        "brt_20230726T015300Z.csv",
        "brt_20230726T020300Z.csv",
        "brt_20230726T021300Z.csv",
    ]
    assert times[0]["2023-07-26T01:53:25.250Z"] == 453


@pytest.mark.parametrize("seed", range(10))
def test_a_file_holds_ten_captures_though_runs_are_seconds_early_or_late(folder, seed):
    chance = random.Random(seed)
    for minute in range(40):
        off = timedelta(seconds=chance.uniform(-1, 20))
        one = capture.read(
            json.dumps([vehicle()]).encode(), FIRST_MINUTE.replace(second=0) + off + timedelta(minutes=minute)
        )
        capture.append(folder, one, 60)
    assert [len(file.read_text().splitlines()) - 1 for file in capture.files(folder)] == [10, 10, 10, 10]


def test_values_are_captured_as_the_api_wrote_them():
    body = b'[{"codigo": "1", "latitude": -22.975000, "hodometro": 1e400, "velocidade": 0.10, "dataHora": 007}]'
    with pytest.raises(ValueError, match="no JSON"):
        capture.read(body, FIRST_MINUTE)
    values = capture.read(body.replace(b"007", b"7"), FIRST_MINUTE).records[0]
    record = dict(zip(capture.HEADER[1:], values, strict=True))
    assert {name: value for name, value in record.items() if value} == {
        "codigo": "1",
        "latitude": "-22.975000",
        "velocidade": "0.10",
        "dataHora": "7",
        "extra": '{"hodometro": 1e400}',
    }


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_real_answer_is_read_with_and_without_its_wrapper(name, wrapped):
    vehicles = json.loads(ANSWERS[name])
    body = json.dumps({"veiculos": vehicles}).encode() if wrapped else ANSWERS[name]
    found = capture.read(body, FIRST_MINUTE)
    assert (len(found.records), found.differences) == (452, [])
    position = capture.FIELDS.index("direcao")
    assert {record[position] for record in found.records} >= {" "}
    assert [record[0] for record in found.records] == [each["codigo"] for each in vehicles]


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", 'a"b', "a,b", "a\0b", "a\ud800b", "á😀", "\\N", "a\tb", " "])
def test_a_record_is_one_line_whatever_a_field_holds(folder, text):
    file = capture.append(folder, captured(vehicle(trajeto=text)), 60)
    assert file.read_bytes().count(b"\n") == 2
    found = load.parse(file.read_bytes())
    assert found.rejects == []
    shown = "".join(" " if character < " " or "\ud800" <= character <= "\udfff" else character for character in text)
    assert found.rows[0][1 + capture.HEADER.index("trajeto")] == shown


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"veiculos": [{"codigo": "9010', "no JSON"),
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"error": "x"}', 'it answered no list of vehicles, but JSON that ends in \'{"error": "x"}\''),
        (b'"text"', "it answered no list of vehicles"),
        (b"[]", "no vehicle at all"),
        (b'{"veiculos": []}', "no vehicle at all"),
        (b"[1, 2]", "no vehicle at all"),
    ],
)
def test_an_answer_that_holds_no_vehicle_is_refused(api, body, said):
    api.answers(body)
    with pytest.raises(capture.CaptureError, match=said) as failure:
        capture.fetch(api.url)
    assert "\n" not in str(failure.value)
    assert api.asked == capture.ATTEMPTS


def test_a_field_of_any_depth_is_read_or_refused():
    for depth in range(800, 1000):
        try:
            capture.read(b'[{"linha": ' + b"[" * depth + b"]" * depth + b"}]", FIRST_MINUTE)
        except ValueError as error:
            assert "no JSON" in str(error) or "nested too deep" in str(error)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_transient_failures_are_retried(api, status):
    api.answers(b"", status=status)
    api.answers(b'{"veiculos": [{"codig')
    api.answers(json.dumps([vehicle()]).encode())
    assert len(capture.fetch(api.url).records) == 1
    assert api.asked == 3


def test_an_answer_that_breaks_off_is_retried(api):
    body = json.dumps([vehicle()]).encode()
    api.answers(body[:100], claimed_bytes=len(body))
    api.answers(body)
    assert len(capture.fetch(api.url).records) == 1


@pytest.mark.parametrize("status", [400, 401, 404])
def test_other_http_errors_are_not_retried(api, status):
    api.answers(b"", status=status)
    with pytest.raises(capture.CaptureError, match=f"HTTP {status}"):
        capture.fetch(api.url)
    assert api.asked == 1


def test_an_oversized_answer_is_cut_off(api, monkeypatch):
    monkeypatch.setattr(capture, "MAX_BYTES", 1000)
    api.answers(b" " * 2000)
    with pytest.raises(capture.CaptureError, match="it answered more than"):
        capture.fetch(api.url)


def test_a_slow_answer_is_cut_off(api, monkeypatch):
    monkeypatch.setattr(capture, "ANSWER_TIMEOUT_S", -1)
    api.answers(json.dumps([vehicle()]).encode())
    with pytest.raises(capture.CaptureError, match="took longer"):
        capture.fetch(api.url)


@pytest.mark.parametrize("part", ["header", "gzip"])
def test_an_answer_that_never_ends_is_cut_off(drip, monkeypatch, part):
    """Its header comes byte by byte, or its body is compressed and decodes to nothing: no single read is slow."""
    monkeypatch.setattr(capture, "ANSWER_TIMEOUT_S", 0.3)
    began = time.monotonic()
    with pytest.raises(capture.CaptureError, match="its answer took longer than"):
        capture.fetch(drip(part))
    assert time.monotonic() - began < 10


def test_no_attempt_starts_too_late_for_its_minute(api, monkeypatch):
    monkeypatch.setattr(capture, "LAST_ATTEMPT_AFTER_S", 0.0)
    api.answers(b"", status=503)
    with pytest.raises(capture.CaptureError, match="HTTP 503"):
        capture.fetch(api.url)
    assert api.asked == 1


def test_certificates_that_cannot_be_read_are_reported_on_one_line(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nope")
    with pytest.raises(capture.CaptureError, match="the API at https://host/gps failed: .*No such file"):
        capture.fetch("https://host/gps")


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-1], lambda content: content])
def test_a_truncated_file_loses_no_later_capture(folder, damage):
    file = capture.append(folder, captured(vehicle(codigo="1")), 60)
    file.write_bytes(damage(file.read_bytes()))
    capture.append(folder, captured(vehicle(codigo="2"), after_minutes=1), 60)
    found = load.parse(file.read_bytes())
    assert (found.rows[-1][2], found.rejects) == ("2", [])


def test_a_file_with_an_impossible_date_stops_no_capture(folder):
    folder.mkdir()
    (folder / "brt_20230231T000000Z.csv").touch()
    assert capture.append(folder, captured(vehicle()), 60).name == "brt_20230726T015300Z.csv"


def test_a_capture_deletes_no_file_of_others(folder):
    folder.mkdir()
    (folder / "download.part").touch()
    capture.append(folder, captured(vehicle()), 60)
    assert (folder / "download.part").exists()


@pytest.mark.parametrize(("age_s", "just_now"), [(0, True), (29, True), (31, False), (-3600, False)])
def test_only_a_capture_within_the_last_half_minute_is_just_now(api, pool, age_s, just_now):
    assert not pipeline.captured_just_now()
    api.answers(json.dumps([vehicle()]).encode())
    file = pipeline.capture_once()
    os.utime(file, (0, time.time() - age_s))
    assert pipeline.captured_just_now() == just_now


def test_an_outage_of_three_minutes_loses_only_three_captures(api, pool, monkeypatch):
    api.answers(json.dumps([vehicle()]).encode())
    pipeline.capture_once()
    before = contents(pipeline.captures_folder())
    with monkeypatch.context() as away:
        away.setenv("BRT_API_URL", "http://127.0.0.1:1/gps/brt")
        for _ in range(3):
            with pytest.raises(capture.CaptureError, match="the next capture tries again"):
                pipeline.capture_once()
    assert contents(pipeline.captures_folder()) == before
    pipeline.capture_once()
    assert len(rows(pipeline.captures_folder())) == 2


def test_a_failure_does_not_repeat_secrets_of_the_url(api):
    api.answers(b"", status=404)
    with pytest.raises(capture.CaptureError) as failure:
        capture.fetch(api.url.replace("//", "//user:secret@") + "?key=secret")
    assert "secret" not in str(failure.value)


def test_only_one_process_captures_at_a_time(api, pool):
    api.answers(json.dumps([vehicle()]).encode())
    with pipeline.alone("capture"), pytest.raises(pipeline.Busy):
        pipeline.capture_once()
    pipeline.capture_once()


def test_a_kill_leaves_only_whole_captures(folder):
    """After a kill at any moment, each reported capture is there once, and no line is partial."""
    chance = random.Random(1)
    first, done = 0, []
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", APPEND_FOR_EVER, str(folder), str(first)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )
        done.append(int(writer.stdout.readline()))
        time.sleep(chance.uniform(0, 0.05))
        writer.kill()
        done += map(int, writer.stdout.read().split())
        writer.wait()
        first = done[-1] + 1
        parsed = [load.parse(file.read_bytes()) for file in capture.files(folder)]
        assert [each.rejects for each in parsed if each.rejects] == []
        counts = Counter(row[1] for each in parsed for row in each.rows)
        assert {FIRST_MINUTE + timedelta(minutes=minute / 100) for minute in done} <= counts.keys()
        assert set(counts.values()) <= {300, 600}
        (folder / "brt_20230726T015300Z.part").write_text("left by a kill within the write")
        # After a kill between write and report, the next process writes that capture again.
        assert sum(number > 300 for number in counts.values()) <= len(done)
    capture.append(folder, captured(vehicle(), after_minutes=100), 60)
    assert list(folder.glob("*.part")) == []


@contextmanager
def file_size_limit(folder):
    """Limit files to 40 kB, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder):
    """Mount a file system of 128 kB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


# Only root can mount a small disk.
@pytest.mark.parametrize("disk", [file_size_limit, small_disk] if os.geteuid() == 0 else [file_size_limit])
def test_a_full_disk_loses_only_the_current_capture(folder, disk):
    folder.mkdir()
    with disk(folder):
        capture.append(folder, captured(*[vehicle()] * 100), 60)
        before = contents(folder)
        with pytest.raises(capture.CaptureError, match="cannot be written: (No space left|File too large)"):
            capture.append(folder, captured(*[vehicle()] * 1000, after_minutes=1), 60)
        assert contents(folder) == before
        capture.append(folder, captured(*[vehicle()] * 100, after_minutes=2), 60)
        assert len(rows(folder)) == 200
