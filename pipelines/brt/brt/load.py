"""Copy the captured files into the table brt_raw: one transaction per file, and no line is lost.

A row is a signal of a vehicle, (codigo, dataHora); the latest capture counts, whatever the order of the loads. A line
without vehicle, time or position is not a signal: brt_reject keeps it with the reason. Any other unreadable field is
NULL, and the column `extra` keeps its text.
"""

import csv
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from brt.capture import CAPTURED_AT, EXTRA, FIELDS, HEADER, Number, clean, encode, files
from fonte_alvo import engine
from fonte_alvo.command import Failure

# The end of the year 9999: Python and other clients read no later date.
LAST_MOMENT_MS = 253_402_300_799_999
# Far longer than any real one. PostgreSQL refuses a key of some kilobytes, which would fail the whole file.
CODIGO_CHARACTERS = 100
DEGREES = {"latitude": 90.0, "longitude": 180.0}
# Without these a line is not a signal.
REQUIRED = (CAPTURED_AT, "codigo", "dataHora", *DEGREES)
OPTIONAL_NUMBERS = ("velocidade", "hodometro", "direcao")
# A larger share of a file's lines fails the load.
REJECTED_AT_MOST = 0.05
# Fields may have any length.
csv.field_size_limit(2**31 - 1)
_BOM = b"\xef\xbb\xbf"
_UNREADABLE = re.compile("[\x00\udc80-\udcff]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_TABLES = Path(__file__).with_name("tables.sql")
_MERGE = Path(__file__).with_name("merge.sql")
# The last capture with a new signal: a signal of earlier files keeps the time of its first capture.
_NEWEST = text("SELECT max(brt_raw.first_captured_at) FROM brt_raw JOIN pg_temp.incoming USING (codigo, dataHora)")
# Last of all: a load that fails or is killed leaves the report to the next one.
_UNREPORTED = "UPDATE brt_file SET reported = true WHERE NOT reported RETURNING file, rejected, rejected + signals"


class RejectedError(Failure):
    """Too many lines of a file are not signals; all other lines are loaded."""

    exit_code = 8


@dataclass(frozen=True)
class Report:
    """The outcome of a load.

    loaded, skipped: files; signals: lines; rejected: lines that no earlier load has reported; unread: unreadable values
    of files that have more than before; faulty: files with too many rejected lines.
    """

    loaded: int = 0
    skipped: int = 0
    signals: int = 0
    rejected: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    faulty: tuple[str, ...] = ()

    def __add__(self, other: "Report") -> "Report":
        return Report(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        counts = f"{self.signals:,} signals, {self.rejected:,} lines newly rejected"
        return f"{self.loaded:,} files loaded, {self.skipped:,} known already: {counts}"


@dataclass
class Content:
    """A file's content: rows (line number, values of HEADER), rejects, unread values, times of captures."""

    rows: list[list[object]] = field(default_factory=list)
    rejects: list[tuple[int, str, str]] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    captures: set[datetime] = field(default_factory=set)


def load(pool: Engine, folder: Path) -> Report:
    """Load the new and changed files of a folder. Raises DatabaseError, OSError."""
    report = Report()
    with engine.failures("BRT's database", "each file is loaded whole or not at all: mend it and run the load again"):
        with pool.begin() as connection:
            # CREATE TABLE IF NOT EXISTS may fail if two loads run at once.
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('brt_raw'))"))
            connection.exec_driver_sql(_TABLES.read_text())
        for file in files(folder):
            try:
                with pool.begin() as connection:
                    report += _load_file(connection, file)
            except FileNotFoundError:
                # Deleted since the folder was listed: loaded files may be deleted at any time.
                report += Report(skipped=1)
        with pool.begin() as connection:
            found = sorted(map(tuple, connection.execute(text(_UNREPORTED))))
    faulty = (f"{rejected:,} of {lines:,} lines of {file}" for file, rejected, lines in found)
    return report + Report(faulty=tuple(faulty))


def _load_file(connection: Connection, file: Path) -> Report:
    """Load a file if it is new or has changed; other loads wait."""
    connection.execute(text("LOCK TABLE brt_file IN SHARE ROW EXCLUSIVE MODE"))
    known: dict[str, object] = {"file": file.name}
    query = "SELECT bytes, modified, rejected, unread, reported FROM brt_file WHERE file = :file"
    before = connection.execute(text(query), known).one_or_none()
    with file.open("rb") as opened:
        state = os.fstat(opened.fileno())
        modified = datetime.fromtimestamp(state.st_mtime_ns // 1000 / 1e6, UTC)
        if before and (before.bytes, before.modified) == (state.st_size, modified):
            return Report(skipped=1)
        content = parse(opened.read())
    connection.exec_driver_sql(
        "CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS SELECT 0 AS line, * FROM brt_raw WITH NO DATA"
    )
    engine.send(connection, f"COPY pg_temp.incoming (line, {', '.join(HEADER)}) FROM STDIN", _copied(content.rows))
    connection.exec_driver_sql(_MERGE.read_text())
    for table in ("brt_file", "brt_reject"):
        connection.execute(text(f"DELETE FROM {table} WHERE file = :file"), known)
    lines = _copied([file.name, *each] for each in content.rejects)
    engine.send(connection, "COPY brt_reject (file, line, reason, content) FROM STDIN", lines)
    signals, rejected, unread = len(content.rows), len(content.rejects), content.unread.total()
    noted = known | {"bytes": state.st_size, "modified": modified, "signals": signals, "rejected": rejected}
    # A file that has grown is read again; an earlier load has reported its earlier rejects.
    new_rejects = max(0, rejected - (before.rejected if before and before.reported else 0))
    is_faulty = new_rejects > 0 and rejected > REJECTED_AT_MOST * (rejected + signals)
    noted |= {"unread": unread, "captures": len(content.captures), "new_signals_until": connection.scalar(_NEWEST)}
    noted |= {"captured_until": max(content.captures, default=None), "reported": not is_faulty}
    values = ", ".join(f":{name}" for name in noted)
    connection.execute(text(f"INSERT INTO brt_file ({', '.join(noted)}) VALUES ({values})"), noted)
    return Report(1, 0, signals, new_rejects, content.unread if not before or unread > before.unread else Counter())


def parse(content: bytes) -> Content:
    """Read a file's lines: each is a row or a reject."""
    found = Content()
    header, *lines = content.removeprefix(_BOM).split(b"\n")
    names = tuple(header.removesuffix(b"\r").decode(errors="replace").split(","))
    # An older version wrote no column EXTRA.
    wrong = "" if names in (HEADER, HEADER[:-1]) else "the file does not begin with the header of a capture"
    if wrong:
        lines.insert(0, header)
    # Text after the last line break is a line that was cut off.
    cut_off = lines.pop() if lines else b""
    first = 1 if wrong else 2
    for number, line in enumerate(lines, first):
        try:
            if wrong:
                raise ValueError(wrong)
            values, unread = _values(line.removesuffix(b"\r"), len(names))
        except (ValueError, csv.Error) as error:
            found.rejects.append((number, str(error), _shown(line)))
        else:
            found.rows.append([number, *values])
            found.unread.update(unread)
    if cut_off:
        found.rejects.append((first + len(lines), wrong or "the line is cut off", _shown(cut_off)))
    for given in {line.partition(b",")[0] for line in lines}:
        # Of rejected lines too: the API answered at that time.
        with suppress(ValueError):
            found.captures.add(_moment(given.decode()))
    return found


def _shown(line: bytes) -> str:
    # A text of PostgreSQL holds no NUL.
    return line.decode(errors="backslashreplace").replace("\0", r"\x00")


def _values(line: bytes, fields: int) -> tuple[list[object], list[str]]:
    """Return the values of HEADER, and the names of those that cannot be read. Raises ValueError and csv.Error."""
    given = next(csv.reader([line.decode(errors="surrogateescape")], strict=True), [])
    if len(given) not in (fields, len(HEADER)):
        raise ValueError(f"{len(given)} fields instead of {len(HEADER)}")
    texts = dict(zip(HEADER, given, strict=False))
    extra, unread = _extra(texts.pop(EXTRA, ""))
    values: dict[str, object] = {}
    for name, text_ in texts.items():
        try:
            values[name] = _value(name, text_)
        except ValueError:
            if name in REQUIRED:
                raise
            values[name] = None
            extra.setdefault(name, _shown(text_.encode(errors="surrogateescape")))
        if name in FIELDS and name in extra:
            unread.append(name)
            # NULL: an empty text means that the API sent one.
            values[name] = values[name] or None
    return [*values.values(), encode(extra)], unread


def _extra(given: str) -> tuple[dict[str, object], list[str]]:
    try:
        extra = json.loads(given or "{}", parse_int=Number, parse_float=Number, parse_constant=str)
    except (ValueError, RecursionError):
        extra = None
    return (extra, []) if isinstance(extra, dict) else ({EXTRA: given}, [EXTRA])


def _value(name: str, given: str) -> object:
    if name == CAPTURED_AT:
        return _moment(given)
    if name == "dataHora":
        if not re.fullmatch(r"\d{1,15}", given, re.ASCII) or int(given) > LAST_MOMENT_MS:
            raise ValueError(f"dataHora is {clean(given)!r}: expected milliseconds since 1970, up to the year 9999")
        return int(given)
    if name in DEGREES:
        number = _number(name, given)
        if abs(number) > DEGREES[name]:
            raise ValueError(f"{name} is {clean(given)!r}: no place on Earth")
        return number
    if name in OPTIONAL_NUMBERS:
        return _number(name, given) if given.strip() else None
    if _UNREADABLE.search(given):
        raise ValueError(f"{name} is {clean(_shown(given.encode(errors='surrogateescape')))}: not UTF-8, or has NUL")
    if name == "codigo":
        if not 0 < len(given.strip()) <= CODIGO_CHARACTERS:
            raise ValueError(f"codigo has {len(given.strip()):,} characters: expected 1 to {CODIGO_CHARACTERS}")
        return given.strip()
    return given


def _number(name: str, given: str) -> float:
    if not _NUMBER.fullmatch(given) or not math.isfinite(float(given)):
        raise ValueError(f"{name} is {clean(given)!r}: expected a number")
    return float(given)


def _moment(given: str) -> datetime:
    try:
        moment = datetime.fromisoformat(given)
        # PostgreSQL rejects offsets of 16 hours or more, and those with fractions of a second.
        in_utc = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"captured_at is {clean(given)!r}: expected a time with its zone")
    return in_utc


def _copied(rows: Iterable[Sequence[object]]) -> io.BytesIO:
    """Return rows in the text format of COPY."""
    lines = ("\t".join(r"\N" if value is None else str(value).translate(_ESCAPES) for value in row) for row in rows)
    return io.BytesIO("".join(f"{row}\n" for row in lines).encode())
