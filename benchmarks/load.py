"""Request days and the health of a connector as fast as it answers, beside one reader of a byte a second.

Run `python benchmarks/load.py URL`; without a URL it starts `uvicorn fonte.connector:app` over FONTE_DATABASE_URL, and
stops it at the end. Exit code 1 if any answer was wrong.
"""

import argparse
import asyncio
import socket
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

DAY_S = 86_400
ARROW = "application/vnd.apache.arrow.stream"


@contextmanager
def connector():
    """Start a connector in another process; yield its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "fonte.connector:app", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, cwd=Path(__file__).parent.parent) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


async def answering(client):
    while True:
        try:
            return (await client.get("/period")).raise_for_status().json()
        except httpx.ConnectError:
            await asyncio.sleep(0.1)


def questions(period):
    """Yield the requests in turn: each day in Arrow and in JSON, and the health in between."""
    first, last = (np.datetime64(period[name].removesuffix("Z"), "D") for name in ("first_timestamp", "last_timestamp"))
    while True:
        for day in np.arange(first, last):
            bounds = {"start_timestamp": str(day), "end_timestamp": str(day + 1)}
            for kind, accept in (("a day in Arrow", ARROW), ("a day in JSON", "application/json")):
                yield kind, "/data", bounds, {"Accept": accept}
                yield "health", "/health", {}, {}


class Load:
    """Counts requests and failures, and keeps the times of the answers."""

    def __init__(self):
        self.seconds = defaultdict(list)
        self.errors = []
        self.sizes = {}

    async def ask(self, client, asked, until):
        while time.monotonic() < until:
            kind, path, parameters, headers = next(asked)
            began = time.perf_counter()
            try:
                answer = await client.get(path, params=parameters, headers=headers)
                # A repeated request has the same whole answer.
                if len(answer.content) != self.sizes.setdefault((kind, *parameters.values()), len(answer.content)):
                    self.errors.append(f"{kind}: {len(answer.content)} bytes")
                if answer.status_code != 200:
                    self.errors.append(f"{kind}: {answer.status_code} {answer.text:.200}")
            except httpx.HTTPError as error:
                self.errors.append(f"{kind}: {error!r}")
            self.seconds[kind].append(time.perf_counter() - began)

    def report(self, seconds):
        for kind, taken in sorted(self.seconds.items()):
            p50, p99, slowest = np.quantile(taken, [0.5, 0.99, 1]) * 1000
            times = f"p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  max {slowest:6.1f} ms"
            print(f"{kind:15} {len(taken):7,} requests  {times}")
        total = sum(map(len, self.seconds.values()))
        print(f"{total:,} requests in {seconds} s, {total / seconds:,.0f} a second, {len(self.errors)} errors")
        print(*self.errors[:10], sep="\n", end="")


async def read_slowly(base_url):
    """Request all data, and read a byte a second."""
    url = httpx.URL(base_url)
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
    writer.write(b"GET /data?format=json HTTP/1.1\r\nHost: fonte\r\n\r\n")
    while await reader.read(1):
        await asyncio.sleep(1)


async def load(base_url, seconds, workers):
    result = Load()
    async with httpx.AsyncClient(base_url=base_url, timeout=30, trust_env=False) as client:
        asked = questions(await answering(client))
        slow = asyncio.create_task(read_slowly(base_url))
        until = time.monotonic() + seconds
        await asyncio.gather(*(result.ask(client, asked, until) for _ in range(workers)))
        if slow.done():
            result.errors.append("the slow reader was disconnected")
        slow.cancel()
    result.report(seconds)
    return 1 if result.errors else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="URL of a running connector (default: start one)")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=8, help="requests at once (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.url:
        return asyncio.run(load(arguments.url, arguments.seconds, arguments.workers))
    with connector() as base_url:
        return asyncio.run(load(base_url, arguments.seconds, arguments.workers))


if __name__ == "__main__":
    sys.exit(main())
