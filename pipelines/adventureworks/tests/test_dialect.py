"""The files' dialects: every row is read correctly, or rejected with its line and a reason."""

import csv
import io
import itertools
import re
import tracemalloc
from datetime import datetime
from decimal import Decimal

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adventureworks import dialect, model, stage
from adventureworks.model import Code, Money
from local import cloud


def probe(*kinds, nullable=True):
    """A table with an integer key, and a column A, B, ... for each type."""
    columns = [sa.Column("number", sa.Integer(), primary_key=True, info={"name": "Number"})]
    for letter, kind in zip("ABCDEFG", kinds, strict=False):
        columns.append(sa.Column(letter.lower(), kind, nullable=nullable, info={"name": letter}))
    return sa.Table("probe", sa.MetaData(), *columns, info={"file": "Probe"})


def staged(administrator, table, pieces, named=None, *, plain=True):
    """(line, reason, *values) of each row, in the order of the file."""
    pieces = list(pieces)
    with administrator.execution_options(isolation_level="READ COMMITTED").connect() as connection:
        with pytest.MonkeyPatch.context() as patch:
            if not plain:
                patch.setattr(dialect.Rows, "_plain_text", lambda *_: (_ for _ in ()).throw(dialect.NotPlain))
            counted = stage.stage(connection, table, lambda _: iter(pieces), named or {}, is_new=False)
        names = ", ".join(column.name for column in table.columns)
        found = connection.execute(sa.text(f"SELECT line, reason, {names} FROM staged_probe ORDER BY line"))
        rows = [tuple(row) for row in found]
        connection.rollback()
    assert counted.rows == len(rows)
    assert counted.unreadable == counted.rejected == sum(reason is not None for _, reason, *_ in rows)
    return rows


@st.composite
def in_pieces(draw, body):
    """The same bytes in chunks of any sizes."""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=5)))
    return [piece for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True) if (piece := body[start:end])]


any_text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
words = st.text("ab \u00e9\u4e2d\U0001f600;,\"\n\r\t\\'N.", max_size=6) | st.just("NULL") | any_text
money = st.none() | st.decimals(-1000, 1000, places=4)
moments = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
)
WRITERS = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(dialect.DELIMITERS),
        "header": st.booleans(),
        "null": st.sampled_from(dialect.CHOICES["null"]),
        "decimal": st.sampled_from(",."),
        "order": st.permutations(range(4)),
        "line_end": st.sampled_from(["\n", "\r\n"]),
        "bom": st.booleans(),
        "separator": st.sampled_from(" T"),
        "timespec": st.sampled_from(["milliseconds", "seconds"]),
        "blank_lines": st.integers(0, 2),
    }
)


def written(rows, how):
    """The rows as another program writes them; a text that looks like an absent value is quoted."""
    order = how["order"] if how["header"] else range(4)

    def field(value):
        match value:
            case None:
                return how["null"]
            case str():
                quoted = '"' + value.replace('"', '""') + '"'
                special = set('"\r\n' + how["delimiter"]) & set(value)
                return quoted if special or value in ("", "NULL", how["null"]) or value != value.strip() else value
            case Decimal():
                text = str(value).replace(".", how["decimal"])
                return f'"{text}"' if how["delimiter"] in text else text
            case datetime():
                return value.isoformat(how["separator"], how["timespec"])
            case _:
                return str(value)

    names = [["Number", "A", "B", "C"]] if how["header"] else []
    lines = [how["delimiter"].join(row[place] for place in order) for row in [*names, *(map_all(field, rows))]]
    text = how["line_end"].join([*lines, *[""] * (1 + how["blank_lines"])])
    return (b"\xef\xbb\xbf" if how["bom"] else b"") + text.encode()


def map_all(function, rows):
    return [[function(value) for value in row] for row in rows]


@settings(max_examples=80)
@given(
    values=st.lists(st.tuples(words | st.none(), money, moments), min_size=1, max_size=6),
    how=WRITERS,
    plain=st.booleans(),
    data=st.data(),
)
def test_rows_in_any_dialect_are_read_back_equal(administrator, values, how, plain, data):
    """The event names the dialect, because a few rows may fit several."""
    if how["timespec"] == "seconds":
        values = [(text, amount, moment.replace(microsecond=0)) for text, amount, moment in values]
    rows = [(number, *row) for number, row in enumerate(values)]
    named = {name: how[name] for name in dialect.CHOICES}
    pieces = data.draw(in_pieces(written(rows, how)))
    table = probe(sa.Text(), Money(19, 4), sa.DateTime())
    read = staged(administrator, table, pieces, named, plain=plain)
    assert [row[1:] for row in read] == [(None, *row) for row in rows]


@settings(max_examples=80)
@given(body=st.binary(max_size=200) | st.text('1;"\r\nN\\', max_size=60).map(str.encode), data=st.data())
@example(body=b'1;"a\n2;b\n', data=None)
@example(body=b'1;x"a\n2;y\n3;z"b\n', data=None)
@example(body=b'1;"a\n2;y\n3;"b\n', data=None)
@example(body=b'1;a"b"\n', data=None)
@example(body=b"1;a\n\\.\n2;b\n", data=None)
def test_no_bytes_break_the_reader_and_no_row_is_lost(administrator, body, data):
    """A file is refused, or has a row for each record that Python's csv module reads."""
    body = b"Number;A\n" + body
    pieces = data.draw(in_pieces(body)) if data else [body]
    try:
        read = staged(administrator, probe(sa.Text()), pieces, {"null": "NULL"})
    except dialect.FileError:
        return
    records = list(csv.reader(io.StringIO(body.decode().rstrip("\r\n"), newline=""), delimiter=";", strict=True))[1:]
    assert len(read) == len(records)
    assert [row[3] for row in read if row[1] is None] == [
        None if record[1] == "NULL" else record[1] for record, row in zip(records, read, strict=True) if row[1] is None
    ] or b'"NULL"' in body


NASTY = st.sampled_from(
    [
        "",
        "NULL",
        "0",
        "-1",
        "1,5",
        "1.5",
        ",5",
        "1,23456",
        "NaN",
        "1e3",
        "\u0661",
        "2011-02-29 00:00:00.000",
        '"x"',
        " 1",
        "L  ",
        '"L  "',
        '"L "M',
        "NULL ",
        '"NULL"',
        "  ",
        '"  "',
        '""',
        '"a;b"',
        '"\\;"',
        "\\.",
        "\\N",
    ]
) | st.text('0129-:. T,+Zx"\\', max_size=8)


@settings(max_examples=80)
@given(
    rows=st.lists(st.tuples(NASTY, NASTY, NASTY, NASTY), min_size=1, max_size=4),
    nullable=st.booleans(),
    null=st.sampled_from(dialect.CHOICES["null"]),
)
def test_both_ways_to_read_agree(administrator, rows, nullable, null):
    """The plain way and the checking way give the same rows, reasons and errors."""
    table = probe(Money(19, 4), sa.DateTime(), sa.String(5), Code(2), nullable=nullable)
    body = b"Number;A;B;C;D\n" + "".join(f"{n};{';'.join(row)}\n" for n, row in enumerate(rows)).encode()
    read = []
    for plain in (True, False):
        try:
            read.append(staged(administrator, table, [body], {"null": null, "decimal": ","}, plain=plain))
        except dialect.FileError as error:
            read.append(str(error))
    assert read[0] == read[1]


@pytest.mark.parametrize("field", ["a", "", '""', '"a;b"', '"a;;"', "a\\b", "\\N", "\\.", '"\\"', '"\\;\\"'])
def test_quoted_fields_and_backslashes_need_no_closer_look(administrator, monkeypatch, field):
    monkeypatch.delattr(stage, "_judge")
    body = f"Number;A\n1;{field}\n2;b\n".encode()
    read = staged(administrator, probe(sa.Text()), [body], {"null": "NULL"})
    assert [row[2:] for row in read] == [(1, field.strip('"')), (2, "b")]


TYPES = [
    (sa.Integer(), "-2147483648", -2147483648),
    (sa.Integer(), "2147483648", "is no whole number from -2,147,483,648 to 2,147,483,647"),
    (sa.Integer(), "", "is no whole number"),
    (sa.Integer(), " 1", "is no whole number"),
    (sa.Integer(), "1_000", "is no whole number"),
    (sa.Integer(), "0x1F", "is no whole number"),
    (sa.Integer(), "\u0661", "is no whole number"),
    (sa.SmallInteger(), "32767", 32767),
    (sa.SmallInteger(), "32768", "is no whole number from -32,768 to 32,767"),
    (sa.Boolean(), "1", True),
    (sa.Boolean(), "False", False),
    (sa.Boolean(), "yes", "is no flag"),
    (Money(19, 4), "2024,994", Decimal("2024.9940")),
    (Money(19, 4), "-0,0001", Decimal("-0.0001")),
    (Money(19, 4), ",5", Decimal("0.5000")),
    (Money(19, 4), "25575", Decimal("25575.0000")),
    (Money(19, 4), "2024.994", "is no number of up to 15 digits, a decimal comma and 4 more"),
    (Money(19, 4), "0,00001", "is no number"),
    (Money(19, 4), "1.000,00", "is no number"),
    (Money(19, 4), "1234567890123456", "is no number"),
    (Money(19, 4), "NaN", "is no number"),
    (sa.Numeric(8, 2), "1e3", "is no number"),
    (sa.DateTime(), "2012-02-29 23:59:59.999", datetime(2012, 2, 29, 23, 59, 59, 999000)),
    (sa.DateTime(), "2012-02-29T23:59:59", datetime(2012, 2, 29, 23, 59, 59)),
    (sa.DateTime(), "2011-02-29 00:00:00.000", "is no time"),
    (sa.DateTime(), "2011-05-31", "is no time"),
    (sa.DateTime(), "31/05/2011 00:00:00.000", "is no time"),
    (sa.DateTime(), "2011-05-31 24:00:00.000", "is no time"),
    (sa.DateTime(), "2011-05-31 00:00:00Z", "is no time"),
    (sa.DateTime(), "2014-09-1/T11:15:04", "is no time"),
    (sa.DateTime(), "today", "is no time"),
    (sa.Uuid(as_uuid=False), "92C4279F-1207-48A3-8448-4636514EB7E2", "92c4279f-1207-48a3-8448-4636514eb7e2"),
    (sa.Uuid(as_uuid=False), "{92C4279F-1207-48A3-8448-4636514EB7E2}", "92c4279f-1207-48a3-8448-4636514eb7e2"),
    (sa.Uuid(as_uuid=False), "92C4279F12074 8A384484636514EB7E2", "is no UUID"),
    (Code(2), "L ", "L"),
    (Code(2), " L", " L"),
    (Code(2), "LMN", "A is longer than 2 characters"),
    (sa.String(3), "\u00e9\u4e2d\U0001f600", "\u00e9\u4e2d\U0001f600"),
    (sa.String(3), "abcd", "A is longer than 3 characters"),
    (sa.Text(), "a\tb\\.", "a\tb\\."),
    (sa.Text(), "null", "null"),
    (sa.Text(), '"NULL"', "NULL"),
    (sa.Text(), '"a;""b"""', 'a;"b"'),
    (sa.Text(), "NULL", None),
]


@pytest.mark.parametrize(("kind", "field", "expected"), TYPES)
def test_a_field_is_read_by_its_type_or_its_row_is_rejected(administrator, kind, field, expected):
    body = f"Number;A\n7;{field}\n8;NULL\n".encode()
    named = {"null": "NULL"} | ({"decimal": ","} if isinstance(kind, Money) else {})
    first, second = staged(administrator, probe(kind), [body], named)
    assert second[:2] == (3, None)
    value = str(first[3]) if isinstance(kind, sa.Uuid) else first[3]
    if isinstance(expected, str) and first[1]:
        assert expected in first[1]
        # A reason repeats no text, which may be personal.
        assert isinstance(kind, sa.String) or first[1].startswith(f"A '{field}' ")
        assert first[2] == 7
    else:
        assert (first[1], value) == (None, expected)


def test_a_reason_repeats_a_value_cut_and_without_control_characters(administrator):
    [(_, reason, *_), _] = staged(
        administrator, probe(sa.Integer()), [b'Number;A\n1;"\x1b[31m' + b"x" * 99 + b'"\n2;1\n']
    )
    assert reason.startswith("A '?[31mxxx")
    assert "x" * 60 not in reason


def test_line_numbers_count_the_line_breaks_in_fields(administrator):
    body = b'Number;A;B\n1;"a\nb";1\n2;"c\r\n\n";x\n3;d;y\n'
    read = staged(administrator, probe(sa.Text(), sa.Integer()), [body])
    assert [(line, bool(reason)) for line, reason, *_ in read] == [(2, False), (4, True), (7, True)]


HEADER = b"Number;A\n"
FILES = [
    (b"", "line 1 does not name its columns: expected Number;A, in any order, or rows in this order"),
    (b"Number;Name\n1;a\n", "line 1 does not name its columns"),
    (b"Number\n1\n", "line 1 does not name its columns"),
    (b"key;text\n1;a\n", "line 1 does not name its columns"),
    (b"Number;A\rB\n1;a\n", "line 1 does not name its columns"),
    ("Number;A\n1;a\n".encode("utf-16"), "is not UTF-8 in its line 1: save it as UTF-8"),
    (HEADER, "holds no rows: an empty file never empties a table"),
    (HEADER + b"\r\n\r\n", "holds no rows"),
    (HEADER + b"1;a\n2;b", "ends within a line, as if cut off"),
    (HEADER + b'1;a\n2;"b\n', "ends within a quoted field, as if cut off"),
    (HEADER + b"1;" + b"a" * 3_000_000, "has a line of more than 1,048,576 bytes: is it a CSV file?"),
    (HEADER + b'1;"' + b"a\n" * 1_000_000, "has a quoted field of more than 1,048,576 bytes: close its quote"),
    (HEADER + b'1;"a"\n2;b"c\n3;d\n', "line 3 has a stray quote"),
    (HEADER + b'1;"a"b\n2;c\n', "line 2 has a stray quote"),
    (HEADER + b'1;x"a\n2;y\n3;z"b\n', "line 2 has a stray quote"),
    (HEADER + b"1;a\n2;b;c\n", "cannot be read: line 3: extra data after last expected column"),
    (HEADER + b"1;a\n2\n3;c\n", 'cannot be read: line 3: missing data for column "a"'),
    (HEADER + b"1;a\n\n3;c\n", 'cannot be read: line 3: missing data for column "a"'),
    (HEADER + b"1;a\n2;b\xff\n", 'cannot be read: line 3: invalid byte sequence for encoding "UTF8": 0xff'),
    (HEADER + b"1;a\n2;b\0\n", 'cannot be read: line 3: invalid byte sequence for encoding "UTF8": 0x00'),
    (HEADER + b"1;a\n2;b\r\n3;c\n", "cannot be read: line 3: unquoted carriage return found in data"),
]


@pytest.mark.parametrize(("body", "expected"), FILES)
def test_a_file_that_cannot_be_read_whole_is_refused(administrator, body, expected):
    with pytest.raises(dialect.FileError) as failure:
        staged(administrator, probe(sa.Text()), [piece for piece in (body[:100], body[100:]) if piece])
    assert str(failure.value).startswith(f"Probe {expected}")


@pytest.mark.parametrize(
    ("first", "rows_between", "later"),
    [
        ("", 40_000, "NULL"),
        ("", 40_000, "\\N"),
        ("\\N", 40_000, "NULL"),
        ("NULL", 40_000, "\\N"),
        ("NULL", 0, "\\N"),
        ("\\N", 0, "NULL"),
        # No absent value in the first 64 KiB.
        ("b", 40_000, ""),
        ("ANNULLED", 40_000, ""),
        ("b", 40_000, "\\N"),
    ],
)
def test_a_file_that_mixes_two_forms_of_null_is_refused_until_the_event_names_one(
    administrator, first, rows_between, later
):
    body = HEADER + f"1;{first}\n".encode() + b"2;a\n" * rows_between + f"3;{later}\n".encode()
    said = "|".join(re.escape(word or "empty fields") for word in (first, later))
    with pytest.raises(
        dialect.FileError, match=f'has ({said}), but .* seems to mean no value: set "null" in the event'
    ):
        staged(administrator, probe(sa.Text()), [body])
    for null, values in ((first, [None, later]), (later, [first, None])):
        rows = staged(administrator, probe(sa.Text()), [body], {"null": null})
        assert [row[3] for row in rows[:: rows_between + 1]] == values


@pytest.mark.parametrize("absent", ['""', '"NULL"'])
def test_a_file_that_quotes_every_field_is_refused_until_the_event_names_the_absent_value(administrator, absent):
    """Otherwise all its absent values would be texts."""
    body = b'"Number";"A"\n"1";"b"\n"2";' + absent.encode() + b"\n"
    with pytest.raises(dialect.FileError, match=f"has {absent}, but .* seems to mean no value"):
        staged(administrator, probe(sa.Text()), [body])
    rows = staged(administrator, probe(sa.Text()), [body], {"null": "NULL"})
    assert [row[3] for row in rows] == ["b", absent.strip('"')]


@pytest.mark.parametrize("plain", [True, False])
def test_a_delimiter_is_never_read_as_a_decimal_comma(administrator, plain):
    table = probe(Money(19, 4), Money(19, 4), nullable=False)
    with pytest.raises(dialect.FileError, match="line 3: extra data"):
        staged(administrator, table, [b"Number,A,B\n1,2,3\n2,0,12,5\n"], plain=plain)
    quoted = staged(administrator, table, [b'Number,A,B\n1,2,3\n2,0,"12,5"\n'], plain=plain)
    assert quoted == [(2, None, 1, 2, 3), (3, None, 2, 0, Decimal("12.5"))]


LAST_LINES = [
    (b"1;2011-05-31 00:00:00.000\n2;2011-06-01 00:00:00.000", True),
    (b"1;2011-05-31 00:00:00.000\n2;2011-06-01 00:00:00.000\r", True),
    (b"1;2011-05-31 00:00:00.000\n2;2011-06-01 00:00:00", False),
    (b"1;2011-05-31 00:00:00.000\n2;2011-06-01 00:00:00.00", False),
    (b"1;2011-05-31 00:00:00.000", False),
]


@pytest.mark.parametrize(("rows", "is_whole"), LAST_LINES)
def test_a_last_line_without_its_end_is_read_if_its_last_field_is_whole(administrator, rows, is_whole):
    table, pieces = probe(sa.DateTime()), [HEADER + rows]
    if is_whole:
        assert [row[:3] for row in staged(administrator, table, pieces)] == [(2, None, 1), (3, None, 2)]
    else:
        with pytest.raises(dialect.FileError, match="ends within a line, as if cut off"):
            staged(administrator, table, pieces)


def test_memory_does_not_grow_with_the_file():
    header, rows = cloud.sample("Sales.Customer").split(b"\n", 1)
    rows = rows[: rows.index(b"\n", 600_000) + 1]

    def peak_bytes(times, plain):
        starts = itertools.chain.from_iterable(range(0, len(rows), 65_536) for _ in range(times))
        chunks = itertools.chain([header + b"\n"], (rows[start : start + 65_536] for start in starts))
        tracemalloc.start()
        try:
            read = dialect.Rows(chunks, model.TABLES["Sales.Customer"], {}, plain=plain)
            assert sum(map(len, read)) == len(rows) * times
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for plain in (True, False):
        assert peak_bytes(6, plain) < 1.2 * peak_bytes(2, plain)
