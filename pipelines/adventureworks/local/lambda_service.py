"""AWS Lambda on this machine, for one function.

Callers find Lambda's Invoke API; awslambdaric, the runtime that AWS itself runs Python functions with, finds the
Runtime API, and executes the handler in a process of its own. One invocation runs at a time.
"""

import base64
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, NamedTuple

FUNCTION = "adventureworks-load"
_RUNTIME = "/2018-06-01/runtime/"
Served = tuple[str, "Sandbox"]


class Answer(NamedTuple):
    """What an invocation came to; log: the last 4 KB of the function's output."""

    body: bytes
    failed: bool = False
    log: bytes = b""


class Invocation(NamedTuple):
    """An event on its way through the function; deadline: seconds since 1970."""

    request_id: str
    event: bytes
    deadline: float
    answer: "Future[Answer]"


class Sandbox:
    """The process that executes the handler: started by the first event, and again after it died."""

    def __init__(self, handler: str, environment: Mapping[str, str], timeout_s: float, log: IO[bytes] | None) -> None:
        """Start nothing yet. handler: module.function; environment: with the Runtime API's; log: for its output."""
        self._command = [sys.executable, "-m", "awslambdaric", handler]
        self._environment, self._timeout_s = environment, timeout_s
        self._log = log or tempfile.TemporaryFile()  # noqa: SIM115
        self._turn = threading.Lock()
        self.events: queue.SimpleQueue[Invocation] = queue.SimpleQueue()
        self.process: subprocess.Popen[bytes] | None = None
        self.current: Invocation | None = None

    def invoke(self, event: bytes) -> Answer:
        """Execute the handler and return its result or its error, as Lambda words both."""
        with self._turn:
            start = os.fstat(self._log.fileno()).st_size
            request_id, deadline = str(uuid.uuid4()), time.time() + self._timeout_s
            self.current = Invocation(request_id, event, deadline, Future())
            if self.process is None:
                self._start()
            self.events.put(self.current)
            try:
                answer = self.current.answer.result(self._timeout_s)
            except TimeoutError:
                self.stop()
                answer = error("Sandbox.Timedout", f"{request_id} Task timed out after {self._timeout_s:.2f} seconds")
            return answer._replace(log=os.pread(self._log.fileno(), 2**20, start)[-4096:])

    def stop(self) -> None:
        """End the process."""
        if process := self.process:
            process.kill()
            process.wait()
            self.process = None

    def _start(self) -> None:
        self.events = queue.SimpleQueue()
        process = subprocess.Popen(
            self._command, env=dict(self._environment), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        self.process = process
        threading.Thread(target=self._wait_for_end, args=[process], daemon=True).start()

    def _wait_for_end(self, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        if self.process is process:
            self.process = None
            if (current := self.current) and not current.answer.done():
                exited = f"RequestId: {current.request_id} Error: Runtime exited with {code}"
                current.answer.set_result(error("Runtime.ExitError", exited))


def error(kind: str, message: str) -> Answer:
    """Word an error as Lambda does."""
    return Answer(json.dumps({"errorType": kind, "errorMessage": message}).encode(), failed=True)


class _Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sandbox: Sandbox

    def do_GET(self) -> None:
        if self.path != f"{_RUNTIME}invocation/next":
            return self._answer(404, b"{}")
        invocation = self.sandbox.events.get()
        arn = f"arn:aws:lambda:us-east-1:000000000000:function:{FUNCTION}"
        deadline_ms = round(invocation.deadline * 1000)
        about = {"Aws-Request-Id": invocation.request_id, "Deadline-Ms": str(deadline_ms), "Invoked-Function-Arn": arn}
        return self._answer(200, invocation.event, {f"Lambda-Runtime-{name}": value for name, value in about.items()})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == f"/2015-03-31/functions/{FUNCTION}/invocations":
            answer = self.sandbox.invoke(body or b"{}")
            failed = {"X-Amz-Function-Error": "Unhandled"} if answer.failed else {}
            tail = {"X-Amz-Log-Result": base64.b64encode(answer.log).decode()} if self.headers["X-Amz-Log-Type"] else {}
            self._answer(200, answer.body, {"X-Amz-Executed-Version": "$LATEST", **failed, **tail})
        elif self.path.startswith(_RUNTIME) and (current := self.sandbox.current):
            what = self.path.rpartition("/")[2]
            if what == "error" or current.request_id in self.path:
                current.answer.set_result(Answer(body, failed=what == "error"))
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
        """Say nothing: the function's own output is the log."""


@contextmanager
def served(handler: str, environment: Mapping[str, str], timeout_s: float, log: IO[bytes] | None) -> Iterator[Served]:
    """Serve the function; gives the URL of the Invoke API, and the sandbox."""

    class Api(_Api):
        """Knows the sandbox of this service."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.daemon_threads = True
        place = f"127.0.0.1:{server.server_port}"
        mine = {"AWS_LAMBDA_RUNTIME_API": place, "AWS_LAMBDA_FUNCTION_NAME": FUNCTION}
        Api.sandbox = sandbox = Sandbox(handler, {**environment, **mine}, timeout_s, log)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{place}", sandbox
        finally:
            sandbox.stop()
            server.shutdown()
            thread.join()
