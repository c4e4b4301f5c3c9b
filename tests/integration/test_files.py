"""Real kinds of files through seed.py --csv: Fonte gets exactly the values of the file, or nothing is loaded."""

import gzip
import io
import lzma
import os
import re
import shlex
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import text
from support.project import ROOT, bare, wait_until

import seed
from fonte import files
from fonte_alvo import engine

GREENBYTE = """\
# This file was exported by Greenbyte at 2022-02-02 12:00:00.
#
# Turbine: Example 1
# Turbine type: Example
# Time zone: UTC
# Time interval: 2016-01-03 00:00:00 - 2016-01-03 00:20:00
# Time step: 10 minutes
#
#
# Date and time,Wind speed (m/s),"Wind speed, Standard deviation (m/s)",Power (kW),Nacelle ambient temperature (°C)
2016-01-03 00:00:00,6.25,0.5,333.125,8.5
2016-01-03 00:10:00,NaN,NaN,NaN,8.25
"""
KAGGLE = """\
Date/Time,LV ActivePower (kW),Wind Speed (m/s),Theoretical_Power_Curve (KWh),Wind Direction (°)
01 02 2018 00:00,380.047790527343,5.31133604049682,416.328907824861,259.994903564453
01 02 2018 00:10,453.76919555664,5.67216682434082,519.917511061494,268.64111328125
"""
SURFRAD = """\
 Bondville
   40.05  -88.37  230 m  version 1
 2024   1  1  1  0  0  0.000  95.20 {radiation} -9999.9 1    88.1 0     3.1 0   245.6 0   991.3 0
 2024   1  1  1  0  1  0.017  95.38 {radiation}    -2.5 0    88.3 0 -9999.9 1   246.1 0   991.2 0
""".replace(
    "{radiation}",
    "-1.9 0 0.4 0 -0.7 0 -1.1 0 318.2 0 271.6 0 271.5 0 327.9 0 272.1 0 272.0 0 0.0 0 0.2 0 -2.3 0 -9.7 0 -12.0 0",
)
MIDC = """\
Year,DOY,MST,Avg Wind Speed @ 2m [m/s],Temperature @ 2m [deg C]
2024,1,0,1.5,-3.25
2024,1,5,1.75,-3.5
2024,1,105,2.5,-7.5
2024,366,2359,3.5,-4.5
"""
SRML = """\
94255\t1999\t9310\t9330
1\t5\t0.5\t12\t3.5\t12
1\t10\t0.75\t12\t3.25\t12
1\t15\t1\t12\t3\t12
365\t2400\t1.25\t12\t-99\t99
"""
TOA5 = """\
"TOA5","CR1000","CR1000","12345","CR1000.Std.31","CPU:wind.CR1","1234","Table1"
"TIMESTAMP","RECORD","WS_ms_Avg","AirTC_Avg"
"TS","RN","meters/second","Deg C"
"","","Avg","Avg"
"2024-05-20 00:01:00",0,5.125,"NAN"
"2024-05-20 00:02:00",1,5.25,11.5
"2024-05-20 00:03:00",2,5.5,11.5
"""
GERMAN = "Datum;Zeit;Wind;Leistung\r\n20.05.2024;02:00;5,3;1234,5\r\n20.05.2024;02:01;4;-0,5\r\n"
EXCEL = 'Time\tWind\tRemark\r\n5/20/2024 12:01:00 AM\t5.5\tgut\r\n5/20/2024 1:02:00 PM\t6.5\tÖl, "neu"\r\n'

# Name: the bytes, the options, and the rows in Fonte:
# (timestamp, wind_speed, power, ambient_temperature).
REAL = {
    "Greenbyte": (
        GREENBYTE.encode(),
        """--comment '#' --header-line 10 --timestamp 'Date and time' --column 'wind_speed=Wind speed (m/s)'
        'power=Power (kW)' 'ambient_temperature=Nacelle ambient temperature (°C)'""",
        [("2016-01-03 00:00", 6.25, 333.125, 8.5), ("2016-01-03 00:10", None, None, 8.25)],
    ),
    "Kaggle": (
        KAGGLE.encode(),
        """--timestamp Date/Time --timestamp-format '%d %m %Y %H:%M' --column 'wind_speed=Wind Speed (m/s)'
        'power=LV ActivePower (kW)'""",
        [
            ("2018-02-01 00:00", 5.31133604049682, 380.047790527343, None),
            ("2018-02-01 00:10", 5.67216682434082, 453.76919555664, None),
        ],
    ),
    "SURFRAD": (
        SURFRAD.encode(),
        """--header-line 0 --first-row 3 --timestamp 1 3 4 5 6 --timestamp-format '%Y %m %d %H %M'
        --column ambient_temperature=39 wind_speed=43 --missing -9999.9""",
        [("2024-01-01 00:00", 3.1, None, None), ("2024-01-01 00:01", None, None, -2.5)],
    ),
    "MIDC": (
        MIDC.encode(),
        """--timestamp Year DOY MST --timestamp-format '%Y %j %H%M' --csv-timezone Etc/GMT+7
        --column 'wind_speed=Avg Wind Speed @ 2m [m/s]' 'ambient_temperature=Temperature @ 2m [deg C]'""",
        [
            ("2024-01-01 07:00", 1.5, None, -3.25),
            ("2024-01-01 07:05", 1.75, None, -3.5),
            ("2024-01-01 08:05", 2.5, None, -7.5),
            ("2025-01-01 06:59", 3.5, None, -4.5),
        ],
    ),
    "SRML": (
        SRML.encode(),
        """--header-line 0 --first-row 2 --timestamp =1999 1 2 --timestamp-format '%Y %j %H%M' --label end
        --csv-timezone Etc/GMT+8 --column wind_speed=3 ambient_temperature=5 --missing -99""",
        [
            ("1999-01-01 08:00", 0.5, None, 3.5),
            ("1999-01-01 08:05", 0.75, None, 3.25),
            ("1999-01-01 08:10", 1.0, None, 3.0),
            ("2000-01-01 07:55", 1.25, None, None),
        ],
    ),
    "TOA5": (
        TOA5.encode(),
        """--header-line 2 --first-row 5 --timestamp TIMESTAMP --label end
        --column wind_speed=WS_ms_Avg ambient_temperature=AirTC_Avg""",
        [
            ("2024-05-20 00:00", 5.125, None, None),
            ("2024-05-20 00:01", 5.25, None, 11.5),
            ("2024-05-20 00:02", 5.5, None, 11.5),
        ],
    ),
    "semicolons and decimal commas": (
        GERMAN.encode(),
        """--timestamp Datum Zeit --timestamp-format '%d.%m.%Y %H:%M' --csv-timezone Europe/Berlin --decimal ,
        --column wind_speed=Wind power=Leistung""",
        [("2024-05-20 00:00", 5.3, 1234.5, None), ("2024-05-20 00:01", 4.0, -0.5, None)],
    ),
    "a decimal comma that the numbers show": (
        GERMAN.encode(),
        """--timestamp Datum Zeit --timestamp-format '%d.%m.%Y %H:%M' --csv-timezone Europe/Berlin
        --column wind_speed=Wind power=Leistung""",
        [("2024-05-20 00:00", 5.3, 1234.5, None), ("2024-05-20 00:01", 4.0, -0.5, None)],
    ),
    "a decimal comma beside a text with points": (
        b"timestamp;wind_speed;power\n2024-05-20;7,5;k.A.\n",
        "--missing k.A.",
        [("2024-05-20 00:00", 7.5, None, None)],
    ),
    "an encoding that the mark shows": (
        EXCEL.encode("utf-16"),
        """--timestamp Time --timestamp-format '%m/%d/%Y %I:%M:%S %p' --column wind_speed=Wind""",
        [("2024-05-20 00:01", 5.5, None, None), ("2024-05-20 13:02", 6.5, None, None)],
    ),
    "Excel": (
        EXCEL.encode("utf-16"),
        """--encoding utf-16 --timestamp Time --timestamp-format '%m/%d/%Y %I:%M:%S %p' --column wind_speed=Wind""",
        [("2024-05-20 00:01", 5.5, None, None), ("2024-05-20 13:02", 6.5, None, None)],
    ),
    "Latin-1": (
        "timestamp;Vent (Méan);power\n2024-05-20T00:00Z;1.5;2\n".encode("latin-1"),
        "--encoding latin-1 --column 'wind_speed=Vent (Méan)' power=power",
        [("2024-05-20 00:00", 1.5, 2.0, None)],
    ),
    "pandas with its index": (
        b",timestamp,power\n0,2024-05-20 00:00:00+00:00,1.5\n1,2024-05-20 00:01:00+00:00,\n",
        "",
        [("2024-05-20 00:00", None, 1.5, None), ("2024-05-20 00:01", None, None, None)],
    ),
    "pandas with its index and tabs": (
        b"\ttimestamp\tpower\n0\t2024-05-20 00:00:00\t1.5\n1\t2024-05-20 00:01:00\t\n",
        "",
        [("2024-05-20 00:00", None, 1.5, None), ("2024-05-20 00:01", None, None, None)],
    ),
    "a header in an indented comment": (
        b"  # timestamp;power\n2024-05-20 00:00;1.5\n",
        "--comment '#' --header-line 1",
        [("2024-05-20 00:00", None, 1.5, None)],
    ),
    "R's write.table": (
        b'"timestamp" "power"\n"1" "2024-05-20 00:00" 1.5\n"2" "2024-05-20 00:01" NA\n',
        "--index-column",
        [("2024-05-20 00:00", None, 1.5, None), ("2024-05-20 00:01", None, None, None)],
    ),
    "a mark, another order and blank lines": (
        b"\xef\xbb\xbf\r\npower,timestamp\r\n\r\n1.5,2024-05-20T00:00:00\r\n,2024-05-20 02:01:00+02:00\r\n\r\n",
        "",
        [("2024-05-20 00:00", None, 1.5, None), ("2024-05-20 00:01", None, None, None)],
    ),
}


@pytest.fixture
def rows(make_database, make_pool, monkeypatch):
    url = make_database()
    monkeypatch.setenv("FONTE_DATABASE_URL", url.render_as_string(hide_password=False))
    pool = make_pool(url)

    def read():
        moment = "to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')"
        with pool.connect() as connection:
            if connection.scalar(text("SELECT to_regclass('data')")) is None:
                return None
            query = f"SELECT {moment}, wind_speed, power, ambient_temperature FROM data ORDER BY timestamp"
            return [tuple(row) for row in connection.execute(text(query))]

    return read


@pytest.fixture
def load(tmp_path, capsys):
    """Load bytes as a file; return the exit code and the output."""

    def run(content, *options, name="some.csv"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        code = seed.main(["--csv", str(file), *options])
        return code, capsys.readouterr()

    return run


@pytest.mark.parametrize(("content", "options", "expected"), REAL.values(), ids=REAL)
def test_a_real_kind_of_file_loads_with_one_command(rows, load, content, options, expected):
    code, said = load(content, *shlex.split(options))
    assert (code, said.err) == (0, "")
    assert rows() == expected


def test_a_compressed_file_is_loaded(rows, load):
    plain = b"timestamp,power\n2024-05-20 00:00,1\n2024-05-20 24:00,2\n"
    for name, packed in (("a.csv.gz", gzip.compress(plain)), ("a.csv.xz", lzma.compress(plain))):
        assert load(packed, name=name)[0] == 0
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packing:
        packing.writestr("inside.csv", plain)
    assert load(archive.getvalue(), name="a.zip")[0] == 0
    assert rows() == [("2024-05-20 00:00", None, 1.0, None), ("2024-05-21 00:00", None, 2.0, None)]


def test_standard_input_and_a_pipe_are_loaded(rows, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"timestamp,power\n2024-05-20,1\n")))
    assert seed.main(["--csv", "-"]) == 0
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[b"timestamp,power\n2024-05-21,2\n"])
    writer.start()
    assert seed.main(["--csv", str(tmp_path / "pipe")]) == 0
    writer.join()
    assert rows() == [("2024-05-20 00:00", None, 1.0, None), ("2024-05-21 00:00", None, 2.0, None)]


def test_a_pipe_may_pause_for_longer_than_a_transaction_may_be_idle(rows, monkeypatch, administrator):
    database = os.environ["FONTE_DATABASE_URL"].rpartition("/")[2].partition("?")[0]

    class Paused(io.BytesIO):
        def read1(self, *size):
            wait_until(paused_or_gone)
            return super().read1(*size)

    def paused_or_gone():
        idle = "state = 'idle in transaction' AND clock_timestamp() - state_change > '1.5s'"
        held = f"SELECT bool_and({idle}) IS NOT FALSE FROM pg_stat_activity"
        with administrator.connect() as connection:
            return connection.scalar(text(f"{held} WHERE datname = '{database}'"))

    monkeypatch.setattr(engine, "IDLE_TIMEOUT_S", 1)
    monkeypatch.setattr(engine, "GRACE_S", 0)
    monkeypatch.setattr(seed, "TIME_LIMIT_S", 1)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Paused(b"timestamp,power\n2024-05-20,1\n")))
    assert seed.main(["--csv", "-"]) == 0
    assert len(rows()) == 1


@pytest.mark.parametrize(("reader", "code", "loaded"), [("full", 6, True), ("gone", 141, False)])
def test_a_failed_standard_output_is_no_failure_of_the_file(rows, tmp_path, folder, reader, code, loaded):
    names = [str(tmp_path / f"some.csv{number}") for number in range(200)]
    for name in names:
        Path(name).write_text("timestamp,power\n2024-05-20,1\n")
    line = [sys.executable, "seed.py", "--csv", *names]
    environment = {**bare(folder), "FONTE_DATABASE_URL": os.environ["FONTE_DATABASE_URL"]}
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone, Path("/dev/full").open("wb") as full:
        output = {"full": full, "gone": gone}[reader]
        ended = subprocess.run(line, cwd=folder, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, rows() is not None) == (code, loaded)
    assert "some.csv" not in ended.stderr


@pytest.mark.parametrize("kind", ["-", "/dev/stdin", "/dev/stdin redirected", "/dev/fd", "pipe"])
def test_bad_rows_of_what_is_no_file_are_written_to_the_current_folder(rows, folder, tmp_path, kind):
    content = "timestamp,power\n2024-05-20,1\nnow,2\n"
    environment = {**bare(folder), "FONTE_DATABASE_URL": os.environ["FONTE_DATABASE_URL"]}
    (tmp_path / "a.csv").write_text(content)
    os.mkfifo(tmp_path / "pipe")
    command = f"{shlex.quote(sys.executable)} {ROOT / 'seed.py'} --skip-bad-rows --csv"
    line = {
        "-": f"cat a.csv | {command} -",
        "/dev/stdin": f"cat a.csv | {command} /dev/stdin",
        "/dev/stdin redirected": f"{command} /dev/stdin < a.csv",
        "/dev/fd": f"{command} <(cat a.csv)",
        "pipe": f"cat a.csv > pipe & {command} pipe",
    }[kind]
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr, len(rows())) == (0, "", 1)
    assert "1 bad row left out, and written to standard-input.bad: correct it, " in ended.stdout
    assert (tmp_path / "standard-input.bad").read_text(encoding="utf-8-sig") == "timestamp,power\nnow,2\n"


def test_bad_rows_of_two_pipes_do_not_overwrite_each_other(rows, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    writers = []
    for name in ("first", "second"):
        os.mkfifo(name)
        content = f"timestamp,power\n2024-05-20,1\n{name},2\n".encode()
        writers.append(threading.Thread(target=(tmp_path / name).write_bytes, args=[content]))
        writers[-1].start()
    assert seed.main(["--csv", "first", "second", "--skip-bad-rows"]) == 2
    for writer in writers:
        writer.join()
    said = "seed.py: second: standard-input.bad is that of another file too: load one at a time\n"
    assert (capsys.readouterr().err, rows()) == (said, None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first", "second"]


def test_a_closed_standard_input_is_bad_input(rows, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert (seed.main(["--csv", "-"]), rows()) == (2, None)
    assert capsys.readouterr().err == "seed.py: -: standard input is closed: redirect a file to it\n"


def test_a_name_below_the_home_folder_is_expanded(rows, monkeypatch, tmp_path, capsys):
    """The shell expands ~/x.csv, but not --csv=~/x.csv."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.csv").write_bytes("timestamp,power\n2024-05-20,1\nnow,2\n".encode("utf-16"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert seed.main(["--csv=~/x.csv", "--skip-bad-rows"]) == 0
    assert f"written to {tmp_path / 'x.csv.bad'}: correct it, " in capsys.readouterr().out
    assert (tmp_path / "x.csv.bad").read_text(encoding="utf-16") == "timestamp,power\nnow,2\n"
    assert len(rows()) == 1


@pytest.mark.parametrize(
    ("written", "options", "expected"),
    [
        ("2024-05-20", [], "2024-05-20 00:00"),
        ("2024-05-20T01:02", [], "2024-05-20 01:02"),
        ("2024-05-20 01:02:00.0000000Z", [], "2024-05-20 01:02"),
        ("2024-05-20 01:02:00 +0200", [], "2024-05-19 23:02"),
        ("2024-05-20T01:02-03", ["--csv-timezone=Europe/Berlin"], "2024-05-20 04:02"),
        ("2024-05-20T01:02", ["--csv-timezone=Europe/Berlin"], "2024-05-19 23:02"),
        ("2024-05-31T24:00", [], "2024-06-01 00:00"),
        ("2024-05-20 24:00:00+02:00", [], "2024-05-20 22:00"),
        ("2024-03-30 24:00", ["--csv-timezone=Europe/Berlin"], "2024-03-30 23:00"),
        ("1.5.2024 24:00", ["--timestamp-format=%d.%m.%Y %H:%M"], "2024-05-02 00:00"),
        ("12.05.24 00:00", ["--timestamp-format=%d.%m.%y %H:%M"], "2024-05-12 00:00"),
        ("20-May-2024 01:02 PM", ["--timestamp-format=%d-%b-%Y %I:%M %p"], "2024-05-20 13:02"),
        ("202405202359", ["--timestamp-format=%Y%m%d%H%M"], "2024-05-20 23:59"),
        ("2024-05-20 01:02 +0530", ["--timestamp-format=%Y-%m-%d %H:%M %z"], "2024-05-19 19:32"),
        # 24 ends a day only at the hour's place.
        ("2024-05-20 05 24:00", ["--timestamp-format=%Y-%m-%d %H %M:%S"], "2024-05-20 05:24"),
        ("2024-05-20 05 2400", ["--timestamp-format=%Y-%m-%d %H %M%S"], "2024-05-20 05:24"),
        ("20.05.2024 05 24:00", ["--timestamp-format=%d.%m.%Y %H %M:%S"], "2024-05-20 05:24"),
        ("05 20 240000", ["--timestamp-format=%m %d %y%H%M"], "2024-05-20 00:00"),
        ("20240520 240000", ["--timestamp-format=%Y%m%d %H%M%S"], "2024-05-21 00:00"),
        ("9999-12-30 23:59", ["--csv-timezone=America/New_York"], "9999-12-31 04:59"),
        ("May  5 2024 01:02", ["--timestamp-format=%b %d %Y %H:%M"], "2024-05-05 01:02"),
        ("May  5 2024\t0102", ["--timestamp-format=%b %d %Y %H%M"], "2024-05-05 01:02"),
        # Numbers without a separator, beside texts of any length.
        ("2024-05-20 0105 PM", ["--timestamp-format=%Y-%m-%d %I%M %p"], "2024-05-20 13:05"),
        ("2024-05-20 0105 +01:00", ["--timestamp-format=%Y-%m-%d %H%M %z"], "2024-05-20 00:05"),
        ("2 September 2024 0105", ["--timestamp-format=%d %B %Y %H%M"], "2024-09-02 01:05"),
        ("20240520t010559.000000", ["--timestamp-format=%Y%m%dT%H%M%S.%f"], "2024-05-20 01:05"),
        ("2024-05-20 01:02 UTC", ["--timestamp-format=%Y-%m-%d %H:%M UTC"], "2024-05-20 01:02"),
        ("2024-05-20 01:02:03.5", ["--timestamp-format=%Y-%m-%d %H:%M:%S.%f"], "2024-05-20 01:02"),
        ("2024 366", ["--timestamp-format=%Y %j"], "2024-12-31 00:00"),
        ("2024366 2400", ["--timestamp-format=%Y%j %H%M"], "2025-01-01 00:00"),
        ("2024 366 12 31", ["--timestamp-format=%Y %j %m %d"], "2024-12-31 00:00"),
        ("2024 366 23:00 -0500", ["--timestamp-format=%Y %j %H:%M %z"], "2025-01-01 04:00"),
        ("2025 001 00:00 +0500", ["--timestamp-format=%Y %j %H:%M %z"], "2024-12-31 19:00"),
    ],
)
def test_a_timestamp_is_read_in_its_format_and_zone(rows, load, written, options, expected):
    assert load(f"timestamp;power\n{written};1\n", *options)[0] == 0
    assert rows() == [(expected, None, 1.0, None)]


@pytest.mark.parametrize("form", ["%d-%m-%Y %H:%M", "%d-%m-%Y-%H-%M-%S-%f", "%d-%b-%Y %I:%M %p"])
def test_a_long_line_is_refused_at_once(folder, tmp_path, form):
    (tmp_path / "a.csv").write_text(f"timestamp;power\n{'-' * 2000};1\n")
    line = [sys.executable, "seed.py", "--dry-run", f"--timestamp-format={form}", "--csv", str(tmp_path / "a.csv")]
    ended = subprocess.run(line, cwd=folder, env=bare(folder), capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "1 bad row, nothing was loaded" in ended.stderr) == (2, True)


NOT_ISO = "is not ISO 8601: use --timestamp-format"
TOO_FAR = "is not within 0001-01-02 to 9999-12-30"


@pytest.mark.parametrize(
    ("written", "options", "said"),
    [
        ("12.05.24 00:00", [], NOT_ISO),
        ("05/12/2024 00:00", [], NOT_ISO),
        ("now", [], NOT_ISO),
        ("today", [], NOT_ISO),
        ("infinity", [], NOT_ISO),
        ("2024", [], NOT_ISO),
        ("20240520", [], NOT_ISO),
        ("24-05-20 00:00", [], NOT_ISO),
        ("2024-05-20 00:60", [], NOT_ISO),
        ("2024-05-20 24:01", [], NOT_ISO),
        ("2024-05-20 24:00:30", [], NOT_ISO),
        ("2024-05-20 24:00:00.5", [], NOT_ISO),
        ("20.05.2024 24:00:30", ["--timestamp-format=%d.%m.%Y %H:%M:%S"], "does not follow"),
        ("2024-02-30 00:00", [], NOT_ISO),
        ("", [], NOT_ISO),
        ("1716163200", [], NOT_ISO),
        ("now", ["--timestamp-format=%d.%m.%Y"], "does not follow --timestamp-format %d.%m.%Y"),
        ("12.05.24", ["--timestamp-format=%d.%m.%Y"], "does not follow"),
        ("05/20/2024", ["--timestamp-format=%d/%m/%Y"], "does not follow"),
        ("20240520 105", ["--timestamp-format=%Y%m%d %H%M"], "does not follow"),
        ("2024-05-20 105 PM", ["--timestamp-format=%Y-%m-%d %I%M %p"], "does not follow"),
        ("2024-05-20 1 105 AM", ["--timestamp-format=%Y-%m-%d %S %I%M %p"], "does not follow"),
        ("2024-05-20 105 +01:00", ["--timestamp-format=%Y-%m-%d %H%M %z"], "does not follow"),
        ("20 June 2024 105", ["--timestamp-format=%d %B %Y %H%M"], "does not follow"),
        ("2024-05-20 10500.1234567", ["--timestamp-format=%Y-%m-%d %H%M%S.%f"], "does not follow"),
        ("2024-05-20 10:05:5123456", ["--timestamp-format=%Y-%m-%d %H:%M:%S%f"], "does not follow"),
        ("2024-05-20 25 24:00", ["--timestamp-format=%Y-%m-%d %H %M:%S"], "does not follow"),
        ("2024-05-20 24:00 24:00", ["--timestamp-format=%Y-%m-%d %H:%M %S:%f"], "does not follow"),
        ("2024-05-20 24:00 PM", ["--timestamp-format=%Y-%m-%d %I:%M %p"], "does not follow"),
        ("2023 366", ["--timestamp-format=%Y %j"], "does not follow"),
        ("2023366 2400", ["--timestamp-format=%Y%j %H%M"], "does not follow"),
        ("2023 366 00:00 +0500", ["--timestamp-format=%Y %j %H:%M %z"], "does not follow"),
        ("2024-03-31 02:30", ["--csv-timezone=Europe/Berlin"], "does not exist in Europe/Berlin"),
        ("9999-12-31 24:00", [], TOO_FAR),
        ("9999-12-31 24:00", ["--csv-timezone=Europe/Berlin"], TOO_FAR),
        ("9999-12-31 23:30", ["--csv-timezone=America/New_York"], TOO_FAR),
        ("9999-12-31 23:30-05:00", [], TOO_FAR),
        ("31.12.9999 24:00", ["--timestamp-format=%d.%m.%Y %H:%M"], TOO_FAR),
        ("0001-01-01 00:30", ["--csv-timezone=Asia/Kathmandu"], TOO_FAR),
        ("0001-01-01 00:30+05:00", [], TOO_FAR),
        ("0000-01-01 00:30", [], TOO_FAR),
    ],
)
def test_an_ambiguous_or_invalid_timestamp_is_refused(rows, load, written, options, said):
    code, out = load(f"timestamp;power\n{written};1\n", *options)
    assert code == 2
    assert f"1 bad row, nothing was loaded: line 2: timestamp {written!r} {said}" in out.err
    assert rows() is None


@pytest.mark.parametrize(
    ("date", "time", "form", "expected"),
    [
        ("20240520", "5", "%Y%m%d %H%M", "2024-05-20 00:05"),
        ("2024", "5", "%Y %j", "2024-01-05 00:00"),
        ("50520", "105", "%y%m%d %H%M", "2005-05-20 01:05"),
        ("1052024", "105", "%d%m%Y %H%M", "2024-05-01 01:05"),
        ("240520", "0", "%Y%m%d %H%M", None),
        ("0240520", "0", "%Y%m%d %H%M", None),
        ("24141", "0", "%Y%j %H%M", None),
        ("24", "5", "%Y %j", None),
        ("524", "5", "%d%m%Y %H%M", None),
    ],
)
def test_leading_zeros_are_restored_except_in_a_four_digit_year(rows, load, date, time, form, expected):
    options = ["--timestamp", "Date", "Time", "--timestamp-format", form]
    code, out = load(f"Date;Time;power\n{date};{time};1\n", *options)
    assert (code, rows()) == ((0, [(expected, None, 1.0, None)]) if expected else (2, None))
    assert expected or "1 bad row, nothing was loaded: line 2: timestamp '" in out.err


@pytest.mark.parametrize("fraction", ["500", "005", "005000", "005000000", "5", "45", "5000"])
def test_a_fraction_of_a_second_in_a_column_has_its_leading_zeros(load, fraction):
    """5 may be a half of a second, or 5 milliseconds."""
    options = ["--timestamp", "Time", "Fraction", "--timestamp-format", "%Y-%m-%dT%H:%M:%S %f", "--dry-run"]
    code, out = load(f"Time;Fraction;power\n2024-05-20T00:01:00;{fraction};1\n", *options)
    assert code == (0 if len(fraction) % 3 == 0 else 2)
    shown = f"2024-05-20 00:01:00.{fraction[:3]}" if code == 0 else "does not follow --timestamp-format"
    assert shown in out.out + out.err


@pytest.mark.parametrize("form", ["%H:%M", "%d.%m %H:%M", "%Y %H:%M", "%Y-%m", "%Q", "Y-m-d"])
def test_a_format_without_a_whole_day_is_refused(rows, load, form):
    code, out = load("timestamp,power\n2024-05-20,1\n", f"--timestamp-format={form}")
    assert (code, rows()) == (2, None)
    assert f"--timestamp-format {form!r} gives no day" in out.err


def test_a_format_with_the_name_of_a_zone_is_refused(rows, load):
    """Such a name has several meanings: CET in summer may be either of two hours."""
    form = "--timestamp-format=%Y-%m-%d %H:%M %Z"
    code, out = load("timestamp,power\n2024-05-20 00:00 UTC,1\n", form, "--csv-timezone=Europe/Berlin")
    assert (code, rows()) == (2, None)
    assert "%Z is ambiguous: expected %z, or the name and --csv-timezone" in out.err


def test_a_format_that_names_a_part_twice_is_refused(rows, load):
    form = "%d.%m.%Y %H:%M - %d.%m.%Y %H:%M"
    content = "timestamp;power\n20.05.2024 00:00 - 20.05.2024 01:00;1\n"
    code, out = load(content, f"--timestamp-format={form}")
    assert (code, rows()) == (2, None)
    assert out.err == f"seed.py: --timestamp-format {form!r} has %d twice: expected each part once\n"


@pytest.mark.parametrize("hour", ["%I:%M", "%I", "%H:%M %p", "%I:%M %H", "%p", "%M", "%S", "%M:%S.%f", "%H %I %p"])
def test_a_format_without_a_whole_hour_is_refused(rows, load, hour):
    """Of a 12-hour clock without %p, noon would become midnight; %p beside %H is ignored."""
    code, out = load("timestamp,power\n2024-05-20 12:00,1\n", f"--timestamp-format=%Y-%m-%d {hour}")
    assert (code, rows()) == (2, None)
    assert f"--timestamp-format '%Y-%m-%d {hour}' gives no hour: expected %H, or %I and %p" in out.err


@pytest.mark.parametrize(
    ("times", "options", "expected"),
    [
        (["00:01", "00:02", "00:03", "03:10"], [], ["00:00", "00:01", "00:02", "03:09"]),
        (["00:05", "03:10"], ["--interval=1"], ["00:04", "03:09"]),
        (["00:05"], ["--interval=0.5"], ["00:04"]),
        (["00:10", "00:20"], ["--interval=5"], ["00:05", "00:15"]),
    ],
)
def test_the_label_of_the_end_is_moved_by_the_interval(rows, load, times, options, expected):
    content = "".join(["timestamp,power\n", *(f"2024-05-20 {each},1\n" for each in times)])
    assert load(content, "--label=end", *options)[0] == 0
    assert [row[0] for row in rows()] == [f"2024-05-20 {each}" for each in expected]


@pytest.mark.parametrize(("seconds", "minutes"), [(60, "1"), (600, "10"), (10, "0.166666666666667"), (86400, "1440")])
@pytest.mark.parametrize("bad", [[3], [3, 5], [3, 5, 7]])
def test_bad_rows_labelled_with_the_end_are_repaired_with_the_interval_of_their_file(
    rows, load, tmp_path, seconds, minutes, bad
):
    """The gaps between bad rows are not the interval, even where they are equal."""
    ends = [datetime(2024, 5, 20) + timedelta(seconds=seconds * each) for each in range(1, 10)]
    lines = ["timestamp,power", *(f"{end},{'much' if place in bad else 1}" for place, end in enumerate(ends))]
    code, out = load("\n".join([*lines, ""]), "--label=end", "--skip-bad-rows", "--dry-run")
    assert (code, "--interval" in out.out) == (0, False)
    code, out = load("\n".join([*lines, ""]), "--label=end", "--skip-bad-rows")
    option = f"--decimal . --interval {minutes}"
    said = f"written to {tmp_path / 'some.csv.bad'}: correct it, and load it with {option}\n"
    assert (code, said in out.out) == (0, True)
    corrected = (tmp_path / "some.csv.bad").read_text(encoding="utf-8-sig").replace("much", "2")
    code, out = load(corrected, "--label=end", name="some.csv.bad")
    assert (code, len(rows())) == (2, 9 - len(bad))
    assert "--label end needs --interval MINUTES: these rows do not show it" in out.err
    assert load(corrected, "--label=end", f"--interval={minutes}", name="some.csv.bad")[0] == 0
    expected = [f"{end - timedelta(seconds=seconds):%Y-%m-%d %H:%M}" for end in ends]
    assert [row[0] for row in rows()] == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--header-line=-1"], "argument --header-line: -1: expected 0 to 999"),
        (["--header-line", "-1"], "argument --header-line: -1: expected 0 to 999"),
        (["--header-line=1000"], "argument --header-line: 1000: expected 0 to 999"),
        (["--first-row=-1"], "argument --first-row: -1: expected 0 to 999"),
        (["--first-row=1e2"], "argument --first-row: invalid number value: '1e2'"),
        (["--label=end", "--interval=0"], "argument --interval: 0: expected 0.001 to 1440"),
        (["--label=end", "--interval=-1"], "argument --interval: -1: expected 0.001 to 1440"),
        (["--label=end", "--interval=nan"], "argument --interval: nan: expected 0.001 to 1440"),
        (["--label=end", "--interval=1441"], "argument --interval: 1441: expected 0.001 to 1440"),
        (["--label=end", "--interval=ten"], "argument --interval: invalid number value: 'ten'"),
        (["./some.csv"], "argument --csv: some.csv: expected each file once"),
        (["--csv", "-", "-"], "argument --csv: -: expected each file once"),
        (["--interval=10"], "argument --interval: belongs to --label end"),
        (["--column", "power=A", "power=B"], "argument --column: power: expected each variable once"),
        (["--column=power=A", "--column=power=A"], "argument --column: power: expected each variable once"),
        (
            ["--column", "pressure=P"],
            "argument --column: 'pressure=P': expected NAME=HEADER, NAME one of wind_speed, power, ambient_temperature",
        ),
        (
            ["--csv-timezone", "Mars/Base"],
            "argument --csv-timezone: 'Mars/Base' is not a time zone: expected one such as Europe/Berlin",
        ),
        (["--days", "3"], "--start and --days choose synthetic days: leave them out with --csv and with --live"),
        (["--live"], "argument --live: not allowed with argument --csv"),
    ],
)
def test_an_impossible_option_of_a_file_is_refused(capsys, options, said):
    with pytest.raises(SystemExit) as ended:
        seed.main(["--csv", "some.csv", *options])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"seed.py: {said}; see seed.py --help\n"


@pytest.mark.parametrize("label", ["start", "end"])
def test_a_timestamp_out_of_range_is_a_bad_row_of_the_dry_run_too(rows, load, label):
    content = "timestamp,power\n0001-01-01,0\n0001-01-02,1\n0001-01-03,2\n0001-01-04,3\n9999-12-31 24:00,4\n"
    assert load(content, "--dry-run", f"--label={label}")[0] == 2
    assert load(content, "--skip-bad-rows", f"--label={label}")[0] == 0
    assert len(rows()) == 3


def local_minutes(zone, start, end, minutes):
    """Return the local times of a period in UTC, each with its UTC time."""
    moments = [start + timedelta(minutes=each) for each in range(0, int((end - start) / timedelta(minutes=1)), minutes)]
    return [(each.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M"), f"{each:%Y-%m-%d %H:%M}") for each in moments]


@pytest.mark.parametrize(
    ("zone", "change", "minutes"),
    [
        ("Europe/Berlin", datetime(2024, 10, 27, 1, tzinfo=UTC), 1),
        ("Europe/Berlin", datetime(2024, 10, 27, 1, tzinfo=UTC), 60),
        ("Europe/Berlin", datetime(2024, 3, 31, 1, tzinfo=UTC), 10),
        ("America/New_York", datetime(2024, 11, 3, 6, tzinfo=UTC), 10),
        ("Australia/Lord_Howe", datetime(2024, 4, 6, 15, tzinfo=UTC), 10),
    ],
)
@pytest.mark.parametrize("piece_lines", [5, 50_000])
def test_the_order_of_rows_resolves_the_repeated_hour(rows, load, monkeypatch, zone, change, minutes, piece_lines):
    monkeypatch.setattr(files, "PIECE_LINES", piece_lines)
    monkeypatch.setattr(files, "HEAD_LINES", 2)
    times = local_minutes(zone, change - timedelta(hours=2), change + timedelta(hours=2), minutes)
    content = "timestamp,power\n" + "".join(f"{clock},{number}\n" for number, (clock, _) in enumerate(times))
    assert load(content, f"--csv-timezone={zone}")[0] == 0
    assert rows() == [(moment, None, float(number), None) for number, (_, moment) in enumerate(times)]


@pytest.mark.parametrize(
    "clocks",
    [
        ["02:00", "02:30"],
        ["02:00", "02:10", "02:10", "02:20", "03:00"],
        ["02:50", "02:40", "02:30"],
        ["02:00", "02:00", "02:00"],
        ["04:00", "03:00", "02:00", "02:00", "01:00"],
        ["03:00", "02:00", "02:00"],
        ["02:00", "02:00", "01:00"],
    ],
)
def test_a_repeated_hour_that_the_order_does_not_resolve_is_an_error(rows, load, clocks):
    content = "timestamp,power\n" + "".join(f"2024-10-27 {clock},1\n" for clock in clocks)
    code, out = load(content, "--csv-timezone=Europe/Berlin")
    assert (code, rows()) == (2, None)
    assert "clocks in Europe/Berlin repeat an hour on 2024-10-27, and the order of rows does not tell" in out.err


def test_a_repeated_row_in_the_first_pass_does_not_begin_the_second(rows, load):
    change = datetime(2024, 10, 27, 1, tzinfo=UTC)
    times = local_minutes("Europe/Berlin", change - timedelta(hours=2), change + timedelta(hours=2), 10)
    lines = [f"{clock},{number}\n" for number, (clock, _) in enumerate(times)]
    place = next(number for number, (_, moment) in enumerate(times) if moment.endswith("00:20"))
    content = "timestamp,power\n" + "".join([*lines[: place + 1], *lines[place:]])
    assert load(content, "--csv-timezone=Europe/Berlin")[0] == 0
    assert rows() == [(moment, None, float(number), None) for number, (_, moment) in enumerate(times)]


BAD = "timestamp,power\n2024-05-20 00:00,1\n2024-05-20 00:01,much\n\n2024-05-20 00:02,2,3\n2024-05-20 00:03\n" + (
    '2024-05-20 00:04,"3\nnow,4\n2024-05-20 00:05,inf\n2024-05-20 00:06,1_0\n2024-05-20 00:07,True\n'
    "2024-05-20 00:08,1,5\n2024-05-20 00:09,0x1F\n2024-05-20 00:10,5\n"
)


def test_all_bad_rows_are_counted_and_the_first_five_named(rows, load):
    code, out = load(BAD)
    assert (code, rows()) == (2, None)
    assert out.err.count("\n") == 1
    assert "10 bad rows, nothing was loaded: line 3: power 'much' is no number with the decimal mark ." in out.err
    for number, said in ((5, "3 fields instead of 2"), (6, "1 field instead of 2"), (7, "an open quote"), (8, "'now'")):
        assert f"line {number}: " in out.err
        assert said in out.err
    assert "line 9" not in out.err
    assert "--skip-bad-rows" in out.err


@pytest.mark.parametrize("piece_lines", [1, 3, 50_000])
def test_skipped_rows_are_written_to_a_file_that_loads_once_corrected(rows, load, monkeypatch, tmp_path, piece_lines):
    monkeypatch.setattr(files, "PIECE_LINES", piece_lines)
    monkeypatch.setattr(files, "HEAD_LINES", 2)
    code, out = load(BAD, "--skip-bad-rows")
    assert code == 0
    assert f"10 bad rows left out, and written to {tmp_path / 'some.csv.bad'}" in out.out
    assert rows() == [("2024-05-20 00:00", None, 1.0, None), ("2024-05-20 00:10", None, 5.0, None)]
    left_out = (tmp_path / "some.csv.bad").read_text(encoding="utf-8-sig")
    assert left_out.splitlines() == [BAD.splitlines()[number - 1] for number in (1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13)]
    mended = left_out.splitlines()[0] + "\n2024-05-20 00:01,7\n"
    assert load(mended, name="some.csv.bad")[0] == 0
    assert len(rows()) == 3


@pytest.mark.parametrize(("mark", "bad"), [(",", "1.399"), (",", "much,5"), (".", "1,399"), (".", "now.")])
def test_bad_rows_are_repaired_with_the_decimal_mark_of_their_file(rows, load, tmp_path, mark, bad):
    """1.399 of a file with decimal commas would load as 1.399 instead of 1399."""
    content = f"timestamp;power\n2024-05-20 00:00;0{mark}5\n2024-05-20 00:01;{bad}\n"
    code, out = load(content, "--skip-bad-rows", f"--decimal={mark}")
    assert (code, f"correct it, and load it with --decimal {mark}\n" in out.out) == (0, True)
    left_out = (tmp_path / "some.csv.bad").read_text(encoding="utf-8-sig")
    code, out = load(left_out, "--skip-bad-rows", name="some.csv.bad")
    assert (code, len(rows())) == (2, 1)
    assert "some.csv.bad: --decimal is needed: these rows do not show the mark of their file\n" in out.err
    corrected = left_out.replace(bad, f"1399{mark}25")
    assert load(corrected, f"--decimal={mark}", name="some.csv.bad")[0] == 0
    assert [row[2] for row in rows()] == [0.5, 1399.25]


def test_a_file_of_bad_rows_is_never_overwritten(rows, load, tmp_path):
    """It may hold corrections."""
    left_out = tmp_path / "some.csv.bad"
    left_out.write_text("corrected")
    code, out = load(BAD, "--skip-bad-rows")
    assert (code, rows(), left_out.read_text()) == (2, None, "corrected")
    assert out.err == f"seed.py: {left_out} is there: load it, or remove it\n"


@pytest.mark.parametrize(
    ("content", "more"),
    [
        ("timestamp,power\nnow,1\n", []),
        ("timestamp,power\n2024-05-20,1\n2024-05-20,2\nnow,3\n", []),
        ("timestamp,power\n2024-05-20,1\nnow,3\n", ["none.csv"]),
    ],
)
def test_a_failed_load_leaves_no_file_of_bad_rows(rows, load, tmp_path, content, more):
    """It would be in the way of the next run."""
    (tmp_path / "some.csv.bad.part").write_text("not ours")
    code, _ = load(content, *more, "--skip-bad-rows")
    assert (code, rows(), sorted(file.name for file in tmp_path.iterdir())) == (
        2,
        None,
        ["some.csv", "some.csv.bad.part"],
    )
    assert load("timestamp,power\n2024-05-20,1\nnow,3\n", "--skip-bad-rows")[0] == 0
    assert (tmp_path / "some.csv.bad").read_text(encoding="utf-8-sig") == "timestamp,power\nnow,3\n"
    assert (tmp_path / "some.csv.bad.part").read_text() == "not ours"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["some.csv", "some.csv.bad", "some.csv.bad.part"]


def test_text_of_a_file_is_repeated_cut_and_without_control_characters(rows, load):
    code, out = load(f"timestamp,power\n2024-05-20,\x1b[31m{'9x' * 4000}\n")
    assert code == 2
    assert len(out.err) < 400 + len(str(out.err).split("some.csv")[0])
    assert "\x1b" not in out.err


def packed(content):
    return gzip.compress(content.encode(), mtime=0)[:-12]


def zipped(place, put):
    """An archive of one file, with another number in its two headers."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packing:
        packing.writestr("a.csv", "timestamp,power\n2024-05-20,1\n")
    content = bytearray(archive.getvalue())
    for header, start in ((b"PK\3\4", place), (b"PK\1\2", place + 2)):
        content[content.index(header) + start] = put
    return bytes(content)


def tar_of_a_folder():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as packing:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        packing.addfile(folder)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "options", "said"),
    [
        ("", "a.csv", [], "no row in lines 1 to 1,000"),
        ("timestamp,power\n", "a.csv", [], "no row in lines 2 to 1,000"),
        ("timestamp,power\n2024-05-20,1\n", "a.csv", ["--first-row=9"], "no row in lines 9 to 1,000"),
        (
            "timestamp,power\n2024-05-20,1\n",
            "a.csv",
            ["--first-row=1"],
            "--first-row 1: expected a line below the header, line 1",
        ),
        (
            "x\ny\ntimestamp,power\n2024-05-20,1\n",
            "a.csv",
            ["--header-line=3", "--first-row=2"],
            "--first-row 2: expected a line below the header, line 3",
        ),
        ("time,power\n2024-05-20,1\n", "a.csv", [], "no delimiter gives the columns timestamp, some of "),
        ("timestamp,power,power\n2024-05-20,1,1\n", "a.csv", [], "each once"),
        (
            "timestamp,power\n2024-05-20,1\n",
            "a.csv",
            ["--column=power=P"],
            "no delimiter gives the columns timestamp, P, each once, in 'timestamp,power'",
        ),
        ("timestamp,power\n2024-05-20,1\n", "a.csv", ["--delimiter=semicolon"], "--delimiter"),
        (
            "2024-05-20,1;2\n",
            "a.csv",
            ["--header-line=0", "--timestamp=1", "--column=power=2"],
            "more than one delimiter gives the columns 1, 2, each once, in '2024-05-20,1;2'",
        ),
        (
            "timestamp,power\n2024-05-20,1\n2024-05-20,2\n",
            "a.csv",
            [],
            "hold different values: keep one of them, or name the zone of local times by --csv-timezone",
        ),
        (b"timestamp,pot\xeancia\n2024-05-20,1\n", "a.csv", [], "--encoding names its encoding"),
        # 1.5 or 1500?
        (
            "timestamp;power\n2024-05-20;1,500\n",
            "a.csv",
            [],
            "'1,500' is no number with the decimal mark .; remove separators of thousands; correct them by --decimal, ",
        ),
        (
            "timestamp;power;wind_speed\n2024-05-20;7,5;1.234\n",
            "a.csv",
            ["--skip-bad-rows"],
            "a.csv: numbers such as '7,5' and '1.234' contradict each other: --decimal chooses the mark\n",
        ),
        (
            "timestamp;power\n2024-05-20;7,5\n2024-05-21;1.234\n",
            "a.csv",
            ["--decimal=,"],
            "'1.234' is no number with the decimal mark ,",
        ),
        ("timestamp,power\n2024-05-20,1\n", "a.csv", ["--encoding=klingon"], "unknown encoding: klingon"),
        (b"no gzip", "a.csv.gz", [], "Not a gzipped file"),
        (b"no zip", "a.zip", [], "File is not a zip file"),
        (b"no tar", "a.tar.gz", [], "ReadError('not a gzip file')"),
        (tar_of_a_folder(), "a.tar", [], "a.tar: 'the archive holds no file'"),
        (zipped(6, 1), "a.zip", [], "password required"),
        (zipped(8, 9), "a.zip", [], "compression method is not supported"),
        (packed("timestamp,power\n" + "2024-05-20,1\n" * 999), "a.csv.gz", [], "ended before the end-of-stream"),
        ("timestamp,power\n2024-05-20,1\n", "a.csv", ["--label=end"], "--label end needs --interval MINUTES"),
        # The two corrected rows of a longer file, for example.
        (
            "timestamp,power\n2024-05-20 01:20,1\n2024-05-20 04:50,1\n",
            "a.csv",
            ["--label=end"],
            "--label end needs --interval MINUTES",
        ),
        (
            "timestamp,power\n0001-01-02,1\n0003-01-02,1\n",
            "a.csv",
            ["--label=end"],
            "--label end needs --interval MINUTES",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_is_bad_input_on_one_line(rows, load, content, name, options, said):
    code, out = load(content, *options, name=name)
    assert code == 2
    assert said in out.err
    assert out.err.count("\n") == 1
    assert not rows()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), AssertionError()])
def test_an_error_beyond_the_file_is_not_blamed_on_it(rows, load, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(seed.seeding, "merge", fail)
    code, out = load("timestamp,power\n2024-05-20,1\n")
    assert code == 1
    assert out.err.startswith(f"seed.py: unexpected {type(error).__name__}")


@pytest.mark.parametrize(
    ("content", "name", "options", "said"),
    [
        (b"timestamp,pot\xeancia\n2024-05-20,1\n", "a.csv", [], ""),
        ("timestamp,power\n2024-05-20,1\n", "a.csv", ["--encoding=klingon"], ""),
        (b"no gzip", "a.csv.gz", [], "Not a gzipped file"),
        ("timestamp,power\n2024-05-20 1,1\n", "a.csv", ["--timestamp-format=%Y-%m-%d %Q"], "'Q' is a bad directive"),
        (BAD, "x" * 255, ["--skip-bad-rows"], "File name too long"),
    ],
)
def test_the_encoding_is_the_remedy_of_failures_to_decode_alone(rows, load, content, name, options, said):
    code, out = load(content, *options, name=name)
    assert (code, rows(), out.err.count("\n")) == (2, None, 1)
    assert said in out.err
    assert ("--encoding names its encoding" in out.err) == (not said)
    assert ("save a workbook as CSV, and decompress standard input first" in out.err) == (not said)


ROWS = [
    f"2024-05-{day:02} {hour:02}:{minute:02},{minute}" for day in (1, 2) for hour in range(24) for minute in range(60)
]


@pytest.mark.parametrize("number", [1, 2, 1000, 1001, 2881])
@pytest.mark.parametrize("put", ["\x1f", "\x1f\x1f\x1f", "\x1f7", '"\x1f"'])
def test_a_unit_separator_anywhere_is_bad_input_that_names_its_line(rows, load, number, put):
    """The reader gives pandas the unit separator as delimiter, so that each line is one field."""
    lines = ["timestamp,power", *ROWS]
    lines[number - 1] = lines[number - 1][:9] + put + lines[number - 1][9:]
    # As in a command: pytest turns every warning into an error.
    with warnings.catch_warnings(action="always"):
        code, out = load("\n".join([*lines, ""]))
    assert (code, rows()) == (2, None)
    # Some versions of pandas find too few fields instead.
    assert re.search(rf"line {number}(: \d fields? instead of 2| holds the control character 0x1f: remove it)", out.err)
    assert out.err.count("\n") == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2024-05-20,1,2", "line 3: 3 fields instead of 2"),
        ('2024-05-20,1,"2,3"', "line 3: 3 fields instead of 2"),
        ('2024-05-20,"1', "line 3: an open quote"),
    ],
)
def test_a_row_of_other_fields_than_the_header_is_a_bad_row(rows, load, row, said):
    code, out = load(f"timestamp,power\n2024-05-19,1\n{row}\n")
    assert (code, rows(), out.err.count("\n")) == (2, None, 1)
    assert f"1 bad row, nothing was loaded: {said}" in out.err


def test_a_packed_file_that_needs_another_package_is_named(rows, load, monkeypatch):
    for package in ("zstandard", "compression", "backports"):
        monkeypatch.setitem(sys.modules, package, None)
    code, out = load(b"packed", name="a.csv.zst")
    assert (code, rows(), out.err.count("\n")) == (2, None, 1)
    assert "a.csv.zst: " in out.err
    assert "zst" in out.err.partition("a.csv.zst: ")[2]


def test_a_missing_file_is_bad_input(rows, tmp_path, capsys):
    for name, said in ((tmp_path / "none.csv", "there is no such file"), (tmp_path, "Is a directory")):
        assert seed.main(["--csv", str(name)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["s3", "S3A", "gs", "https", "ftp", "file", "memory"])
@pytest.mark.parametrize("name", ["{}://127.0.0.1:9/x.csv", "{}:/x.csv", "zip://x.csv::{}://x.zip"])
def test_a_url_is_bad_input_that_nothing_asks_for(rows, capsys, tmp_path, monkeypatch, scheme, name):
    monkeypatch.chdir(tmp_path)
    url = name.format(scheme)
    assert seed.main(["--csv", url]) == 2
    said = f"seed.py: {url}: there is no such file on this machine: correct its name, or download it\n"
    assert capsys.readouterr().err == said


def test_one_bad_file_of_several_loads_nothing(rows, load, tmp_path):
    (tmp_path / "good.csv").write_text("timestamp,power\n2024-05-20,1\n")
    assert load("timestamp,power\nnow,1\n", str(tmp_path / "good.csv"))[0] == 2
    assert rows() is None


def test_a_dry_run_shows_the_format_and_loads_nothing(load, rows):
    content = "timestamp;power\n2024-05-20 00:00;1\n2024-05-20 00:01;\n2024-05-20 00:02;99999\n2024-05-20 00:05;4\n"
    code, out = load(content, "--dry-run")
    assert code == 0
    for said in (
        "delimiter ';', timestamp from timestamp, power from power",
        "2024-05-20 00:00:00    1.0\n2024-05-20 00:05:00    4.0\ninterval 1 min, rows: 4, missing: 1, ",
        "power outside -500 to 9000: 1, gaps: 1, rows out of order or repeated: 0\n",
        "nothing was loaded, because of --dry-run",
    ):
        assert said in out.out
    assert rows() is None


def test_a_dry_run_shows_the_interval_and_gaps_of_a_file_sorted_newest_first(load):
    minutes = ["00:05", "00:02", "00:01", "00:00"]
    code, out = load("".join(["timestamp,power\n", *(f"2024-05-20 {each},1\n" for each in minutes)]), "--dry-run")
    assert code == 0
    assert "interval 1 min, rows: 4, " in out.out
    assert "gaps: 1, rows out of order or repeated: 3\n" in out.out


def test_a_dry_run_takes_a_piece_of_blank_lines_for_no_gap_in_the_rows(load, monkeypatch):
    monkeypatch.setattr(files, "HEAD_LINES", 3)
    monkeypatch.setattr(files, "PIECE_LINES", 1)
    minutes = ["00:00", "00:01", "", "00:02", "00:05", ""]
    lines = ["timestamp,power", *(each and f"2024-05-20 {each},1" for each in minutes)]
    code, out = load("\n".join([*lines, ""]), "--dry-run")
    assert code == 0
    assert re.search(
        r"2024-05-20 00:00:00 +1.0\n2024-05-20 00:05:00 +1.0\ninterval 1 min, rows: 4, .*gaps: 1, ", out.out
    )


def test_a_first_look_counts_bad_rows_and_writes_no_file(load, tmp_path):
    code, out = load(BAD, "--dry-run", "--skip-bad-rows")
    assert code == 0
    assert f"{tmp_path / 'some.csv'}: 10 bad rows left out\n" in out.out
    assert [file.name for file in tmp_path.iterdir()] == ["some.csv"]


def test_missing_values_are_marked_by_texts_or_numbers(rows, load):
    values = ["-999", "-999.0", "-9.99e2", "Bad", "", "NULL", "NaN", " NA ", "---", "-998"]
    content = "timestamp,power\n" + "".join(f"2024-05-20 00:0{n},{value}\n" for n, value in enumerate(values))
    assert load(content, "--missing", "-999", "Bad", "--missing=---")[0] == 0
    assert [row[2] for row in rows()] == [None] * 9 + [-998.0]


def test_a_missing_value_with_a_decimal_comma_is_compared_as_a_number(rows, load):
    values = ["-9999,9", "-9999,90", "-99", "-99,00", "-9,9", "7,5"]
    content = "timestamp;power\n" + "".join(f"2024-05-20 00:0{n};{value}\n" for n, value in enumerate(values))
    assert load(content, "--missing=-9999,9", "--missing=-99", "--missing=-9.9")[0] == 0
    assert [row[2] for row in rows()] == [None] * 5 + [7.5]


def test_a_failed_database_does_not_promise_that_nothing_was_written(monkeypatch, capsys):
    """With --live, each minute before was."""
    monkeypatch.setenv("FONTE_DATABASE_URL", "postgresql://127.0.0.1:1/fonte")
    for options in ([], ["--live"], ["--csv", "some.csv"]):
        assert seed.main(options) == 3
        assert capsys.readouterr().err.endswith("; check FONTE_DATABASE_URL and run again\n")


@pytest.mark.parametrize("version", ["2.2.3", "3.0.2"])
def test_with_an_older_pandas_the_install_command_is_printed(capsys, monkeypatch, version):
    """It reads 0.30000000000000004 as 0.3."""
    monkeypatch.setattr(seed, "version", lambda package: version)
    with pytest.raises(SystemExit):
        seed.main(["--csv", "some.csv"])
    said = f"files are read with pandas 3.1 or newer, not {version}: python -m pip install '.[files]'"
    assert said in capsys.readouterr().err


def test_without_pandas_the_install_command_is_printed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SystemExit):
        seed.main(["--csv", "some.csv"])
    said = "files are read with pandas 3.1 or newer: python -m pip install '.[files]'"
    assert said in capsys.readouterr().err


def test_seeding_without_a_file_does_not_import_pandas(run_command, make_database):
    url = make_database().render_as_string(hide_password=False)
    code = "import seed, sys; seed.main(['--days', '1']); print('pandas' in sys.modules)"
    assert run_command("-c", code, FONTE_DATABASE_URL=url).stdout.splitlines()[-1] == "False"


def test_a_later_file_adds_its_variable_and_reports_what_differs(rows, tmp_path, capsys):
    for name, content in {
        "wind.csv": "timestamp,wind_speed\n2024-01-01 00:00,1\n2024-01-01 00:01,2\n",
        "power.csv": "timestamp,power\n2024-01-01 00:00,10\n2024-01-01 00:01,20\n",
        "corrected.csv": "timestamp,wind_speed,power\n2024-01-01 00:00,1,11\n2024-01-01 00:01,2,20\n",
    }.items():
        (tmp_path / name).write_text(content)
    assert seed.main(["--csv", str(tmp_path / "wind.csv"), str(tmp_path / "power.csv")]) == 0
    summary = "2 rows inserted, 2 were there already: 2 had missing values filled, 0 that differ keep their values\n"
    assert summary in capsys.readouterr().out
    assert seed.main(["--csv", str(tmp_path / "corrected.csv")]) == 0
    summary = "0 rows inserted, 2 were there already: 0 had missing values filled, 1 that differ keep their"
    assert summary in capsys.readouterr().out
    assert [row[2] for row in rows()] == [10.0, 20.0]
    assert seed.main(["--csv", str(tmp_path / "corrected.csv"), "--replace"]) == 0
    assert "0 had missing values filled, 1 that differ are overwritten\n" in capsys.readouterr().out
    assert [row[2] for row in rows()] == [11.0, 20.0]


NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6).map(float)
DIALECTS = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(sorted(files.DELIMITERS)),
        "decimal": st.sampled_from([".", ","]),
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
        "line_end": st.sampled_from(["\n", "\r\n"]),
        "form": st.sampled_from([None, "%d.%m.%Y %H:%M", "%Y%m%d %H%M", "%m/%d/%Y %I:%M %p"]),
        "zone": st.sampled_from([None, "Europe/Berlin", "America/New_York", "Asia/Kathmandu"]),
        "missing": st.sampled_from(["", "NaN", "-9999.9", "Bad"]),
        "quoted": st.booleans(),
        "comments": st.lists(st.sampled_from(['# Méan, of 3; " things', "#", "  "]), max_size=3),
        "header": st.booleans(),
        "piece_lines": st.integers(1, 40),
    }
)


def written(dialect, table, start):
    """Return a table in this dialect as bytes, and the options that describe it."""
    zone = ZoneInfo(dialect["zone"] or "UTC")
    form = dialect["form"] or "%Y-%m-%dT%H:%M"
    delimiter = files.DELIMITERS[dialect["delimiter"]]

    def field(text):
        quotes = dialect["quoted"] or delimiter in text
        return f'"{text}"' if quotes else text

    def number(value):
        if value is None:
            return dialect["missing"] or '""' * (delimiter == " ")
        return field(repr(value).replace(".", dialect["decimal"]))

    lines = [delimiter.join(map(field, ["Zeit", "wind_speed", "Remark", "power"]))] * dialect["header"]
    for minute, (wind_speed, power) in enumerate(table):
        clock = (start + timedelta(minutes=10 * minute)).astimezone(zone).strftime(form)
        lines.append(delimiter.join([field(clock), number(wind_speed), field("x y"), number(power)]))
    lines = [*dialect["comments"], *lines[:1], *dialect["comments"], *lines[1:]] if dialect["comments"] else lines
    names = ["Zeit", "wind_speed", "power"] if dialect["header"] else ["1", "2", "4"]
    options = ["--timestamp", names[0], "--column", f"wind_speed={names[1]}", f"power={names[2]}", "--comment", "#"]
    options += ["--delimiter", dialect["delimiter"], "--decimal", dialect["decimal"], "--encoding", dialect["encoding"]]
    options += ["--missing", dialect["missing"] or "NULL"]
    options += ["--timestamp-format", dialect["form"]] if dialect["form"] else []
    options += ["--csv-timezone", dialect["zone"]] if dialect["zone"] else []
    options += [] if dialect["header"] else ["--header-line", "0"]
    return dialect["line_end"].join([*lines, ""]).encode(dialect["encoding"]), options


@given(
    dialect=DIALECTS,
    table=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=60),
    start=st.datetimes(datetime(2000, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC)),
)
def test_a_table_in_any_dialect_is_read_back_equal(tmp_path_factory, dialect, table, start):
    start = start.replace(minute=0, second=0, microsecond=0)
    zone = ZoneInfo(dialect["zone"] or "UTC")
    clocks = [(start + timedelta(minutes=10 * each)).astimezone(zone) for each in range(-12, len(table) + 12)]
    # A file that begins or ends within a repeated hour is ambiguous.
    assume(len({clock.utcoffset() for clock in clocks}) == 1)
    content, arguments = written(dialect, table, start)
    file = tmp_path_factory.mktemp("files") / "some.csv"
    file.write_bytes(content)
    options = seed._parser()[0].parse_args(["--csv", str(file), *arguments])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PIECE_LINES", dialect["piece_lines"])
        patch.setattr(files, "HEAD_LINES", 8)
        with files.opened(str(file), options) as opened:
            pieces = list(opened)
    read = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    moments = [start.replace(tzinfo=None) + timedelta(minutes=10 * minute) for minute in range(len(table))]
    assert read["timestamp"].tolist() == moments
    for place, name in enumerate(("wind_speed", "power")):
        np.testing.assert_array_equal(read[name], np.array([row[place] for row in table], float))


@pytest.mark.parametrize("kind", ["Greenbyte", "Kaggle", "SURFRAD", "MIDC", "TOA5"])
def test_the_documented_options_are_the_tested_ones(kind):
    documented = " ".join((ROOT / "docs/your-own-data.md").read_text().replace("\\\n", " ").split())
    assert " ".join(REAL[kind][1].split()) in documented
