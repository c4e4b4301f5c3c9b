"""The dialect: every row is read as it was meant, or rejected with its line and a reason."""

import csv
import io
import itertools
import tracemalloc

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adventureworks import dialect, load, model
from adventureworks.model import Code, Money
from local import cloud

COLUMNS = [
    sa.Column("number", sa.Integer(), nullable=False, info={"name": "Number"}),
    sa.Column("text", sa.Text(), nullable=True, info={"name": "Text"}),
]
HEADER = b"Number;Text\n"
any_text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
words = st.text("ab \u00e9\u4e2d\U0001f600;\"\n\r\t\\'N", max_size=6) | st.just("NULL") | any_text


@st.composite
def in_pieces(draw, body):
    """The same bytes in chunks of any sizes."""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=5)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def written(rows, line_end, bom):
    """The rows as Python's csv module writes them; what would be taken for no value, or for a line end, is quoted."""
    file = io.StringIO(newline="")
    for row in rows:
        quoting = csv.QUOTE_ALL if {"NULL", ""} & set(row) or "\r" in "".join(row) else csv.QUOTE_MINIMAL
        csv.writer(file, delimiter=";", lineterminator=line_end, quoting=quoting).writerow(row)
    return (b"\xef\xbb\xbf" if bom else b"") + file.getvalue().encode()


@settings(max_examples=500)
@given(
    rows=st.lists(st.lists(words, min_size=2, max_size=4), min_size=1, max_size=8),
    line_end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    data=st.data(),
)
def test_what_another_writer_wrote_is_read_back_whatever_the_pieces(rows, line_end, bom, data):
    body = written(rows, line_end, bom)
    numbered = enumerate(dialect.lines(data.draw(in_pieces(body))), 1)
    read = [row for _, row in dialect.records(numbered, dialect.fields)]
    assert read == rows


@given(
    values=st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), st.none() | words), min_size=1, max_size=8),
    data=st.data(),
)
def test_postgresql_holds_what_the_file_says(administrator, values, data):
    cells = [[str(number), "NULL" if word is None else '"' + word.replace('"', '""') + '"'] for number, word in values]
    body = HEADER + "".join(";".join(row) + "\r\n" for row in cells).encode()
    with administrator.connect() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS pg_temp.held"))
        connection.execute(sa.text("CREATE TEMP TABLE held (line bigint, reason text, number integer, text text)"))
        load._copy(connection, "COPY held FROM STDIN", dialect.copy_rows(data.draw(in_pieces(body)), COLUMNS))
        held = connection.execute(sa.text("SELECT number, text, reason FROM held ORDER BY line")).all()
    assert held == [(number, word, None) for number, word in values]


@settings(max_examples=1000)
@given(body=st.binary(max_size=200) | st.text('1;"\r\nN\\', max_size=60).map(str.encode), data=st.data())
@example(body=b'1;"a\n2;b\n', data=None)
def test_no_bytes_break_the_reader_and_no_row_is_lost(body, data):
    try:
        read = list(dialect.copy_rows(data.draw(in_pieces(HEADER + body)) if data else [HEADER + body], COLUMNS))
    except dialect.FileError:
        assert not body.endswith(b"\n")
        return
    numbers = [int(row.split("\t")[0]) for row in read]
    assert numbers == sorted(set(numbers))
    # Lines that are no record's beginning belong to a quoted field before them.
    assert numbers[0] == 2
    assert max(numbers) <= body.count(b"\n") + 1
    assert all(row.count("\t") == 3 and row.count("\n") == 1 for row in read)


broken_lines = st.binary(max_size=40) | st.text('5;"a', max_size=6).map(str.encode)


@settings(max_examples=500)
@given(bad=st.lists(broken_lines.filter(lambda line: b"\n" not in line), min_size=1, max_size=3), data=st.data())
@example(bad=[b'"1;a', b'3";c'], data=None)
@example(bad=[b'1;x;"a', b'3;c;"'], data=None)
def test_broken_lines_cost_no_other_row(bad, data):
    """Unless two of them make one whole row of all that stands between: that is what the dialect says."""
    rows = [b"%d;row\n" % number for number in range(5)]
    for number, line in enumerate(bad):
        rows.insert(data.draw(st.integers(0, len(rows))) if data else 2 * number + 1, line + b"\n")
    read = list(dialect.copy_rows([HEADER, *rows], COLUMNS))
    loaded = [row.split("\t", 1)[1] for row in read if row.split("\t")[1] == "\\N"]
    for number in range(5):
        assert f"\\N\t{number}\trow\n" in loaded or any(f"\\n{number};row" in row for row in loaded)
    assert len(read) + sum(row.count("\\n") for row in loaded) >= len(rows)


def test_a_quote_that_is_never_closed_costs_its_own_row_alone_however_long_the_file(monkeypatch):
    monkeypatch.setattr(dialect, "LONGEST_ROW_BYTES", 100)
    rows = [b'0;"open\n', *(b"%d;row\n" % number for number in range(1, 50))]
    read = list(dialect.copy_rows([HEADER, *rows], COLUMNS))
    assert [row.split("\t")[2] for row in read] == ["\\N", *map(str, range(1, 50))]


TYPES = [
    (sa.Integer(), "-2147483648", "-2147483648"),
    (sa.Integer(), "2147483648", "is no whole number from -2,147,483,648 to 2,147,483,647"),
    (sa.Integer(), "", "is no whole number"),
    (sa.Integer(), " 1", "is no whole number"),
    (sa.Integer(), "\u0661", "is no whole number"),
    (sa.SmallInteger(), "32767", "32767"),
    (sa.SmallInteger(), "32768", "is no whole number"),
    (sa.Boolean(), "1", "1"),
    (sa.Boolean(), "true", "is no flag"),
    (Money(), "2024,994", "2024.994"),
    (Money(), "-0,0001", "-0.0001"),
    (Money(), "25575", "25575"),
    (Money(), "2024.994", "is no number of up to 15 digits, a decimal comma and 4 more"),
    (Money(), "0,00001", "is no number"),
    (Money(), "1.000,00", "is no number"),
    (Money(), "1234567890123456", "is no number"),
    (Money(), "NaN", "is no number"),
    (sa.Numeric(8, 2), "1050.00", "1050.00"),
    (sa.Numeric(8, 2), "1050,00", "is no number of up to 6 digits, a decimal point and 2 more"),
    (sa.Numeric(8, 2), "1e3", "is no number"),
    (sa.DateTime(), "2012-02-29 23:59:59.999", "2012-02-29 23:59:59.999"),
    (sa.DateTime(), "2011-02-29 00:00:00.000", "is no time"),
    (sa.DateTime(), "2011-05-31", "is no time"),
    (sa.DateTime(), "31/05/2011 00:00:00.000", "is no time"),
    (sa.DateTime(), "2011-05-31 24:00:00.000", "is no time"),
    (sa.Uuid(), "92C4279F-1207-48A3-8448-4636514EB7E2", "92C4279F-1207-48A3-8448-4636514EB7E2"),
    (sa.Uuid(), "92C4279F12074 8A384484636514EB7E2", "is no UUID"),
    (Code(2), "L ", "L"),
    (Code(2), " L ", " L"),
    (Code(2), "LMN", "is longer than 2 characters"),
    (sa.String(3), "\u00e9\u4e2d\U0001f600", "\u00e9\u4e2d\U0001f600"),
    (sa.String(3), "L   ", "is longer than 3 characters"),
    (sa.Text(), "a\tb\\.\n", "a\\tb\\\\.\\n"),
]


@pytest.mark.parametrize(("kind", "field", "expected"), TYPES)
def test_a_field_is_read_by_its_type_or_refused(kind, field, expected):
    try:
        assert dialect.reader(kind)(field) == expected
    except ValueError as error:
        assert str(error).startswith(expected)


ROWS = [
    (b"1;NULL\n", "1\t\\N"),
    (b'1;"NULL"\n', "1\tNULL"),
    (b"1;\n", "1\t"),
    (b'"1";"a;""b"""\n', '1\ta;"b"'),
    (b"1;null\n", "1\tnull"),
    (b"NULL;a\n", "Number is NULL"),
    (b"1\n", "has 1 field instead of 2"),
    (b"1;a;b\n", "has 3 fields instead of 2"),
    (b"\n", "has 1 field instead of 2"),
    (b"x;a\n", "Number 'x' is no whole number from -2,147,483,648 to 2,147,483,647"),
    (b"1;\xff\n", "is not UTF-8 at its byte 3"),
    (b"1;a\0b\n", "holds the character NUL, which PostgreSQL cannot store"),
    (b'1;a"b"\n', "has a stray quote or carriage return in field 2"),
    (b'1;"a"b\n', "has a stray quote or carriage return in field 2"),
    (b"1;a\rb\n", "has a stray quote or carriage return in field 2"),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_a_row_is_taken_apart_strictly(row, expected):
    [read] = dialect.copy_rows([HEADER, row], COLUMNS)
    assert read in (f"2\t\\N\t{expected}\n", f"2\t{expected}\t\\N\t\\N\n")


FILES = [
    (b"", "line 1 does not name its columns: expected Number;Text"),
    (b"Number;Name\n1;a\n", "line 1 does not name its columns: expected Number;Text"),
    (b"Number,Text\n1,a\n", "line 1 does not name its columns: expected Number;Text"),
    (HEADER, "holds no rows: an empty file is no reason to empty a table"),
    (HEADER + b"1;a\n2;b", "ends within a line, as if cut off"),
    (HEADER + b"a" * 3_000_000, "has a line of more than 1,048,576 bytes: is it a CSV file?"),
]


@pytest.mark.parametrize(("body", "expected"), FILES)
def test_a_file_that_is_not_whole_is_refused(body, expected):
    with pytest.raises(dialect.FileError, match=expected):
        list(dialect.copy_rows([body[:100], body[100:]], COLUMNS))


def test_memory_does_not_grow_with_the_file():
    header, rows = cloud.sample("Sales.Customer").split(b"\n", 1)
    rows = rows[: rows.index(b"\n", 600_000) + 1]

    def peak_bytes(times):
        starts = itertools.chain.from_iterable(range(0, len(rows), 65_536) for _ in range(times))
        chunks = itertools.chain([header + b"\n"], (rows[start : start + 65_536] for start in starts))
        pieces = load._pieces(dialect.copy_rows(chunks, list(model.customer.columns)))
        tracemalloc.start()
        try:
            assert sum(map(len, pieces)) > len(rows) * times
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(6) < 1.2 * peak_bytes(1)
