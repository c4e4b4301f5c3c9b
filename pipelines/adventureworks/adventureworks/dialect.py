"""How the files are written: found from a file's first bytes, or named by the event.

UTF-8, with or without a byte order mark; fields in double quotes where they need them, a quote doubled. PostgreSQL
reads the rows. This module cuts them at line ends, and checks for the plain form, which PostgreSQL reads faster.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from adventureworks.model import Code, Money
from fonte_alvo.command import Failure

# A quoted field may span lines; one that is never closed must not swallow the file.
LONGEST_ROW_BYTES = 1024 * 1024
SAMPLE_BYTES = 64 * 1024
DELIMITERS = (";", ",", "\t", "|")
# An event may set these for its files, each to one of these values.
CHOICES = {"delimiter": DELIMITERS, "header": (True, False), "null": ("NULL", "", "\\N"), "decimal": (",", ".")}


class FileError(Failure):
    """A file as a whole cannot be loaded; the message names it and says what to do."""


class NotPlain(Exception):
    """A row is not in the form that COPY reads fast."""


class Dialect(NamedTuple):
    """How one file is written; columns: in the file's order; decimals: each numeric column's mark."""

    columns: list[sa.Column[Any]]
    delimiter: str
    header: bool
    null: str
    decimals: dict[str, str]
    line_end: bytes


def detect(sample: bytes, table: sa.Table, named: Mapping[str, Any]) -> Dialect:
    """Find how a file is written from its first bytes; named: what the event says. Raises FileError."""
    text = sample[:SAMPLE_BYTES].decode(errors="replace")
    line, _, below = text.partition("\n")
    if "\0" in line or "\ufffd" in line:
        raise FileError("is not UTF-8 in its line 1: save it as UTF-8")
    delimiter, header, columns = _columns(text, table, named)
    rows = below if header else text
    null = named.get("null")
    if null is None:
        mark = re.escape(delimiter)
        found = [word for word in ("NULL", "\\N", "") if _field_of([word], mark).search(rows.encode())]
        null = [*found, "NULL"][0]
    values = [row for row in (_fields(row, delimiter) for row in rows.split("\n")) if len(row) == len(columns)]
    decimals = {
        column.name: named.get("decimal") or _decimal(column, [row[number] for row in values])
        for number, column in enumerate(columns)
        if isinstance(column.type, sa.Numeric)
    }
    ends = (match.start() for match in re.finditer("\n", text) if not text.count('"', 0, match.start()) % 2)
    line_end = b"\r\n" if text[: next(ends, 0)].endswith("\r") else b"\n"
    return Dialect(columns, delimiter, header, null, decimals, line_end)


def _columns(text: str, table: sa.Table, named: Mapping[str, Any]) -> tuple[str, bool, list[sa.Column[Any]]]:
    """Return the delimiter, whether line 1 names the columns, and the columns in the order of the file."""
    known = {column.info["name"].lower(): column for column in table.columns}
    keys = [number for number, column in enumerate(table.columns) if column.primary_key]
    headerless = []
    for delimiter in (named["delimiter"],) if named.get("delimiter") else DELIMITERS:
        fields = _fields(text, delimiter)
        names = [field.strip().lower() for field in fields]
        if sorted(names) == sorted(known) and named.get("header") is not False:
            return delimiter, True, [known[name] for name in names]
        is_row = named.get("header") is False or not set(names) & set(known)
        if is_row and len(fields) == len(known) and all(fields[key].isdecimal() for key in keys):
            headerless.append(delimiter)
    if len(headerless) == 1 and named.get("header") is not True:
        return headerless[0], False, list(table.columns)
    expected = ";".join(column.info["name"] for column in table.columns)
    raise FileError(f"line 1 does not name its columns: expected {expected}, in any order, or rows in this order")


def _fields(text: str, delimiter: str) -> list[str]:
    """Return the fields of the first record, which a carriage return alone does not end."""
    lines = io.StringIO(text.replace("\r\n", "\n").replace("\r", "\0"), newline="")
    return next(csv.reader(lines, delimiter=delimiter), [])


def _decimal(column: sa.Column[Any], values: Iterable[str]) -> str:
    marks = [value[-1] for value in (re.sub("[^,.]", "", value) for value in values) if value]
    return max(",.", key=lambda mark: (marks.count(mark), (mark == ",") == isinstance(column.type, Money)))


def _field_of(words: Iterable[str], mark: str) -> re.Pattern[bytes]:
    """Return the pattern of a field that is one of these words; it starts with the word, which re finds fast.

    An empty line is no field.
    """
    field = rf"{{0}}(?<![^\n{mark}]{{0}})(?<!\n{{0}}(?=[\r\n]))(?=[\r\n{mark}])"
    return re.compile("|".join(field.format(re.escape(word)) for word in words).encode())


_DIGITS = "-".join(f"[0-9A-Fa-f]{{{count}}}" for count in (8, 4, 4, 4, 12))
_TIME = "[0-9]{4}-[0-9]{2}-[0-9]{2}[ T](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]{1,6})?"
_FORMS = {
    sa.Boolean: ("[01]|[Tt]rue|[Ff]alse|TRUE|FALSE", "is no flag: expected 0 or 1"),
    sa.Uuid: (f"{_DIGITS}|[{{]{_DIGITS}[}}]", "is no UUID"),
    sa.DateTime: (_TIME, "is no time: expected YYYY-MM-DD HH:MM:SS.mmm"),
}


def form(column: sa.Column[Any], dialect: Dialect) -> tuple[str, str]:
    """Return a regular expression for the column's valid values, and the reason to give for any other value.

    Texts have no expression.
    """
    match column.type:
        case sa.Numeric(precision=int(precision), scale=int(scale)):
            mark, whole = dialect.decimals[column.name], precision - scale
            decimals, name = f"[{mark}][0-9]{{1,{scale}}}", "comma" if mark == "," else "point"
            other = f"is no number of up to {whole} digits, a decimal {name} and {scale} more"
            return f"-?(?:[0-9]{{1,{whole}}}(?:{decimals})?|{decimals})", other
        case sa.Integer() as kind:
            limit = 2 ** (15 if isinstance(kind, sa.SmallInteger) else 31)
            return "-?[0-9]+", f"is no whole number from {-limit:,} to {limit - 1:,}"
        case kind:
            return _FORMS.get(type(kind), ("", ""))


def plain_rows(dialect: Dialect) -> tuple[re.Pattern[bytes], bytes]:
    """Return the pattern of rows in the plain form, and the template that rewrites their values.

    Rewritten, a row has decimal points, and codes without the blanks that pad them. Where no column needs that, the
    template is empty, and the pattern matches many rows.
    """
    mark, null, group = re.escape(dialect.delimiter), re.escape(dialect.null), itertools.count(2)
    end, fields, template = f"(?:{mark}|[\r\n])", [], ""
    commas = {c.name for c in dialect.columns if dialect.decimals.get(c.name) == "," and not c.nullable}
    for column in dialect.columns:
        value = form(column, dialect)[0]
        match column.type:
            case sa.Numeric(precision=int(precision), scale=int(scale)) if column.name in commas:
                value = f"-?[0-9]{{1,{precision - scale}}})(?:,([0-9]{{1,{scale}}}))?("
                template += rf".\g<{next(group)}>\g<{next(group)}>"
            case Code():
                absent = f"(?!{null} {'+' if column.nullable else '*'}{end})"
                bare, quoted = (f'[^"\r\n {other}]*+(?: ++[^"\r\n {other}]++)*+' for other in (mark, ""))
                value = f'(?:{absent}{bare}(?= *+{end})|"{quoted}(?= *+"{end}))) *+("?'
                template += rf"\g<{next(group)}>"
            case _ if value:
                absent = f"|{null}" if column.nullable else ""
                value = f"(?>{value}{absent})"
            case _:
                absent = "" if column.nullable else f"(?!{null}{end})"
                value = f'(?>{absent}(?:"[^"\r\n]*"(?={end})|[^"\r\n{mark}]*))'
        fields.append(value)
    row = f"{mark.join(fields)}{dialect.line_end.decode()}"
    pattern, template = (f"^({row})", rf"\g<1>{template}") if template else (f"(?:{row})*+", "")
    return re.compile(pattern.encode(), re.MULTILINE), template.encode()


class Rows:
    """The rows of a file as pieces of whole lines; it counts them as they pass.

    plain: raise NotPlain at a row that needs a closer look, and rewrite the others as COPY's text format, which is read
    faster than CSV; otherwise check the quotes.
    """

    def __init__(self, chunks: Iterable[bytes], table: sa.Table, named: Mapping[str, Any], *, plain: bool) -> None:
        """Read what it takes to find how the file is written. Raises FileError."""
        self._chunks, self._rest = iter(chunks), b""
        while len(self._rest) < SAMPLE_BYTES and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        self._rest = self._rest.removeprefix(b"\xef\xbb\xbf")
        self.dialect = detect(self._rest, table, named)
        if self.dialect.header:
            self._rest = self._rest.partition(b"\n")[2]
        self.plain = plain
        self._plain, self._template = plain_rows(self.dialect)
        mark, self._open = re.escape(self.dialect.delimiter), b""
        # If the sample has no absent value, later empty fields may be, or quoted ones where all fields have quotes.
        shown = _field_of([self.dialect.null], mark).search(self._rest[:SAMPLE_BYTES])
        others = {*("NULL", r"\N", "", '""', '"NULL"')[: 2 if shown else 5]} - {self.dialect.null}
        self.first_line, self.rows, self.lines_within = 1 + self.dialect.header, 0, 0
        self._mixed = _field_of(others, mark) if named.get("null") is None else None
        self._fields = re.compile(f'\\A(?:[^"\n{mark}]*+[\n{mark}]|"[^"]*+(?:""[^"]*+)*+"(?:{mark}|\r?\n))*+'.encode())

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces. Raises FileError, NotPlain."""
        for piece in self._whole_lines():
            if self._mixed and (other := self._mixed.search(piece)):
                two = f"{other[0].decode() or 'empty fields'}, but {self.dialect.null or 'an empty field'}"
                raise FileError(f'has {two} seems to mean no value: set "null" in the event to the bare one that does')
            if checked := self._plain_text(piece) if self.plain else self._checked_quotes(piece):
                yield checked
        if self._open:
            raise FileError("ends within a quoted field, as if cut off: copy it again")
        if not self.rows:
            raise FileError("holds no rows: an empty file never empties a table")

    def _whole_lines(self) -> Iterator[bytes]:
        """Cut the chunks at line ends; the last line is held back, with the blank lines after it."""
        rest, last = self._rest, b""
        for chunk in itertools.chain([b""], self._chunks):
            rest += chunk
            if cut := rest.rstrip(b"\r\n").rfind(b"\n") + 1:
                last = rest[rest.rfind(b"\n", 0, cut - 1) + 1 : cut]
                yield rest[:cut]
                rest = rest[cut:]
            if len(rest) > LONGEST_ROW_BYTES:
                raise FileError(f"has a line of more than {LONGEST_ROW_BYTES:,} bytes: is it a CSV file?")
        if line := rest.rstrip(b"\r\n"):
            if b"\n" not in rest:
                self._refuse_if_cut(line, last.rstrip(b"\r\n"))
            yield line + self.dialect.line_end

    def _refuse_if_cut(self, line: bytes, before: bytes) -> None:
        """Refuse a last line without a line end, unless its last field has a fixed length and is complete."""
        mark = self.dialect.delimiter.encode()
        fixed = isinstance(self.dialect.columns[-1].type, sa.Uuid | sa.DateTime)
        if not fixed or not before or len(line.rpartition(mark)[2]) != len(before.rpartition(mark)[2]):
            raise FileError("ends within a line, as if cut off: copy it again, or end its last line if it is whole")

    def _plain_text(self, piece: bytes) -> bytes:
        count = matched = piece.count(b"\n")
        if self._template:
            piece, matched = self._plain.subn(self._template, piece)
        # Where the decimal mark is the delimiter too, only quotes tell them apart.
        ambiguous = self.dialect.delimiter in self.dialect.decimals.values()
        if ambiguous or matched != count or not (self._template or self._plain.fullmatch(piece)):
            raise NotPlain
        self.rows += count
        return self._as_text(piece) if b'"' in piece or b"\\" in piece else piece

    def _as_text(self, piece: bytes) -> bytes:
        """Rewrite quoted fields and backslashes; a quoted NULL, which is a text, has no such form."""
        mark, null = self.dialect.delimiter.encode(), self.dialect.null.encode()
        if b'"%b"' % null in piece or null == rb"\N":
            raise NotPlain

        def escaped(match: re.Match[bytes]) -> bytes:
            return match[0].strip(b'"').replace(b"\\", b"\\\\").replace(mark, b"\\" + mark)

        return re.sub(rb'"[^"]*"|\\', escaped, piece)

    def _checked_quotes(self, piece: bytes) -> bytes:
        """Refuse a quote that neither opens nor closes a field: PostgreSQL would join the lines between two of them."""
        piece = self._open + piece
        self._open = self._fields.sub(b"", piece, count=1)
        piece = piece.removesuffix(self._open)
        within = sum(quoted.count(b"\n") for quoted in re.findall(rb'"[^"]*"', piece))
        self.rows += piece.count(b"\n") - within
        self.lines_within += within
        if not re.fullmatch(rb'(?:"[^"]*(?:""[^"]*)*)?', self._open):
            line = self.first_line + self.rows + self.lines_within
            raise FileError(f"line {line} has a stray quote: put the field into quotes, and double those within")
        if len(self._open) > LONGEST_ROW_BYTES:
            raise FileError(f"has a quoted field of more than {LONGEST_ROW_BYTES:,} bytes: close its quote")
        return piece
