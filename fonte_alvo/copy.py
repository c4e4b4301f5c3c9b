"""COPY: whole columns to bytes of the wire format and back, without a Python object per row.

Binary format: PostgreSQL documentation, COPY, "Binary Format".
"""

import io
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine

from fonte_alvo.engine import cut, send

_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_EPOCH = np.datetime64("2000-01-01", "us")
_WIRE_TYPES = {"datetime64[us]": ">i8", "int32": ">i4", "float64": ">f8"}
# psycopg2 calls write() once per row: large buffers save system calls.
_CHUNK_BYTES = 256 * 1024


def copy_in(connection: Connection, table: str, columns: Mapping[str, npt.NDArray[Any]]) -> int:
    """Append rows to a table and return their number; columns maps names to arrays of one length.

    `datetime64[us]` (UTC) goes into timestamptz, int32 into integer, float64 into double precision.
    """
    command = f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT binary)"
    return send(connection, command, io.BytesIO(encode(columns)))


def encode(columns: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Encode columns of equal length without NULL as a binary COPY stream."""
    rows = np.empty(len(next(iter(columns.values()))), dtype=_row({name: str(v.dtype) for name, v in columns.items()}))
    rows["fields"] = len(columns)
    for name, values in columns.items():
        rows[f"{name} bytes"] = values.itemsize
        rows[name] = values if values.dtype.kind != "M" else (values - _EPOCH).view(np.int64)
    return _SIGNATURE + rows.tobytes() + b"\xff\xff"


def decode(chunks: Iterator[bytes], types: Mapping[str, str]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Decode a binary COPY stream without NULL, piece by piece, into columns; types maps their names to dtypes.

    Raises ValueError if a row has other fields.
    """
    row = _row(types)
    rest = b""
    for chunk in chunks:
        # No row begins like the header of the stream.
        rest = rest + chunk if rest else chunk.removeprefix(_SIGNATURE)
        count = len(rest) // row.itemsize
        rows, rest = np.frombuffer(rest, row, count), rest[count * row.itemsize :]
        if (rows["fields"] != len(types)).any() or any((rows[f"{n} bytes"] != rows[n].itemsize).any() for n in types):
            raise ValueError(f"COPY sent other fields than {', '.join(types)}")
        if count:
            yield {name: _native(rows[name], dtype) for name, dtype in types.items()}


def _row(types: Mapping[str, str]) -> np.dtype[np.void]:
    fields = [("fields", ">i2")]
    for name, dtype in types.items():
        fields += [(f"{name} bytes", ">i4"), (name, _WIRE_TYPES[dtype])]
    return np.dtype(fields)


def _native(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if dtype == "datetime64[us]":
        return _EPOCH + values.astype(np.int64).view("timedelta64[us]")
    return values.astype(dtype)


class CopyOut:
    """The rows that COPY returns for a query, read while the server still produces them.

    A thread copies into a pipe: a slow reader slows the server down, and memory does not grow with the answer.
    """

    def __init__(self, engine: Engine, query: str, parameters: Mapping[str, Any], options: str) -> None:
        """Start the query, a SELECT with psycopg2's parameters; options are COPY's, such as `FORMAT csv`.

        Raises OSError or RuntimeError if the machine has no descriptor or thread left; nothing remains open then.
        """
        reader, writer = os.pipe()
        self._pipe = os.fdopen(reader, "rb", buffering=_CHUNK_BYTES)
        self._reading, self._connected = threading.Lock(), threading.Lock()
        self._raw: Any = None
        self._closed = False
        self._error: BaseException | None = None
        asked = (engine, f"COPY ({query}) TO STDOUT ({options})", parameters, writer)
        try:
            threading.Thread(target=self._copy, args=asked, daemon=True).start()
        except RuntimeError:
            os.close(writer)
            self._pipe.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        """Yield pieces of some 256 KiB. Raises SQLAlchemyError or psycopg2.Error."""
        while chunk := self._read():
            yield chunk

    def close(self) -> None:
        """Stop at any point, the server's query too, without waiting and without another thread."""
        with self._connected:
            self._closed = True
            if self._raw is not None:
                cut(self._raw)
        self._close_pipe()

    def _close_pipe(self) -> None:
        """Close the pipe, which ends the writing thread; a reader in the pipe closes it itself."""
        if self._reading.acquire(blocking=False):
            self._pipe.close()
            self._reading.release()

    def _read(self) -> bytes:
        with self._reading:
            chunk = b"" if self._pipe.closed else self._pipe.read(_CHUNK_BYTES)
        # After the lock, because a close() during the read left the pipe to this reader.
        if not chunk or self._closed:
            self._close_pipe()
        # Raise instead of sending the last piece of a failed answer: no cut answer may look whole.
        if len(chunk) < _CHUNK_BYTES and self._error is not None:
            raise self._error
        return chunk

    def _copy(self, engine: Engine, command: str, parameters: Mapping[str, Any], writer: int) -> None:
        try:
            with os.fdopen(writer, "wb", buffering=_CHUNK_BYTES) as pipe:
                try:
                    self._copy_into(pipe, engine, command, parameters)
                except BaseException as error:
                    self._error = error
        except BrokenPipeError:
            pass  # the reader closed the pipe: nobody wants the rest

    def _copy_into(self, pipe: BinaryIO, engine: Engine, command: str, parameters: Mapping[str, Any]) -> None:
        with engine.connect() as connection:
            # Never committed: a COMMIT that fails would break an answer that is whole.
            connection.begin()
            cursor = connection.connection.cursor()
            with self._connected:
                if self._closed:
                    return
                self._raw = connection.connection.driver_connection
            try:
                cursor.copy_expert(cursor.mogrify(command, parameters), pipe)
            finally:
                with self._connected:
                    self._raw = None
                    # The rollback over a lost connection would fail, and hide why it was lost.
                    if self._closed or cursor.connection.closed:
                        connection.invalidate()
