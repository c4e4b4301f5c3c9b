"""Answers without end, and small answers that decode to much, take bounded memory, measured in fresh processes."""

import struct
import subprocess
import sys
import zlib
from itertools import repeat

import numpy as np
import pytest
from support.answers import MINUTES, arrow_stream, lying
from support.faulty import answering, http
from support.project import SCRIPTS

from fonte import arrow

pytestmark = pytest.mark.faults

MIB = 2**20
JSON = "application/json"
FETCH = """
import sys
from datetime import datetime
from pathlib import Path
from fonte import client
url, client.MAX_JSON_BYTES, client.PATIENCE_S = sys.argv[1], int(sys.argv[2]), 0
try:
    client.fetch(url, datetime(2024, 5, 20), datetime(2024, 5, 21), ["power"])
except client.FonteError as error:
    print(error)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""


def refusal(answer, most_json_bytes=64 * MIB):
    """A fresh process's error for an answer, and its peak memory in MiB."""
    with answering(answer) as server:
        command = [sys.executable, "-c", FETCH, server.url, str(most_json_bytes)]
        run = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, check=True)
    said, peak_mib = run.stdout.splitlines()
    return said, int(peak_mib)


def endless(head, piece, end=b""):
    """An answer that repeats a piece ten thousand times, or until the client disconnects."""

    def pieces():
        yield head
        yield from repeat(piece, 10_000)
        yield end

    return pieces


def chunked(content_type, chunk, *headers):
    head = ["HTTP/1.1 200 OK", f"Content-Type: {content_type}", "Transfer-Encoding: chunked", *headers, "", ""]
    return endless("\r\n".join(head).encode(), b"%x\r\n%s\r\n" % (len(chunk), chunk), b"0\r\n\r\n")


def deflated(piece, times):
    """A gzip stream of a repeated piece; each is flushed, so that one compressed piece can be repeated."""
    compressor = zlib.compressobj(wbits=-15)
    compressor.compress(piece)
    compressor.flush(zlib.Z_FULL_FLUSH)
    again = compressor.compress(piece) + compressor.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + again * times


def messages_of_no_rows():
    """A million messages of twelve bytes each that all point to the same metadata behind them."""
    whole = arrow_stream({"timestamp": MINUTES[:3], "power": np.ones(3)})
    begin = 8 + struct.unpack_from("<i", whole, 4)[0]
    size, table = struct.unpack_from("<iI", whole, begin + 4)
    metadata = whole[begin + 8 : begin + 8 + size]
    empty = metadata.replace(struct.pack("<q", 3), bytes(8)).replace(struct.pack("<q", 48), bytes(8))
    short = (struct.pack("<IiI", 0xFFFFFFFF, 4, 12 * left - 8 + table) for left in range(MIB, 0, -1))
    return whole[:begin] + b"".join(short) + empty


@pytest.mark.parametrize(
    ("answer", "said", "most_mib"),
    [
        (chunked(JSON, b" " * MIB), "more than 64 MiB for one period", 200),
        (chunked(arrow.MEDIA_TYPE, b" " * MIB), "more than 512 MiB for one period", 700),
        (endless(b"HTTP/1.1 404 x\r\n\r\n", b" " * MIB), "HTTP 404 x", 100),
        (endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000), "check FONTE_API_URL", 100),
        (endless(b"HTTP/1.1 200 OK\r\n", b"X" * 1000), "check FONTE_API_URL", 100),
        (
            endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 1000),
            "check FONTE_API_URL",
            100,
        ),
        (endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x" * 1000), "check FONTE_API_URL", 100),
        (
            http(body=deflated(deflated(bytes(MIB), 1000), 1), headers=["Content-Encoding: gzip, gzip"]),
            "the Content-Encoding gzip, gzip",
            100,
        ),
        (http(body=messages_of_no_rows(), content_type=arrow.MEDIA_TYPE), "no Arrow stream that can be used", 200),
        (http(body=lying({77: 10**9}), content_type=arrow.MEDIA_TYPE), "a batch is shorter than its columns", 100),
    ],
    ids=[
        *("json without end", "arrow without end", "error without end", "headers without end", "a header without end"),
        *("trailers without end", "a chunk's extension without end", "gzip in gzip"),
        *("messages of nothing", "a billion rows"),
    ],
)
def test_oversized_answers_are_refused_within_the_memory_limit(answer, said, most_mib):
    refused, peak_mib = refusal(answer)
    assert said in refused
    assert peak_mib < most_mib


@pytest.mark.parametrize("item", [b"[]", b"{}", b"1e5"])
def test_decoded_json_takes_at_most_thirty_times_its_bytes(item):
    most = 4 * MIB
    body = b"[" + b",".join([item] * (most // (len(item) + 1) - 1)) + b"]"
    refused, peak_mib = refusal(http(body=body), most)
    assert "instead of a record with power, timestamp" in refused
    assert peak_mib < 60 + 30 * 4
