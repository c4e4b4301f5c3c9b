"""Proxies that parse PostgreSQL's and HTTP's messages, number every operation, and make chosen ones fail.

An operation is a connection, a message of the frontend together with the backend's whole answer, an HTTP request
together with the head of its answer, or a piece of its body. A kind of fault is two words, an effect and a time:

    reset   the connection is reset        before   the operation is forwarded
    torn    half arrives, then it ends     after    the answer reached the proxy: done, but the client does not know
    hang    nothing arrives any more

Any other effect is one of the script's actions, such as ending the backend: the proxy calls it and continues.
"""

import io
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

NETWORK = ("reset before", "reset after", "torn before", "torn after")
HANG = ("hang before", "hang after")
BLOCK_BYTES = 8192
SSL_REQUEST, STARTUP, CANCEL_REQUEST = 80877103, 196608, 80877102
# Backend answers that do not end with ReadyForQuery: the start of COPY, and the steps of authentication.
COPY_IN, AUTHENTICATION, READY, BACKEND_KEY = b"G", b"R", b"Z", b"K"
AUTHENTICATION_STEPS = (3, 5, 10, 11)
# Messages of libpq that have no answer.
COPY_DATA, TERMINATE = b"d", b"X"


class Reset(Exception):
    """The script resets a connection."""


class Ended(Exception):
    """A connection ended, by itself or by the script."""


class Script:
    """Numbers the operations of the proxies that share it, from 1, and says which of them fail, and how."""

    def __init__(self):
        self.actions = {}
        self._lock = threading.Lock()
        self._hung = set()
        self.begin({})

    def begin(self, faults, lasting=False):
        """Restart the count. faults: {operation's number: kind}; lasting: the last one strikes all later ones too."""
        with self._lock:
            self._faults, self._lasting = dict(faults), lasting
            self.operations, self.struck = [], []

    def heal(self):
        """Make no more operations fail, and end hanging connections."""
        with self._lock:
            self._faults = {}
            for connection in self._hung:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def strike(self, label, backend):
        """Count an operation; return its fault in words, or "". Without a backend, an action becomes a reset."""
        with self._lock:
            self.operations.append(label)
            number = len(self.operations)
            last = max(self._faults, default=0)
            kind = self._faults.get(last if self._lasting and number > last else number, "")
            if backend is None and kind.partition(" ")[0] in self.actions:
                kind = f"reset {kind.partition(' ')[2]}"
            return kind and f"{kind} {number} {label}"

    def hang(self, client):
        """Wait until the client or the script ends the connection."""
        with self._lock:
            if not self._faults:
                return
            self._hung.add(client)
        with suppress(OSError):
            while client.recv(65536):
                pass
        with self._lock:
            self._hung.remove(client)


class Link:
    """A client's connection to the proxy and the proxy's to the server, in lock step."""

    def __init__(self, name, script, client, server):
        self.name, self.script, self.client, self.server = name, script, client, server
        self.from_client, self.from_server = client.makefile("rb"), server.makefile("rb")
        self.backend = None
        self.server_ended = False

    def close(self):
        for closed in (self.from_client, self.from_server, self.client, self.server):
            closed.close()

    def operation(self, label, message=b"", answer=lambda: b""):
        fault = self.script.strike(f"{self.name} {label}", self.backend)
        if " before " in fault:
            self._fail(fault, self.server, message)
        self.server.sendall(message)
        answered = answer()
        if " after " in fault and not self.server_ended:
            self._fail(fault, self.client, answered)
        self.client.sendall(answered)
        if self.server_ended:
            raise Ended
        return answered

    def _fail(self, fault, receiver, message):
        self.script.struck.append(fault)
        effect = fault.split()[0]
        if effect == "reset":
            raise Reset
        if effect == "torn":
            receiver.sendall(message[: len(message) // 2])
            raise Ended
        if effect == "hang":
            self.script.hang(self.client)
            raise Ended
        self.script.actions[effect](self.backend)

    def exactly(self, file, size):
        data = file.read(size)
        if len(data) < size:
            raise Ended
        return data

    def answered(self, pieces):
        """Join an answer; if the server ends midway, return the part that arrived."""
        answer = bytearray()
        try:
            for piece in pieces:
                answer += piece
        except (Ended, OSError):
            self.server_ended = True
        return bytes(answer)


class PostgresLink(Link):
    def carry(self):
        self.operation("connect")
        self._start()
        while True:
            kind = self.exactly(self.from_client, 1)
            body = self._body(self.from_client)
            answer = self._nothing if kind in (COPY_DATA, TERMINATE) else self._answer
            self.operation(self._label(kind, body[4:]), kind + body, answer)
            if kind == TERMINATE:
                return

    def _start(self):
        while True:
            message = self._body(self.from_client)
            (code,) = struct.unpack("!i", message[4:8])
            if code == CANCEL_REQUEST:
                self.operation("CancelRequest", message, self._rest)
                raise Ended
            if code == STARTUP:
                self.operation("StartupMessage", message, self._answer)
                return
            # The proxy cannot read encrypted messages.
            self.operation("SSLRequest" if code == SSL_REQUEST else "GSSENCRequest", answer=lambda: b"N")

    def _body(self, file):
        length = self.exactly(file, 4)
        return length + self.exactly(file, struct.unpack("!i", length)[0] - 4)

    def _label(self, kind, body):
        if kind != b"Q":
            return {b"p": "password", COPY_DATA: "CopyData", b"c": "CopyDone", TERMINATE: "Terminate"}[kind]
        return " ".join(body.rstrip(b"\0").decode().split())[:40]

    def _nothing(self):
        return b""

    def _answer(self):
        return self.answered(self._messages())

    def _rest(self):
        return self.answered(iter([self.from_server.read()]))

    def _messages(self):
        kind = b""
        while kind not in (READY, COPY_IN):
            kind = self.exactly(self.from_server, 1)
            body = self._body(self.from_server)
            yield kind + body
            if kind == BACKEND_KEY:
                (self.backend,) = struct.unpack("!i", body[4:8])
            if kind == AUTHENTICATION and struct.unpack("!i", body[4:8])[0] in AUTHENTICATION_STEPS:
                return


class HttpLink(Link):
    """Handles GET requests, and answers with a chunked body or a Content-Length."""

    def carry(self):
        self.operation("connect")
        while True:
            request = b"".join(self._head(self.from_client))
            head = self.operation("request", request, lambda: self.answered(self._head(self.from_server)))
            body = io.BytesIO(self.answered(self._pieces(head.lower())))
            while body.tell() < len(body.getbuffer()):
                self.operation("body", answer=partial(body.read, BLOCK_BYTES))
            if self.server_ended:
                raise Ended

    def _head(self, file):
        line = b""
        while line != b"\r\n":
            line = file.readline()
            if not line:
                raise Ended
            yield line

    def _pieces(self, head):
        if b"transfer-encoding: chunked" not in head:
            yield self.exactly(self.from_server, int(head.partition(b"content-length: ")[2].split()[0]))
            return
        size = -1
        while size != 0:
            line = self.from_server.readline()
            if not line:
                raise Ended
            size = int(line, 16)
            yield line + self.exactly(self.from_server, size + 2)


class Proxy:
    def __init__(self, listener, link, upstream):
        self.port = listener.getsockname()[1]
        self._listener, self._link, self._upstream = listener, link, upstream
        self._open = set()
        self._threads = []

    def serve(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._carry, args=(client,))
            thread.start()
            self._threads = [*(earlier for earlier in self._threads if earlier.is_alive()), thread]

    def _carry(self, client):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            server = socket.create_connection(self._upstream)
        except OSError:
            client.close()
            return
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = self._link(client, server)
        self._open.add(link)
        try:
            link.carry()
        except Reset:
            for connection in (client, server):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (Ended, OSError):
            pass
        finally:
            self._open.remove(link)
            link.close()

    def settle(self):
        """Wait until all connections have ended and their last messages are processed."""
        for thread in self._threads:
            thread.join()

    def cut(self):
        """End all connections."""
        for link in list(self._open):
            for connection in (link.client, link.server):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.settle()


@contextmanager
def proxied(link, host, port) -> Iterator[Proxy]:
    """Serve a proxy on a free loopback port. link: makes a Link of a client's socket and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(listener, link, (host, port))
        thread = threading.Thread(target=proxy.serve)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            proxy.cut()
