"""A stand-in for the city's API, for a machine without the internet.

It first answers ten real captures, one per request. After that, the buses that moved in them drive to and fro along
their captured positions, one position per request, with the current time; the other buses stay where they are.
"""

import json
import lzma
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

CAPTURES = Path(__file__).with_name("captures.jsonl.xz")
PATH = "/gps/brt"
WAITS_FOR_NEXT_S = 60


def captures() -> list[bytes]:
    """Return the bodies of the real captures, in their order."""
    return lzma.decompress(CAPTURES.read_bytes()).splitlines()


class Fleet:
    """The buses from answer to answer; several threads may ask."""

    def __init__(self) -> None:
        self._bodies = captures()
        self._asked = 0
        self._lock = threading.Lock()
        self._ways: dict[str, list[dict[str, Any]]] = {}
        for body in self._bodies:
            for vehicle in json.loads(body)["veiculos"]:
                self._ways.setdefault(vehicle["codigo"], []).append(vehicle)

    def answer(self) -> bytes:
        """Return the body of the next answer."""
        with self._lock:
            self._asked += 1
            if self._asked <= len(self._bodies):
                return self._bodies[self._asked - 1]
            step = self._asked - len(self._bodies)
            vehicles = [_moved(way, step, time.time_ns() // 1_000_000) for way in self._ways.values()]
        return json.dumps({"veiculos": vehicles}).encode()


def _moved(way: list[dict[str, Any]], step: int, now_ms: int) -> dict[str, Any]:
    """Return a bus as it is some steps after its last capture; it first drives back."""
    last = way[-1]
    if len({vehicle["dataHora"] for vehicle in way}) == 1:
        return last
    turns, along = divmod(step, len(way) - 1)
    back = turns % 2 == 0
    position = len(way) - 1 - along if back else along
    place = way[position]
    heading = place["direcao"]
    if back and isinstance(heading, int):
        heading = (heading + 180) % 360
    # Real odometers jump back now and then.
    stretches_km = (abs(later["hodometro"] - earlier["hodometro"]) for earlier, later in pairwise(way))
    since_start_km = [0.0, *accumulate(stretches_km)]
    way_km = since_start_km[-1]
    driven_km = turns * way_km + (way_km - since_start_km[position] if back else since_start_km[position])
    return place | {"dataHora": now_ms, "direcao": heading, "hodometro": round(last["hodometro"] + driven_km, 1)}


def serve(port: int) -> None:
    """Answer on a port of 127.0.0.1 until the process ends."""
    fleet = Fleet()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = WAITS_FOR_NEXT_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            body = fleet.answer() if path == PATH else b"{}"
            self.send_response(200 if path in (PATH, "/health") else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
