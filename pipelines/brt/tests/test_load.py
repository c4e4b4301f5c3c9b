import itertools
import random
import signal
import subprocess
import sys
from datetime import datetime

import pytest
from sqlalchemy import text

from brt import __main__, capture, load, pipeline
from fonte_alvo.engine import DatabaseError
from tests.conftest import FIRST_MINUTE, PROJECT, captured, counts, real_captures, vehicle


def table(pool, name="brt_raw"):
    with pool.connect() as connection:
        return connection.execute(text(f"SELECT * FROM {name} ORDER BY 1, 2, 6")).mappings().all()


def line(**changed):
    """A line of a file, with some fields as given."""
    fields = dict(zip(capture.HEADER[1:], captured(vehicle()).records[0], strict=True))
    return ",".join((({"captured_at": "2023-07-26T01:53:30.250Z"} | fields) | changed).values())


def write(folder, *lines, end="\n"):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "brt_20230726T015300Z.csv"
    text_ = "\n".join([",".join(capture.HEADER), *lines]) + end
    file.write_bytes(text_.encode(errors="surrogateescape"))
    return file


def test_the_ten_real_captures_hold_1923_signals(ten_captures):
    assert load.load(ten_captures, pipeline.captures_folder()) == load.Report(1, 0, 4530, 0)
    assert len(table(ten_captures)) == 1923
    expected = {
        (record[0], int(record[capture.FIELDS.index("dataHora")])): (one.captured_at, float(record[3]), record[9])
        for one in real_captures()
        for record in one.records
    }
    assert expected == {
        (row["codigo"], row["datahora"]): (row["captured_at"], row["latitude"], row["trajeto"])
        for row in table(ten_captures)
    }


def test_a_foreign_table_of_the_name_incoming_stays_empty(ten_captures):
    load.load(ten_captures, pipeline.captures_folder() / "none")
    with ten_captures.begin() as connection:
        connection.execute(text("CREATE TABLE incoming AS SELECT 0 AS line, * FROM brt_raw"))
        database = connection.scalar(text("SELECT current_database()"))
        connection.execute(text(f"ALTER DATABASE {database} SET search_path = public, pg_temp"))
    ten_captures.dispose()
    assert load.load(ten_captures, pipeline.captures_folder()) == load.Report(1, 0, 4530, 0)
    assert (len(table(ten_captures)), table(ten_captures, "incoming")) == (1923, [])


def test_loaded_files_are_skipped_and_a_file_that_grew_is_loaded_again(folder, pool):
    first, second, third = real_captures()[:3]
    capture.append(folder, first, 60)
    assert load.load(pool, folder) == load.Report(1, 0, 453, 0)
    held = table(pool)
    assert load.load(pool, folder) == load.Report(0, 1, 0, 0)
    assert table(pool) == held
    capture.append(folder, second, 60)
    assert load.load(pool, folder) == load.Report(1, 0, 906, 0)
    # Another interval, and so another file.
    capture.append(folder, third, 1)
    assert load.load(pool, folder) == load.Report(1, 1, 453, 0)
    assert len(table(pool, "brt_file")) == 2


@pytest.mark.parametrize("zone", ["+16:00", "-15:59", "+05:00:01.5", "-23:59:59.999999"])
def test_a_capture_in_any_time_zone_is_loaded(folder, pool, zone):
    given = f"2023-07-26T01:53:30.250{zone}"
    write(folder, line(captured_at=given))
    assert load.load(pool, folder) == load.Report(1, 0, 1, 0)
    assert [row["captured_at"] for row in table(pool)] == [datetime.fromisoformat(given)]


def test_lines_may_end_as_on_windows(folder, pool):
    file = write(folder, line(direcao="86"), line(codigo="2"))
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert load.load(pool, folder) == load.Report(1, 0, 2, 0)


def test_blanks_around_the_number_of_a_bus_do_not_count(folder, pool):
    write(folder, line(codigo=" 901"), line(codigo="901\xa0", velocidade="2"))
    load.load(pool, folder)
    assert [(row["codigo"], row["velocidade"]) for row in table(pool)] == [("901", 2.0)]


def test_a_corrected_value_is_loaded(folder, pool):
    for speed in ("1", "20"):
        write(folder, line(velocidade=speed))
        load.load(pool, folder)
    assert [row["velocidade"] for row in table(pool)] == [20.0]


def test_a_file_deleted_during_the_load_is_skipped(ten_captures, monkeypatch):
    gone = pipeline.captures_folder() / "brt_20230726T000000Z.csv"
    monkeypatch.setattr(load, "files", lambda folder: [gone, *capture.files(folder)])
    assert load.load(ten_captures, pipeline.captures_folder()) == load.Report(1, 1, 4530, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_latest_capture_wins_whatever_the_order_of_the_loads(tmp_path, pool, order):
    captures = [captured(vehicle(velocidade=speed), after_minutes=speed) for speed in (1, 2, 1)]
    captures[2] = captured(vehicle(velocidade=1), after_minutes=3)
    for number in order:
        folder = tmp_path / str(number)
        capture.append(folder, captures[number], 1)
        load.load(pool, folder)
    (row,) = table(pool)
    assert (row["velocidade"], row["captured_at"]) == (1.0, captures[2].captured_at)
    assert row["first_captured_at"] == captures[0].captured_at


def test_within_one_capture_the_later_line_wins(folder, pool):
    capture.append(folder, captured(vehicle(velocidade=1), vehicle(velocidade=2)), 60)
    load.load(pool, folder)
    assert [row["velocidade"] for row in table(pool)] == [2.0]


def test_an_empty_number_is_null_and_an_empty_text_is_empty(folder, pool):
    capture.append(folder, captured(vehicle(direcao=" ", velocidade=None, hodometro="", placa="")), 60)
    assert load.load(pool, folder).rejected == 0
    (row,) = table(pool)
    assert (row["direcao"], row["velocidade"], row["hodometro"], row["placa"]) == (None, None, None, "")


@pytest.mark.parametrize("given", ["a\\b", "a\\.", "\\N", "'", '"', "á😀", ",", ";", "\\", " a "])
def test_a_text_is_loaded_unchanged(folder, pool, given):
    capture.append(folder, captured(vehicle(trajeto=given)), 60)
    load.load(pool, folder)
    assert [row["trajeto"] for row in table(pool)] == [given]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "0 fields instead of 14"),
        ("half,a,line", "3 fields instead of 14"),
        (line() + ",more", "15 fields instead of 14"),
        # Cut off within a number, and continued by the next capture.
        (line(extra="").removesuffix(",")[:-1], "13 fields instead of 14"),
        ('"' + line(), "unexpected end of data"),
        (line(latitude="north"), "latitude is 'north': expected a number"),
        (line(latitude=""), "latitude is '': expected a number"),
        (line(latitude="nan"), "expected a number"),
        (line(latitude="1_0"), "expected a number"),
        (line(latitude="90.1"), "no place on Earth"),
        (line(longitude="-180.1"), "no place on Earth"),
        (line(dataHora="1690333107.5"), "expected milliseconds since 1970"),
        (line(dataHora="-1"), "expected milliseconds since 1970"),
        (line(dataHora="253402300800000"), "expected milliseconds since 1970"),
        (line(codigo=" "), "codigo has 0 characters: expected 1 to 100"),
        (line(captured_at="2023-07-26T01:53:30"), "expected a time with its zone"),
        (line(captured_at="soon"), "captured_at is 'soon'"),
        (line(captured_at="9999-12-31T23:59:59-14:00"), "expected a time with its zone"),
        (line(codigo="á" * 101), "codigo has 101 characters"),
        (line(codigo="9\udcff"), r"codigo is 9\xff: not UTF-8"),
        (line(codigo="9\0"), r"codigo is 9\x00: not UTF-8, or has NUL"),
    ],
)
def test_a_bad_line_is_kept_with_its_reason_and_the_others_are_loaded(folder, pool, bad, reason):
    file = write(folder, line(), bad, line(codigo="2"))
    assert counts(load.load(pool, folder)) == (1, 0, 2, 1)
    assert [row["codigo"] for row in table(pool)] == ["2", "901008"]
    with pool.connect() as connection:
        ((name, number, why, content),) = connection.execute(text("SELECT * FROM brt_reject"))
    assert (name, number) == (file.name, 3)
    assert reason in why
    assert content == bad.replace("\0", r"\x00").replace("\udcff", r"\xff")


@pytest.mark.parametrize(
    ("name", "bad", "kept"),
    [
        ("direcao", "NE", "NE"),
        ("hodometro", "1e400", "1e400"),
        ("velocidade", "1_0", "1_0"),
        ("placa", "\udcff", r"\xff"),
        ("trajeto", "a\0b", r"a\x00b"),
        ("extra", "no json", "no json"),
        ("extra", "[1]", "[1]"),
        ("extra", "[" * 100_000, "[" * 100_000),
    ],
)
def test_a_bad_optional_field_rejects_no_signal(folder, pool, name, bad, kept):
    write(folder, line(**{name: bad}), line(codigo="2"))
    report = load.load(pool, folder)
    assert (counts(report), report.unread) == ((1, 0, 2, 0), {name: 1})
    (_, row) = table(pool)
    assert (row["extra"], row.get(name) in (None, row["extra"])) == ({name: kept}, True)
    with pool.connect() as connection:
        assert connection.scalar(text("SELECT unread FROM brt_file")) == 1


def test_an_optional_field_of_any_length_is_kept(folder, pool):
    capture.append(folder, captured(vehicle(trajeto="a" * 200_000)), 60)
    load.load(pool, folder)
    assert [len(row["trajeto"]) for row in table(pool)] == [200_000]


def test_a_file_with_a_byte_order_mark_or_without_the_extra_column_is_loaded(folder, pool):
    file = write(folder, line().removesuffix(","))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b",extra\n", b"\n"))
    capture.append(folder, captured(vehicle(codigo="2", novo=1), after_minutes=1), 60)
    assert counts(load.load(pool, folder)) == (1, 0, 2, 0)
    assert [row["extra"] for row in table(pool)] == [{"novo": 1}, {}]


@pytest.mark.parametrize(
    ("bad", "code", "said"),
    [
        (400, 8, "brt: too many lines are not signals: 400 of 400 lines of brt_20230726T015300Z.csv; the others are"),
        (40, 8, "40 of 400 lines"),
        (20, 0, ""),
        (0, 0, ""),
    ],
)
def test_a_file_with_too_many_rejects_fails_the_load_after_the_rest_is_loaded(
    pool, monkeypatch, capsys, caplog, bad, code, said
):
    monkeypatch.setattr("sys.argv", ["brt", "load"])
    caplog.set_level("INFO", "brt")
    other = pipeline.captures_folder() / "brt_20230726T020300Z.csv"
    write(pipeline.captures_folder(), line(codigo="later")).rename(other)
    lines = [line(latitude="north")] * bad + [line(codigo=str(number)) for number in range(400 - bad)]
    write(pipeline.captures_folder(), *lines)
    assert __main__.main() == code
    assert len(table(pool)) == 401 - bad
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == (code == 8)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"{bad} lines rejected; the table brt_reject has the reasons"] * (0 < bad <= 20)
    # Only once: the file is known now.
    caplog.clear()
    assert __main__.main() == 0
    assert [record.getMessage() for record in caplog.records] == [
        "0 files loaded, 2 known already: 0 signals, 0 lines newly rejected"
    ]


@pytest.mark.parametrize("grows", [False, True])
def test_the_first_load_that_finishes_reports_a_file_with_too_many_rejects(ten_captures, monkeypatch, grows):
    folder = pipeline.captures_folder()
    bad = folder / "brt_20230726T000000Z.csv"
    bad.write_text("\n".join([",".join(capture.HEADER), *[line(latitude="north")] * 30, ""]))
    with monkeypatch.context() as killed:
        killed.setattr(
            load, "parse", lambda content, parse=load.parse: parse(content) if b"north" in content else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            pipeline.load_new()
    if grows:
        bad.write_text(bad.read_text() + line() + "\n")
    lines = 30 + grows
    assert pipeline.load_new().faulty == (f"30 of {lines} lines of {bad.name}",)
    assert pipeline.load_new().faulty == ()


def test_the_tables_of_an_older_version_are_completed(folder, pool):
    write(folder, *[line(latitude="north")] * 30)
    load.load(pool, folder)
    with pool.begin() as connection:
        connection.execute(text("ALTER TABLE brt_file DROP COLUMN reported"))
    assert load.load(pool, folder) == load.Report(0, 1, 0, 0)


def test_the_faults_of_a_file_are_reported_only_once(folder, pool):
    write(folder, *[line(codigo=str(number)) for number in range(40)], line(latitude="north"), line(direcao="NE"))
    first = load.load(pool, folder)
    assert (first.rejected, first.unread.total()) == (1, 1)
    write(folder, *[line(codigo=str(number)) for number in range(50)], line(latitude="north"), line(direcao="NE"))
    assert load.load(pool, folder) == load.Report(1, 0, 51)


def test_a_load_before_the_first_capture_says_so(pool, caplog, monkeypatch):
    monkeypatch.setattr("sys.argv", ["brt", "load"])
    caplog.set_level("INFO", "brt")
    assert __main__.main() == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"no capture is in {pipeline.captures_folder()}: `make capture` makes one, `make start` one a minute"
    ]


def test_a_line_that_is_cut_off_is_rejected_until_it_is_complete(folder, pool):
    write(folder, line(), line(codigo="2")[:-3], end="")
    assert counts(load.load(pool, folder)) == (1, 0, 1, 1)
    write(folder, line(), line(codigo="2"))
    assert load.load(pool, folder) == load.Report(1, 0, 2, 0)
    assert len(table(pool)) == 2
    with pool.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM brt_reject")) == 0


def test_every_line_of_a_file_without_a_header_is_rejected_and_kept(folder, pool):
    file = write(folder, line())
    file.write_bytes(b"a,b\n" + line().encode() + b"\nrest")
    assert counts(load.load(pool, folder)) == (1, 0, 0, 3)
    with pool.connect() as connection:
        kept = connection.execute(text("SELECT line, content FROM brt_reject ORDER BY line")).all()
    assert kept == [(1, "a,b"), (2, line()), (3, "rest")]


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n\n", b"\0", b"\xff", b'"'])
def test_no_content_of_a_file_stops_the_load(folder, pool, content):
    write(folder).write_bytes(content)
    report = load.load(pool, folder)
    assert (report.loaded, report.signals) == (1, 0)


@pytest.mark.parametrize("seed", range(20))
def test_no_line_of_a_damaged_file_is_lost(seed):
    """Each line is a signal or a reject, whatever bytes are added, dropped or changed."""
    chance = random.Random(seed)
    content = bytearray("\n".join([",".join(capture.HEADER), *[line()] * 20, ""]).encode())
    header = content.index(b"\n") + 1
    for _ in range(30):
        place = chance.randrange(header, len(content))
        content[place : place + chance.randrange(3)] = bytes(chance.choices(b'",\n\\\0\xff0a', k=chance.randrange(3)))
    found = load.parse(bytes(content))
    numbers = sorted([row[0] for row in found.rows] + [number for number, _, _ in found.rejects])
    lines = bytes(content).split(b"\n")[1:]
    assert numbers == list(range(2, 2 + len(lines) - (lines[-1] == b"")))


def test_an_unreachable_database_is_reported_on_one_line(folder, pool, monkeypatch):
    monkeypatch.setenv("BRT_DATABASE_URL", "postgresql://nobody:secret@127.0.0.1:1/brt")
    with pytest.raises(DatabaseError, match="BRT's database failed: .*run the load again") as failure:
        pipeline.load_new()
    assert "secret" not in str(failure.value)


def test_the_next_load_completes_a_killed_one(ten_captures):
    """After a kill at any moment, each file is loaded whole or not at all, and the next load loads the rest."""
    for one in real_captures()[:5]:
        capture.append(pipeline.captures_folder(), one, 2)
    chance = random.Random(2)
    for _ in range(4):
        loader = subprocess.Popen([sys.executable, "-m", "brt", "load"], cwd=PROJECT, stderr=subprocess.DEVNULL)
        try:
            loader.wait(chance.uniform(0.8, 1.6))
        except subprocess.TimeoutExpired:
            loader.send_signal(signal.SIGKILL)
            loader.wait()
    report = pipeline.load_new()
    assert report.loaded + report.skipped == len(capture.files(pipeline.captures_folder()))
    assert len(table(ten_captures)) == 1923
    assert min(row["captured_at"] for row in table(ten_captures)) >= FIRST_MINUTE
