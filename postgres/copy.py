"""COPY in its binary format: whole columns become the wire's bytes without a Python object per row.

Format: PostgreSQL documentation, COPY, "Binary Format".
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_EPOCH = np.datetime64("2000-01-01", "us")
# psycopg2 writes to the socket once per read: large reads make few writes.
_READ_BYTES = 256 * 1024


def copy_in(connection: Connection, table: str, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Append rows to a table; columns maps names to arrays of one length.

    `datetime64[us]` (UTC) goes into timestamptz, int32 into integer, float64 into double precision.
    """
    names = ", ".join(columns)
    cursor = connection.connection.cursor()
    cursor.copy_expert(
        f"COPY {table} ({names}) FROM STDIN (FORMAT binary)", io.BytesIO(encode(columns)), size=_READ_BYTES
    )


def encode(columns: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Encode columns of equal length without NULL as a binary COPY stream."""
    wire = {name: _big_endian(values) for name, values in columns.items()}
    fields = [("fields", ">i2")]
    for name, values in wire.items():
        fields += [(f"{name} bytes", ">i4"), (name, values.dtype.str)]
    rows = np.empty(len(next(iter(wire.values()))), dtype=fields)
    rows["fields"] = len(wire)
    for name, values in wire.items():
        rows[f"{name} bytes"] = values.itemsize
        rows[name] = values
    return _SIGNATURE + rows.tobytes() + b"\xff\xff"


def _big_endian(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind == "M":
        values = (values - _EPOCH).astype(np.int64)
    return values.astype(values.dtype.newbyteorder(">"))
