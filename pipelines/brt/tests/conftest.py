"""A real PostgreSQL, a real HTTP server with scripted answers, and the real captures."""

import csv
import gzip
import json
import lzma
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

from brt import capture, pipeline, stand_in
from fonte_alvo import embedded, engine

DATA = Path(__file__).with_name("data")
PROJECT = Path(__file__).resolve().parent.parent
FIRST_MINUTE = datetime(2023, 7, 26, 1, 53, 25, 250_000, tzinfo=UTC)
ANSWERS = {file.name: lzma.decompress(file.read_bytes()) for file in DATA.glob("answer_*.json.xz")}


def real_captures():
    """The ten real captures, a minute apart."""
    return [
        capture.read(body, FIRST_MINUTE + timedelta(minutes=minute)) for minute, body in enumerate(stand_in.captures())
    ]


def expected_positions():
    """The rows of the view after the ten real captures: {id: (latitude, longitude, speed, ms, line, ...)}."""
    with (DATA / "expected_last_position.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["codigo"]: (
                float(row["latitude"]),
                float(row["longitude"]),
                float(row["velocidade"]),
                int(row["dataHora"]),
                *(row[name] for name in ("linha", "sentido", "trajeto")),
            )
            for row in csv.DictReader(file)
        }


def vehicle(**changed):
    """A vehicle as the API sends it."""
    return {
        "codigo": "901008",
        "placa": "",
        "linha": "40",
        "latitude": -23.000894,
        "longitude": -43.366191,
        "dataHora": 1690333107000,
        "velocidade": 0,
        "id_migracao_trajeto": "",
        "sentido": "volta",
        "trajeto": "40 - ALVORADA X PAULO DA PORTELA (EXPRESSO) [VOLTA]",
        "hodometro": 22782.6,
        "direcao": 86,
    } | changed


def captured(*vehicles, after_minutes=0.0):
    """A capture of these vehicles."""
    return capture.read(json.dumps(vehicles).encode(), FIRST_MINUTE + timedelta(minutes=after_minutes))


def counts(report):
    """The counts of a load's report: files loaded and skipped, signals, rejected lines."""
    return (report.loaded, report.skipped, report.signals, report.rejected)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> URL:
    """TEST_POSTGRES_URL, or else a superuser's URL of an embedded server."""
    if given := os.environ.get("TEST_POSTGRES_URL"):
        return engine.parse(given)
    return embedded.url("postgres", tmp_path_factory.mktemp("postgres") / "embedded")


@pytest.fixture
def pool(server, monkeypatch, tmp_path):
    """An engine of an empty database; sets BRT_DATABASE_URL and BRT_FOLDER."""
    name = f"brt_test_{uuid.uuid4().hex}"
    administrator = create_engine(server, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = server.set(database=name)
    monkeypatch.setenv("BRT_DATABASE_URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("BRT_FOLDER", str(tmp_path / "state"))
    pool = engine.create(url, "test")
    yield pool
    pool.dispose()
    with administrator.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    administrator.dispose()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder for captured files."""
    return tmp_path / "captures"


@pytest.fixture
def ten_captures(pool):
    """Put the ten real captures into the pipeline's folder; returns the engine of its database."""
    for each in real_captures():
        capture.append(pipeline.captures_folder(), each, 60)
    return pool


class Api:
    """Answers from a script, and repeats the last answer; counts the requests."""

    def __init__(self) -> None:
        self.script = []
        self.asked = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                status, body, claimed_bytes = api.script[min(api.asked, len(api.script) - 1)]
                api.asked += 1
                self.send_response(status)
                self.send_header("Content-Length", str(claimed_bytes or len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/gps/brt"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answers(self, *bodies, status=200, claimed_bytes=None):
        self.script += [(status, body, claimed_bytes) for body in bodies]


@pytest.fixture
def drip(monkeypatch):
    """An API whose header, or compressed body, never ends; call it with the one for a URL."""
    monkeypatch.setattr(capture, "BACKOFF_S", 0.0)
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def answer(client, beginning, piece):
        with client, suppress(OSError):
            client.sendall(beginning)
            while not ended.wait(0.05):
                client.sendall(piece)

    def serve(part):
        header = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n"
        sent = (header + b"X: ", b"x") if part == "header" else (header + b"\r\n", gzip.compress(b""))
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0], *sent), daemon=True).start()

    def begin(part):
        threading.Thread(target=serve, args=(part,), daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/gps/brt"

    yield begin
    ended.set()
    server.close()


@pytest.fixture
def api(monkeypatch) -> Iterator[Api]:
    """A scripted API; sets BRT_API_URL, and retries do not wait."""
    monkeypatch.setattr(capture, "BACKOFF_S", 0.0)
    api = Api()
    monkeypatch.setenv("BRT_API_URL", api.url)
    yield api
    api.server.shutdown()
    api.server.server_close()
