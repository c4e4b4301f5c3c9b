"""The captured files to the table brt_raw, through COPY: a transaction per file, and no line lost.

A row is a signal of a vehicle, (codigo, dataHora); where captures differ, the latest one counts, in whatever order
the files are loaded. What is no signal goes into brt_reject with the reason.
"""

import csv
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from brt.capture import FIELDS, HEADER, files
from fonte_alvo import copy, engine

# Where PostgreSQL and its clients still know the date: the end of the year 9999.
LAST_MOMENT_MS = 253_402_300_799_999
# Far beyond any real one; a key of some kilobytes is refused by PostgreSQL, and the whole file with it.
CODIGO_CHARACTERS = 100
REQUIRED = {"latitude": 90.0, "longitude": 180.0}
OPTIONAL_NUMBERS = ("velocidade", "hodometro", "direcao")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_TABLES = """
CREATE TABLE IF NOT EXISTS brt_raw (
    codigo text NOT NULL,
    placa text NOT NULL,
    linha text NOT NULL,
    latitude double precision NOT NULL,
    longitude double precision NOT NULL,
    dataHora bigint NOT NULL,
    velocidade double precision,
    id_migracao_trajeto text NOT NULL,
    sentido text NOT NULL,
    trajeto text NOT NULL,
    hodometro double precision,
    direcao double precision,
    captured_at timestamptz NOT NULL,
    first_captured_at timestamptz NOT NULL,
    PRIMARY KEY (codigo, dataHora)
);
COMMENT ON COLUMN brt_raw.captured_at IS 'the latest capture that holds this signal';
COMMENT ON COLUMN brt_raw.first_captured_at IS 'the first capture that holds this signal';
CREATE TABLE IF NOT EXISTS brt_file (
    file text PRIMARY KEY,
    bytes bigint NOT NULL,
    modified timestamptz NOT NULL,
    signals integer NOT NULL,
    rejected integer NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS brt_reject (
    file text NOT NULL,
    line integer NOT NULL,
    reason text NOT NULL,
    content text NOT NULL,
    PRIMARY KEY (file, line)
);
"""
_COLUMNS = ", ".join((*FIELDS, "captured_at"))
_UPSERT = f"""
INSERT INTO brt_raw ({_COLUMNS}, first_captured_at)
SELECT DISTINCT ON (codigo, dataHora) {_COLUMNS}, min(captured_at) OVER (PARTITION BY codigo, dataHora)
FROM incoming ORDER BY codigo, dataHora, captured_at DESC, line DESC
ON CONFLICT (codigo, dataHora) DO UPDATE SET
    ({", ".join(FIELDS[1:])}, captured_at) = ROW ({", ".join(f"excluded.{name}" for name in FIELDS[1:])},
    excluded.captured_at)
WHERE excluded.captured_at >= brt_raw.captured_at
"""
# Apart from the values, which the latest capture decides: a file may be loaded after those that follow it.
_FIRST = """
UPDATE brt_raw SET first_captured_at = earlier.captured_at
FROM (SELECT codigo, dataHora, min(captured_at) AS captured_at FROM incoming GROUP BY codigo, dataHora) AS earlier
WHERE (brt_raw.codigo, brt_raw.dataHora) = (earlier.codigo, earlier.dataHora)
    AND earlier.captured_at < brt_raw.first_captured_at
"""


@dataclass(frozen=True)
class Report:
    """What a load did: files loaded and skipped, their records, and the lines among them that were rejected."""

    loaded: int
    skipped: int
    signals: int
    rejected: int


def load(pool: Engine, folder: Path) -> Report:
    """Load the files of a folder that are new or have changed; returns what it did. Raises DatabaseError, OSError."""
    loaded = skipped = signals = rejected = 0
    with engine.failures("BRT's database", "each file is in it wholly or not at all: run the load again"):
        with pool.begin() as connection:
            # IF NOT EXISTS does not keep two loads from creating the same table.
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('brt_raw'))"))
            connection.exec_driver_sql(_TABLES)
        for file in files(folder):
            try:
                with pool.begin() as connection:
                    done = _load_file(connection, file)
            except FileNotFoundError:
                # Deleted since the folder was read, as loaded files may be.
                done = None
            if done is None:
                skipped += 1
                continue
            loaded, signals, rejected = loaded + 1, signals + done[0], rejected + done[1]
    return Report(loaded, skipped, signals, rejected)


def _load_file(connection: Connection, file: Path) -> tuple[int, int] | None:
    """Load a file, once at a time; returns its numbers of signals and of rejected lines, None where it is known."""
    connection.execute(text("LOCK TABLE brt_file IN SHARE ROW EXCLUSIVE MODE"))
    with file.open("rb") as opened:
        state = os.fstat(opened.fileno())
        modified = datetime.fromtimestamp(state.st_mtime_ns // 1000 / 1e6, UTC)
        known = {"file": file.name, "bytes": state.st_size, "modified": modified}
        query = "SELECT 1 FROM brt_file WHERE file = :file AND bytes = :bytes AND modified = :modified"
        if connection.scalar(text(query), known):
            return None
        content = opened.read()
    rows, rejects = parse(content)
    connection.exec_driver_sql(
        "CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS SELECT 0 AS line, * FROM brt_raw WITH NO DATA"
    )
    copy.send(connection, f"COPY incoming (line, captured_at, {', '.join(FIELDS)}) FROM STDIN", _copied(rows))
    connection.exec_driver_sql(_UPSERT)
    connection.exec_driver_sql(_FIRST)
    connection.execute(text("DELETE FROM brt_reject WHERE file = :file"), known)
    lines = _copied([file.name, line, reason, raw] for line, reason, raw in rejects)
    copy.send(connection, "COPY brt_reject (file, line, reason, content) FROM STDIN", lines)
    upsert = (
        "INSERT INTO brt_file (file, bytes, modified, signals, rejected) "
        "VALUES (:file, :bytes, :modified, :signals, :rejected) ON CONFLICT (file) DO UPDATE SET "
        "(bytes, modified, signals, rejected, loaded_at) = "
        "ROW (excluded.bytes, excluded.modified, excluded.signals, excluded.rejected, excluded.loaded_at)"
    )
    connection.execute(text(upsert), known | {"signals": len(rows), "rejected": len(rejects)})
    return len(rows), len(rejects)


def parse(content: bytes) -> tuple[list[list[object]], list[tuple[int, str, str]]]:
    """Read a file's lines.

    Returns the rows of those that are signals, each its line's number and the values of HEADER, None where there is
    none; and for each other line but the header its number, what is wrong, and the line itself.
    """
    rows: list[list[object]] = []
    rejects: list[tuple[int, str, str]] = []
    header, *lines = content.split(b"\n")
    wrong = (
        ""
        if header.removesuffix(b"\r") == ",".join(HEADER).encode()
        else "the file does not begin with the header of a capture"
    )
    if wrong:
        lines.insert(0, header)
    # What stands behind the last line break is a line that was cut off, or nothing.
    cut_off = lines.pop() if lines else b""
    first = 1 if wrong else 2
    for number, line in enumerate(lines, first):
        try:
            if wrong:
                raise ValueError(wrong)
            rows.append([number, *_values(line.removesuffix(b"\r"))])
        except (ValueError, csv.Error) as error:
            rejects.append((number, str(error), _shown(line)))
    if cut_off:
        rejects.append((first + len(lines), wrong or "the line is cut off", _shown(cut_off)))
    return rows, rejects


def _shown(line: bytes) -> str:
    # PostgreSQL holds no NUL in a text.
    return line.decode(errors="backslashreplace").replace("\0", r"\x00")


def _values(line: bytes) -> list[object]:
    """Return the values of HEADER. Raises ValueError and csv.Error with what is wrong."""
    fields = next(csv.reader([line.decode()], strict=True), [])
    if len(fields) != len(HEADER):
        raise ValueError(f"{len(fields)} fields instead of {len(HEADER)}")
    if "\0" in "".join(fields):
        raise ValueError("a field holds the character NUL")
    return [_value(name, given) for name, given in zip(HEADER, fields, strict=True)]


def _value(name: str, given: str) -> object:
    if name == "captured_at":
        return _moment(given)
    if name == "codigo":
        return _code(given.strip())
    if name == "dataHora":
        if not re.fullmatch(r"\d{1,15}", given, re.ASCII) or int(given) > LAST_MOMENT_MS:
            raise ValueError(f"dataHora is {given!r}: expected milliseconds since 1970, up to the year 9999")
        return int(given)
    if name in REQUIRED:
        number = _number(name, given)
        if abs(number) > REQUIRED[name]:
            raise ValueError(f"{name} is {given!r}: no place on Earth")
        return number
    if name in OPTIONAL_NUMBERS:
        return _number(name, given) if given.strip() else None
    return given


def _code(given: str) -> str:
    if not given:
        raise ValueError("codigo is empty")
    if len(given) > CODIGO_CHARACTERS:
        raise ValueError(f"codigo has {len(given):,} characters: expected {CODIGO_CHARACTERS} at most")
    return given


def _number(name: str, given: str) -> float:
    if not _NUMBER.fullmatch(given) or not math.isfinite(float(given)):
        raise ValueError(f"{name} is {given!r}: expected a number")
    return float(given)


def _moment(given: str) -> datetime:
    try:
        moment = datetime.fromisoformat(given)
        # PostgreSQL knows neither zones of more than 15 hours nor those with parts of a second.
        in_utc = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"captured_at is {given!r}: expected a time with its zone")
    return in_utc


def _copied(rows: Iterable[Sequence[object]]) -> bytes:
    """Write rows in the text format of COPY."""
    fields = ("\t".join(r"\N" if value is None else str(value).translate(_ESCAPES) for value in row) for row in rows)
    return "".join(f"{row}\n" for row in fields).encode()
