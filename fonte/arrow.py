"""Samples as an Arrow IPC stream and back. The connector sends it on request, and its client prefers it.

Format: Apache Arrow, "Arrow Columnar Format", section "IPC Streaming Format", and its Schema.fbs and Message.fbs.
nanoarrow writes the stream. Its reader crashes on malformed bytes, and importing pyarrow takes longer than a day's run,
so this module reads the few tables of a flat stream itself and checks every access.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from struct import unpack_from
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MEDIA_TYPE = "application/vnd.apache.arrow.stream"

Array = npt.NDArray[Any]
Timestamps = npt.NDArray[np.datetime64]
Values = npt.NDArray[np.float64]
# Timestamps `datetime64[us]` (n,), and for each name its values (n,) and which of them are absent (n,).
Batch = tuple[Array, dict[str, tuple[Array, Array]]]


class BadAnswer(Exception):
    """A connector's answer cannot be used; the message says why."""


def encode(batches: Iterator[Batch], names: Sequence[str]) -> Iterator[bytes]:
    """Encode batches of the named columns one by one; without any, encode an empty table."""
    import nanoarrow  # here, because the client does not need it
    from nanoarrow import ipc

    moment, double = nanoarrow.timestamp("us", timezone="UTC", nullable=False), nanoarrow.float64()
    schema = nanoarrow.struct({"timestamp": moment, **dict.fromkeys(names, double)}, nullable=False)

    def table(timestamps: Array, columns: dict[str, tuple[Array, Array]]) -> object:
        children = [nanoarrow.c_array_from_buffers(moment, len(timestamps), [None, timestamps.view(np.int64)])]
        for values, absent in columns.values():
            present = np.packbits(~absent, bitorder="little") if absent.any() else None
            children.append(nanoarrow.c_array_from_buffers(double, len(values), [present, values]))
        return nanoarrow.c_array_from_buffers(schema, len(timestamps), [None], children=children)

    piece = io.BytesIO()
    with ipc.StreamWriter.from_writable(piece) as writer:
        writer.write_array(table(np.empty(0, "M8[us]"), dict.fromkeys(names, (np.empty(0), np.empty(0, dtype=bool)))))
        for batch in batches:
            writer.write_array(table(*batch), write_schema=False)
            yield piece.getvalue()
            piece.seek(0)
            piece.truncate()
    yield piece.getvalue()


def decode(body: bytes, names: Sequence[str]) -> dict[str, Array]:
    """Decode a whole stream of exactly the named columns: timestamps as `datetime64[us]`, others as float64.

    A null becomes NaN. Raises BadAnswer if the stream is invalid, is cut off, or holds anything else.
    """
    try:
        messages = _messages(body)
        first = next(messages, None)
        if first is None or first.kind != _SCHEMA:
            raise ValueError("no schema comes first")
        types = _types(first.header)
        if sorted(name for name, _ in types) != sorted(names):
            raise ValueError(f"the columns are {', '.join(name for name, _ in types)} instead of {', '.join(names)}")
        for name, dtype in types:
            if (name == "timestamp") != ("M8" in dtype):
                raise ValueError(f"{name} is no {'timestamp' if name == 'timestamp' else 'number'}")
        batches = [[np.empty(0, _taken_as(dtype)) for _, dtype in types]]
        batches += [_columns(body, message, types) for message in messages]
    except (ValueError, struct.error, OverflowError) as error:
        raise BadAnswer(f"it answered no Arrow stream that can be used: {error}") from error
    columns = {name: np.concatenate(parts) for (name, _), *parts in zip(types, *batches, strict=True)}
    return {name: columns[name] for name in names}


_SCHEMA, _RECORD_BATCH = 1, 3
_END = 0
# Bounds on the memory and time spent beside the values. Tables of minutes stay far below them.
_MOST_MESSAGES = 100_000
_MOST_METADATA_BYTES = 2**20
_RESOLUTIONS = ("s", "ms", "us", "ns")


class _Table(NamedTuple):
    """A table of a flatbuffer; its vtable holds the places of its fields."""

    buffer: bytes
    position: int

    def place(self, field: int) -> int:
        """Return the place of a field; 0 if it is absent."""
        vtable = self.position - int(unpack_from("<i", self.buffer, self.position)[0])
        if 4 + 2 * field >= unpack_from("<H", self.buffer, vtable)[0]:
            return 0
        offset = int(unpack_from("<H", self.buffer, vtable + 4 + 2 * field)[0])
        return self.position + offset if offset else 0

    def number(self, field: int, kind: str) -> int:
        """Return the number in a field; 0 if it is absent."""
        place = self.place(field)
        return int(unpack_from(kind, self.buffer, place)[0]) if place else 0

    def target(self, field: int) -> int:
        """Return the place that a field points to."""
        place = self.place(field)
        if not place:
            raise ValueError("a part is missing")
        return place + int(unpack_from("<I", self.buffer, place)[0])

    def table(self, field: int) -> "_Table":
        """Return the table in a field."""
        return _Table(self.buffer, self.target(field))

    def vector(self, field: int) -> tuple[int, int]:
        """Return the length of the vector in a field, and the place of its first item."""
        place = self.target(field)
        return int(unpack_from("<I", self.buffer, place)[0]), place + 4


class _Message(NamedTuple):
    """A message: its kind, its metadata, and the start and length of its body in the stream."""

    kind: int
    header: _Table
    start: int
    length: int


def _messages(body: bytes) -> Iterator[_Message]:
    position = 0
    for _ in range(_MOST_MESSAGES):
        continuation, size = unpack_from("<Ii", body, position)
        if continuation != 0xFFFFFFFF or not 0 <= size <= _MOST_METADATA_BYTES:
            raise ValueError(f"no message begins at byte {position}")
        if size == _END:
            return
        start = position + 8 + size
        # A copy, so that no offset points outside: otherwise many tiny messages could share one metadata.
        metadata = body[position + 8 : start]
        message = _Table(metadata, int(unpack_from("<I", metadata)[0]))
        length = message.number(3, "<q")
        if length < 0 or start + length > len(body):
            raise ValueError("it is cut off")
        yield _Message(message.number(1, "<B"), message.table(2), start, length)
        position = start + length
    raise ValueError(f"it has more than {_MOST_MESSAGES} messages")


def _types(schema: _Table) -> list[tuple[str, str]]:
    """Return the name and the NumPy type of each column."""
    if schema.number(0, "<h"):
        raise ValueError("its numbers are big-endian")
    count, place = schema.vector(1)
    if count > 100:
        raise ValueError(f"it has {count} columns")
    places = range(place, place + 4 * count, 4)
    fields = [_Table(schema.buffer, at + int(unpack_from("<I", schema.buffer, at)[0])) for at in places]
    return [(_text(field, 0), _type(field)) for field in fields]


def _text(table: _Table, field: int) -> str:
    length, place = table.vector(field)
    return table.buffer[place : place + length].decode()


def _type(field: _Table) -> str:
    kind, parameters = field.number(2, "<B"), field.table(3)
    if kind == 3 and parameters.number(0, "<h") in (1, 2):
        return f"<f{4 * parameters.number(0, '<h')}"
    if kind == 2 and parameters.number(0, "<i") in (32, 64) and not field.place(4):
        return f"<{'i' if parameters.number(1, '<B') else 'u'}{parameters.number(0, '<i') // 8}"
    if kind == 10 and parameters.number(0, "<h") in range(4):
        return f"<M8[{_RESOLUTIONS[parameters.number(0, '<h')]}]"
    raise ValueError(f"{_text(field, 0)} is neither a timestamp nor a number of 32 or 64 bits")


def _taken_as(dtype: str) -> str:
    return "M8[us]" if "M8" in dtype else "f8"


def _columns(body: bytes, message: _Message, types: Sequence[tuple[str, str]]) -> list[Array]:
    """Return the columns of a record batch."""
    kind, batch, start, length = message
    if kind != _RECORD_BATCH or batch.place(3):
        raise ValueError("it holds dictionaries or compressed batches: only plain ones are taken")
    (nodes, node), (buffers, buffer) = batch.vector(1), batch.vector(2)
    rows = batch.number(0, "<q")
    if nodes != len(types) or buffers != 2 * len(types) or rows < 0:
        raise ValueError("a batch's columns are not the schema's")
    # If columns shared their bytes, they would decode to more than was sent.
    places = [unpack_from("<qq", batch.buffer, buffer + 16 * number) for number in range(buffers)]
    filled = sorted(place for place in places if place[1] > 0)
    if any(at + size > after for (at, size), (after, _) in pairwise([(0, 0), *filled, (length, 0)])):
        raise ValueError("a batch's buffers overlap or lie outside it")
    part = memoryview(body)[start : start + length]
    columns = []
    for number, (name, dtype) in enumerate(types):
        column_rows, nulls = unpack_from("<qq", batch.buffer, node + 16 * number)
        if column_rows != rows:
            raise ValueError("a batch's columns differ in length")
        if not 0 <= nulls <= rows:
            raise ValueError(f"{name} has {nulls} nulls in {rows} rows")
        bits, bits_size, values, values_size = unpack_from("<qqqq", batch.buffer, buffer + 32 * number)
        if values_size < rows * np.dtype(dtype).itemsize or (nulls and bits_size < (rows + 7) // 8):
            raise ValueError("a batch is shorter than its columns")
        column = _taken(name, np.empty(0, dtype) if rows == 0 else np.frombuffer(part, dtype, rows, values))
        if nulls:
            present = np.unpackbits(np.frombuffer(part, np.uint8, (rows + 7) // 8, bits), bitorder="little")[:rows]
            column[present == 0] = np.datetime64("NaT") if "M8" in dtype else np.nan
        if "M8" in dtype and np.isnat(column).any():
            raise ValueError(f"{name} is null")
        columns.append(column)
    return columns


def _taken(name: str, column: Array) -> Array:
    """Return a copy of a column in microseconds or float64."""
    with np.errstate(invalid="ignore"):  # a 32-bit NaN may be a signalling one
        taken = column.astype(_taken_as(column.dtype.str))
    if column.dtype.kind == "M" and column.dtype != taken.dtype:
        # Beyond the range of microseconds, NumPy wraps a moment around to another day.
        days, taken_days = column.astype("M8[D]"), taken.astype("M8[D]")
        if ((days != taken_days) & ~np.isnat(column)).any():
            raise ValueError(f"{name} holds a timestamp out of range")
    return taken
