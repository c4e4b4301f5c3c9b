"""AWS Lambda on this machine, for one function.

Callers use Lambda's Invoke API. awslambdaric, AWS's runtime for Python functions, uses the Runtime API and executes the
handler in a separate process. One invocation runs at a time.
"""

import base64
import json
import os
import queue
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import DEVNULL, STDOUT, Popen
from typing import NamedTuple

FUNCTION = "adventureworks-load"
_RUNTIME = "/2018-06-01/runtime/"


class Answer(NamedTuple):
    """The result of an invocation; log: the last 4 KB of the function's output."""

    body: bytes
    failed: bool = False
    log: bytes = b""


class Invocation(NamedTuple):
    """An event and its future answer; deadline_ms: since 1970."""

    request_id: str
    body: bytes
    deadline_ms: str
    answer: "Future[Answer]"


class Sandbox:
    """The process that executes the handler; it starts with the first event, and again after it died."""

    def __init__(self, handler: str, environment: Mapping[str, str], timeout_s: float) -> None:
        """Start nothing yet. handler: module.function; environment: includes AWS_LAMBDA_RUNTIME_API."""
        self._command = [sys.executable, "-m", "awslambdaric", handler]
        self._environment, self._timeout_s = dict(environment), timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._turn = threading.Lock()
        self.events: queue.SimpleQueue[Invocation] = queue.SimpleQueue()
        self.process: Popen[bytes] | None = None
        self.current: Invocation | None = None

    def invoke(self, event: bytes) -> Answer:
        """Execute the handler; returns its result or error in Lambda's format."""
        with self._turn:
            start = os.fstat(self._log.fileno()).st_size
            request_id, deadline = str(uuid.uuid4()), time.time() + self._timeout_s
            self.current = Invocation(request_id, event, str(round(deadline * 1000)), Future())
            answer = self.current.answer
            if self.process is None or self.process.poll() is not None:
                self._start()
            self.events.put(self.current)
            while not wait([answer], timeout=0.05).done:
                if time.time() > deadline:
                    answer.set_result(error("Sandbox.Timedout", f"Task timed out after {self._timeout_s:.2f} seconds"))
                    self.stop()
                elif self.process and (code := self.process.poll()) is not None:
                    answer.set_result(error("Runtime.ExitError", f"RequestId: {request_id} Runtime exited with {code}"))
            return answer.result()._replace(log=os.pread(self._log.fileno(), 2**20, start)[-4096:])

    def stop(self) -> None:
        """End the process."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def _start(self) -> None:
        self.events = queue.SimpleQueue()
        self.process = Popen(self._command, env=self._environment, stdin=DEVNULL, stdout=self._log, stderr=STDOUT)


def error(kind: str, message: str) -> Answer:
    """Return an error in Lambda's format."""
    return Answer(json.dumps({"errorType": kind, "errorMessage": message}).encode(), failed=True)


class _Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sandbox: Sandbox

    def do_GET(self) -> None:
        if self.path != f"{_RUNTIME}invocation/next":
            return self._answer(404, b"{}")
        event = self.sandbox.events.get()
        arn = f"arn:aws:lambda:us-east-1:000000000000:function:{FUNCTION}"
        context = {"Aws-Request-Id": event.request_id, "Deadline-Ms": event.deadline_ms, "Invoked-Function-Arn": arn}
        return self._answer(200, event.body, {f"Lambda-Runtime-{name}": value for name, value in context.items()})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == f"/2015-03-31/functions/{FUNCTION}/invocations":
            answer = self.sandbox.invoke(body or b"{}")
            failed = {"X-Amz-Function-Error": "Unhandled"} if answer.failed else {}
            tail = {"X-Amz-Log-Result": base64.b64encode(answer.log).decode()} if self.headers["X-Amz-Log-Type"] else {}
            self._answer(200, answer.body, {"X-Amz-Executed-Version": "$LATEST", **failed, **tail})
        elif self.path.startswith(_RUNTIME) and (current := self.sandbox.current):
            kind = self.path.rpartition("/")[2]
            if kind == "error" or current.request_id in self.path:
                current.answer.set_result(Answer(body, failed=kind == "error"))
            self._answer(202, b"{}")
        else:
            self._answer(404, b'{"Message": "Function not found"}', {"X-Amzn-ErrorType": "ResourceNotFoundException"})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: the function's output is the log."""


@contextmanager
def served(handler: str, environment: Mapping[str, str], timeout_s: float) -> Iterator[tuple[str, Sandbox]]:
    """Serve the function; yields the URL of the Invoke API, and the sandbox."""

    class Api(_Api):
        """The API with the sandbox of this service."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.daemon_threads = True
        place = f"127.0.0.1:{server.server_port}"
        mine = {"AWS_LAMBDA_RUNTIME_API": place, "AWS_LAMBDA_FUNCTION_NAME": FUNCTION}
        Api.sandbox = sandbox = Sandbox(handler, {**environment, **mine}, timeout_s)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{place}", sandbox
        finally:
            sandbox.stop()
            server.shutdown()
