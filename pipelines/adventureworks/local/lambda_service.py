"""AWS Lambda on this machine, for one function.

Callers find Lambda's Invoke API; awslambdaric, the runtime that AWS itself runs Python functions with, finds the
Runtime API, and executes the handler in a process of its own. One invocation runs at a time.
"""

import json
import os
import queue
import subprocess
import sys
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


class Answer(NamedTuple):
    """What an invocation came to."""

    body: bytes
    failed: bool = False


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
        self._environment, self._timeout_s, self._log = environment, timeout_s, log
        self._turn = threading.Lock()
        self._events: queue.SimpleQueue[Invocation] = queue.SimpleQueue()
        self.process: subprocess.Popen[bytes] | None = None
        self.current: Invocation | None = None

    def invoke(self, event: bytes) -> Answer:
        """Execute the handler and return its result or its error, as Lambda words both."""
        with self._turn:
            request_id, deadline = str(uuid.uuid4()), time.time() + self._timeout_s
            self.current = Invocation(request_id, event, deadline, Future())
            if self.process is None:
                self._start()
            self._events.put(self.current)
            try:
                return self.current.answer.result(self._timeout_s)
            except TimeoutError:
                self.stop()
                said = f"{request_id} Task timed out after {self._timeout_s:.2f} seconds"
                return error("Sandbox.Timedout", said)

    def next(self) -> Invocation:
        """Wait for the next event."""
        return self._events.get()

    def stop(self) -> None:
        """End the process."""
        if process := self.process:
            process.kill()
            process.wait()
            self.process = None

    def _start(self) -> None:
        self._events = queue.SimpleQueue()
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
                said = f"RequestId: {current.request_id} Error: Runtime exited with {code}"
                current.answer.set_result(error("Runtime.ExitError", said))


def error(kind: str, message: str) -> Answer:
    """Word an error as Lambda does."""
    return Answer(json.dumps({"errorType": kind, "errorMessage": message}).encode(), failed=True)


class _Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sandbox: Sandbox

    def do_GET(self) -> None:
        if self.path != f"{_RUNTIME}invocation/next":
            self._answer(404, b"{}")
            return
        invocation = self.sandbox.next()
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(round(invocation.deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": f"arn:aws:lambda:us-east-1:000000000000:function:{FUNCTION}",
        }
        self._answer(200, invocation.event, headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == f"/2015-03-31/functions/{FUNCTION}/invocations":
            answer = self.sandbox.invoke(body or b"{}")
            failed = {"X-Amz-Function-Error": "Unhandled"} if answer.failed else {}
            self._answer(200, answer.body, {"X-Amz-Executed-Version": "$LATEST", **failed})
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
def served(
    handler: str, environment: Mapping[str, str] = os.environ, timeout_s: float = 180, log: IO[bytes] | None = None
) -> Iterator[tuple[str, Sandbox]]:
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
