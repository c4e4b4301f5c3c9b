"""A server on real sockets that answers as a broken one would."""

import json
import re
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

RESET = object()
HANG = object()


def http(status=200, body=b"[]", content_type="application/json", length=None, headers=()):
    """An HTTP/1.1 answer; a length larger than the body makes it truncated."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} x", f"Content-Type: {content_type}", f"Content-Length: {length or len(body)}"]
    return "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode() + body


class Faulty:
    """Answers each connection with the next given answer, and all further ones with the last.

    An answer is bytes, or a function that yields pieces, perhaps without end. The routes /columns and /period answer
    404, unless every_route is set.
    """

    def __init__(self, listener, answers, every_route):
        host, port = listener.getsockname()
        self.url = f"{'https' if isinstance(listener, ssl.SSLSocket) else 'http'}://{host}:{port}"
        self.requests = []
        self.headers = {}
        self._listener, self._answers, self._every_route = listener, answers, every_route
        self._open = []
        self.pause_s = 0
        self._closed = threading.Event()

    def serve(self):
        number = 0
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            sent = b""
            # A client that gives up early resets the connection.
            with suppress(ConnectionResetError):
                sent = connection.recv(65536)
            request, *headers = sent.decode(errors="replace").split("\r\n")
            if re.match("GET [^? ]*/(columns|period)[? ]", request) and not self._every_route:
                connection.sendall(http(404))
                connection.close()
                continue
            answer = self._answers[min(number, len(self._answers) - 1)]
            number += 1
            self.requests.append(request)
            self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
            if answer is HANG:
                self._open.append(connection)
                continue
            if answer is RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif self.pause_s:
                self._drip(connection, answer)
            else:
                # A client that refuses an answer does not read all of it.
                with suppress(OSError):
                    for piece in [answer] if isinstance(answer, bytes) else answer():
                        connection.sendall(piece)
            connection.close()

    def _drip(self, connection, answer):
        """Send the answer byte by byte, with a pause after each, until the client disconnects."""
        with suppress(OSError):
            for number in range(len(answer)):
                connection.sendall(answer[number : number + 1])
                self._closed.wait(self.pause_s)

    def close(self):
        for connection in self._open:
            connection.close()


def certified(folder):
    """Make a certificate for 127.0.0.2, which no list of loopback names holds; return its file and a server's TLS."""
    key, certificate = folder / "key", folder / "certificate"
    names = ["-subj", "/CN=127.0.0.2", "-addext", "subjectAltName=IP:127.0.0.2"]
    how = ["-x509", "-newkey", "rsa:2048", "-nodes", *names, "-keyout", key, "-out", certificate]
    subprocess.run(["openssl", "req", *how], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return certificate, context


@contextmanager
def answering(*answers, every_route=False, tls: ssl.SSLContext | None = None) -> Iterator[Faulty]:
    with (
        socket.create_server(("127.0.0.2" if tls else "127.0.0.1", 0)) as plain,
        tls.wrap_socket(plain, server_side=True) if tls else plain as listener,
    ):
        server = Faulty(listener, answers, every_route)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            server.close()


@contextmanager
def stalling(target, at: bytes) -> Iterator[int]:
    """Serve a proxy for target, (host, port); it drops what a client sends from these bytes on. Yield its port."""
    ends = []

    def forward(source, sink, watched):
        while data := received(source):
            if watched and at in data:
                return
            with suppress(OSError):
                sink.sendall(data)

    def accept(listener):
        while client := accepted(listener):
            server = socket.create_connection(target)
            ends.extend([client, server])
            for pair in ((client, server, True), (server, client, False)):
                threading.Thread(target=forward, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=[listener])
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for end in ends:
                end.close()


def received(connection):
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def accepted(listener):
    try:
        return listener.accept()[0]
    except OSError:
        return None
