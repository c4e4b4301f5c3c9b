"""The dialect of the files, read strictly: each row becomes the text that COPY takes, or a reason to reject it.

UTF-8, with or without a byte order mark; lines end with CRLF or LF, the last one too; fields end with `;`, and stand in
double quotes where they hold one, a quote (doubled) or a line end; NULL without quotes is no value. The first line
names the columns. What is in hand is never more than some lines, whatever a file's size.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa

from adventureworks.model import Code, Money

# A quoted field may go on over lines; one that is never closed must not swallow the file.
LONGEST_ROW_BYTES = 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_FIELD = re.compile(r'"([^"]*(?:""[^"]*)*)"(?=;|\Z)|([^";\r\n]*)(?=;|\Z)')
_COPY_SPECIAL = re.compile(r"[\\\t\r\n]")
_COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\r": "\\r", "\n": "\\n"})
_INTEGER = re.compile(r"-?[0-9]{1,10}")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

Field = str | None
Read = TypeVar("Read")


class FileError(Exception):
    """A file as a whole cannot be read; the message names it and says what to do."""


class RowError(ValueError):
    """A row cannot be loaded; the message is the reason."""


def copy_rows(chunks: Iterable[bytes], columns: Sequence[sa.Column[Any]]) -> Iterator[str]:
    """Yield one line of COPY's text format per row: its line number, the reason to reject it or NULL, its values.

    chunks: the file's bytes, in pieces of any size. Raises FileError without the file's name.
    """
    numbered = enumerate(lines(chunks), 1)
    _, names = next(records(islice(numbered, 1), fields), (1, []))
    expected = [column.info["name"] for column in columns]
    if names != expected:
        raise FileError(f"line 1 does not name its columns: expected {';'.join(expected)}")
    readers = [(column.info["name"], bool(column.nullable), reader(column.type)) for column in columns]
    nothing = "\t".join(["\\N"] * len(columns))
    number = 1
    for number, values in records(numbered, lambda row: _values(fields(row), readers)):
        if isinstance(values, RowError):
            yield f"{number}\t{str(values).translate(_COPY_ESCAPES)}\t{nothing}\n"
        else:
            yield f"{number}\t\\N\t{values}\n"
    if number == 1:
        raise FileError("holds no rows: an empty file is no reason to empty a table")


def _values(record: list[Field], readers: Sequence[tuple[str, bool, Callable[[str], str]]]) -> str:
    if len(record) != len(readers):
        raise RowError(f"has {len(record)} field{'s' * (len(record) != 1)} instead of {len(readers)}")
    values = []
    for field, (name, nullable, read) in zip(record, readers, strict=True):
        if field is not None:
            try:
                values.append(read(field))
            except ValueError as error:
                raise RowError(f"{name} {field[:100]!r} {error}") from None
        elif nullable:
            values.append("\\N")
        else:
            raise RowError(f"{name} is NULL")
    return "\t".join(values)


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file without their LF. Raises FileError where the last one does not end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        if len(rest) > LONGEST_ROW_BYTES:
            raise FileError(f"has a line of more than {LONGEST_ROW_BYTES:,} bytes: is it a CSV file?")
    if rest:
        raise FileError("ends within a line, as if cut off: copy it again, or end its last line if it is whole")


def records(
    numbered: Iterator[tuple[int, bytes]], read: Callable[[bytes], Read]
) -> Iterator[tuple[int, Read | RowError]]:
    """Yield the number of each record's first line with what `read` makes of the record, or why it makes nothing.

    numbered: lines without their LF, and their numbers. read: it raises RowError.
    """
    ahead: deque[tuple[int, bytes]] = deque()
    while first := ahead.popleft() if ahead else next(numbered, None):
        held, size, is_open = [first], len(first[1]), first[1].count(b'"') % 2
        # An odd number of quotes: a field goes on over the line's end.
        while is_open and size < LONGEST_ROW_BYTES:
            if not (line := ahead.popleft() if ahead else next(numbered, None)):
                break
            held.append(line)
            size += 1 + len(line[1])
            is_open ^= line[1].count(b'"') % 2
        number = first[0]
        row = b"\n".join(line for _, line in held)
        try:
            yield number, read((row.removeprefix(_BOM) if number == 1 else row).removesuffix(b"\r"))
        except RowError as error:
            # The lines that a stray quote swallowed may be rows themselves.
            ahead.extendleft(reversed(held[1:]))
            yield number, error


def fields(row: bytes) -> list[Field]:
    """Take a row apart. Raises RowError."""
    try:
        text = row.decode()
    except UnicodeDecodeError as error:
        raise RowError(f"is not UTF-8 at its byte {error.start + 1}") from None
    if "\0" in text:
        raise RowError("holds the character NUL, which PostgreSQL cannot store")
    if '"' not in text and "\r" not in text:
        return [None if field == "NULL" else field for field in text.split(";")]
    found: list[Field] = []
    position = -1
    while position < len(text):
        field = _FIELD.match(text, position + 1)
        if not field:
            raise RowError(f"has a stray quote or carriage return in field {len(found) + 1}")
        quoted, plain = field.groups()
        found.append(quoted.replace('""', '"') if quoted is not None else None if plain == "NULL" else plain)
        position = field.end()
    return found


def reader(kind: sa.types.TypeEngine[Any]) -> Callable[[str], str]:
    """Return the function that checks a field of this type and returns what COPY takes. It raises ValueError."""
    match kind:
        case Money():
            return _number(kind, ",")
        case sa.Numeric():
            return _number(kind, ".")
        case sa.SmallInteger():
            return _integer(2**15)
        case sa.Integer():
            return _integer(2**31)
        case sa.Boolean():
            return _matching(re.compile("[01]"), "is no flag: expected 0 or 1")
        case sa.Uuid():
            return _matching(_UUID, "is no UUID")
        case sa.DateTime():
            return _moment
        case sa.String():
            return _text(kind.length, padded=isinstance(kind, Code))
        case _:
            raise NotImplementedError(f"no field of a file is {kind!r}")


def _matching(pattern: re.Pattern[str], otherwise: str) -> Callable[[str], str]:
    def read(field: str) -> str:
        if not pattern.fullmatch(field):
            raise ValueError(otherwise)
        return field

    return read


def _number(kind: sa.Numeric[Any], mark: str) -> Callable[[str], str]:
    """Take digits with this decimal mark; more of them than the type holds are refused, not rounded."""
    whole, decimals = int(kind.precision or 0) - int(kind.scale or 0), int(kind.scale or 0)
    pattern = re.compile(rf"-?[0-9]{{1,{whole}}}({re.escape(mark)}[0-9]{{1,{decimals}}})?")
    what = f"is no number of up to {whole} digits, a decimal {'comma' if mark == ',' else 'point'} and {decimals} more"
    check = _matching(pattern, what)
    return check if mark == "." else lambda field: check(field).replace(mark, ".")


def _integer(limit: int) -> Callable[[str], str]:
    def read(field: str) -> str:
        if not _INTEGER.fullmatch(field) or not -limit <= int(field) < limit:
            raise ValueError(f"is no whole number from {-limit:,} to {limit - 1:,}")
        return field

    return read


def _moment(field: str) -> str:
    try:
        if _MOMENT.fullmatch(field):
            datetime.fromisoformat(field)
            return field
    except ValueError:
        pass
    raise ValueError("is no time: expected YYYY-MM-DD HH:MM:SS.mmm")


def _text(most: int | None, *, padded: bool) -> Callable[[str], str]:
    def read(field: str) -> str:
        text = field.rstrip(" ") if padded else field
        if most is not None and len(text) > most:
            raise ValueError(f"is longer than {most} characters")
        return text.translate(_COPY_ESCAPES) if _COPY_SPECIAL.search(text) else text

    return read
