"""Answers as connectors send them, and the client's promise about every answer that it accepts."""

import io
import json
import struct
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow

START = datetime(2024, 5, 20, tzinfo=UTC)
END = START + timedelta(days=1)
MINUTES = np.datetime64("2024-05-20", "us") + np.arange(250) * np.timedelta64(1, "m")


def arrow_stream(columns, rows_a_batch=100, **options):
    """An Arrow stream as pyarrow writes it."""
    table = pyarrow.table(columns)
    written = io.BytesIO()
    with pyarrow.ipc.new_stream(written, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as stream:
        stream.write_table(table, max_chunksize=rows_a_batch)
    return written.getvalue()


def arrow_streams():
    """Small streams of every type that the client accepts, and some that it refuses."""
    power = [None, float("nan"), 2.5]
    for number in (pyarrow.float64(), pyarrow.float32(), pyarrow.int64(), pyarrow.uint32()):
        for resolution in ("s", "ms", "us", "ns"):
            moments = MINUTES[:3].astype(f"datetime64[{resolution}]")
            values = power if pyarrow.types.is_floating(number) else [1, None, 3]
            yield arrow_stream({"timestamp": moments, "power": pyarrow.array(values, number)}, rows_a_batch=2)
    yield arrow_stream({"power": power, "timestamp": MINUTES[:3]}, compression="lz4")
    yield arrow_stream({"timestamp": MINUTES[:0], "power": pyarrow.array(["a"][:0]).dictionary_encode()})


def lying(lie):
    """A stream of 77 rows in which some lengths are false."""
    body = arrow_stream({"timestamp": MINUTES[:77], "power": np.ones(77)})
    for true, false in lie.items():
        assert struct.pack("<q", true) in body
        body = body.replace(struct.pack("<q", true), struct.pack("<q", false))
    return body


def json_bodies():
    """Lists of records in the encodings and spellings that JSON allows."""
    records = [{"timestamp": f"2024-05-20T00:0{minute}:00Z", "power": minute / 4} for minute in range(3)]
    for rows in (records, records[:1] * 2, [records[0] | {"power": None}], [records[0] | {"power": float("nan")}], []):
        yield json.dumps(rows).encode()
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        yield json.dumps(records[:1]).encode(encoding)


def assert_promised(timestamps, columns, names):
    """Assert the promises in the docstring of fetch."""
    assert list(columns) == list(names)
    assert timestamps.dtype == np.dtype("M8[us]")
    assert all(values.dtype == np.float64 and values.shape == timestamps.shape for values in columns.values())
    moments = timestamps.tolist()
    assert moments == sorted(set(moments))
    assert all(START <= moment.replace(tzinfo=UTC) < END for moment in moments)
