"""Answers that are sent while the database still copies rows out, in the format that the client prefers."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fonte_alvo import engine
from fonte_alvo.copy import CopyOut

# A slower reader would hold a connection that others need.
STREAM_TIMEOUT_S = 600.0
# An SQL expression: the column timestamp in RFC 3339, whatever the time zone of the session.
TIMESTAMP = "to_json(timestamp::timestamptz AT TIME ZONE 'UTC') #>> '{}' || 'Z'"
Name = TypeVar("Name", bound=str)
_log = logging.getLogger("uvicorn.error")


def accepted(accept: str, offered: Mapping[Name, str]) -> Name:
    """Return the name of the offered media type that an Accept header prefers, or the first if it names none.

    For content codings and Accept-Encoding it does the same. If several ranges include a media type, the most specific
    counts (RFC 9110, section 12.5.1).
    """
    ranges: dict[str, tuple[float, int]] = {}
    for position, part in enumerate(accept.lower().split(",")):
        media_range, *parameters = map(str.strip, part.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        weight = float(quality) if re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", quality) else 0.0
        ranges.setdefault(media_range, (weight, -position if weight else 0))

    def preference(name: Name) -> tuple[float, int]:
        media_type = offered[name]
        including = (media_type, media_type.split("/")[0] + "/*", "*/*", "*")
        return next((ranges[each] for each in including if each in ranges), (0.0, 0))

    return max(offered, key=preference)


def json_list(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Turn lines of JSON, in pieces that may end anywhere, into a JSON list."""
    begin, held = b"[", b""
    for piece in pieces:
        text = held + piece.replace(b"\n", b",")
        # No comma may follow the last line, so it waits for the next piece.
        text, held = (text[:-1], b",") if text.endswith(b",") else (text, b"")
        yield begin + text
        begin = b""
    yield begin + b"]"


class Stream(StreamingResponse):
    """A response that is sent while the database still copies rows out.

    A slow client slows the query down; a client that disconnects ends it.
    """

    def __init__(self, media_type: str, copied: Callable[[], CopyOut], make: Callable[..., Iterator[bytes]]) -> None:
        """Start nothing yet: copied starts the query, make turns its output into the pieces of the body."""
        super().__init__((), media_type=media_type, headers={"Vary": "Accept"})
        self._copied, self._make = copied, make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the body, and then close the rows in any case."""
        with closing(self._copied()) as rows:
            pieces = self._make(iter(rows))
            # Starlette notices a client that disconnects only once the body is under way.
            first = asyncio.ensure_future(in_own_thread(next, pieces))
            gone = asyncio.ensure_future(self.listen_for_disconnect(receive))
            try:
                await asyncio.wait({first, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not first.done():
                    return
            finally:
                gone.cancel()
                first.cancel()
            # A HEAD has the headers of a GET; the server leaves out the body.
            # If the database has failed, the answer is 503; if it fails later, the stream breaks off.
            self.body_iterator = _drawn(first.result(), iter(()) if "head" in scope else pieces)
            # A client notices that an answer is broken off: the body lacks its end.
            try:
                with fail_after(STREAM_TIMEOUT_S):
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                client = scope["client"] and scope["client"][0]
                _log.warning("%s took longer than %s s to read an answer: broken off", client, STREAM_TIMEOUT_S)
            except Exception as error:
                _log.error("an answer was broken off: %s", engine.reason(error))


async def _drawn(piece: bytes | None, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece is not None:
        yield piece
        piece = await in_own_thread(next, pieces, None)


async def in_own_thread(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
    """Call a blocking function in an extra thread, so that streams do not occupy the threads of other routes.

    If the client disconnects, nobody waits for the thread; closing the rows ends it.
    """
    return await to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=CapacityLimiter(1))
