"""The one function that makes an HTTP API: its middleware, its error answers, and the routes that both APIs have."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from psycopg2.errorcodes import INSUFFICIENT_PRIVILEGE
from pydantic import BaseModel, Field, SecretStr
from sqlalchemy import URL, Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fonte_alvo import engine, parameters, settings
from fonte_alvo.command import Failure, clean
from fonte_alvo.parameters import Strict
from fonte_alvo.streaming import STREAM_TIMEOUT_S, accepted, in_own_thread

# Each stream holds a connection; a request that finds none free within CONNECT_TIMEOUT_S gets a 503.
POOL_SIZE = 40
# The other routes use a separate pool, so streams never block them.
OTHER_POOL_SIZE = 5
# SQLSTATE classes that a retry cannot fix: data that cannot be cast, and missing or forbidden objects.
_NOT_SET_UP = ("22", "42")
_log = logging.getLogger("uvicorn.error")


class Problem(BaseModel):
    """The reason why a request failed."""

    detail: str = Field(examples=["columns='wind': expected 'wind_speed', 'power' or 'ambient_temperature'"])


def problem(description: str, **headers: str) -> dict[str, Any]:
    """Describe an error answer, and its headers by their types."""
    described = {name.replace("_", "-"): {"schema": {"type": kind}} for name, kind in headers.items()}
    return {"model": Problem, "description": description, "headers": described}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: problem("A parameter of the request is unknown, missing or invalid."),
    503: problem("The database does not answer, or all connections to it are in use.", Retry_After="integer"),
}
DESCRIBED: dict[str, Any] = {
    "version": "1",
    "description": (
        "Periods are half-open, [start, end). Timestamps are RFC 3339 in UTC; one without an offset means UTC. "
        "Two routes change something, and need the admin token."
    ),
    "docs_url": None,
    "redoc_url": None,
    # Relative to this description, wherever a proxy may serve it.
    "servers": [{"url": ".", "description": "This server"}],
    "openapi_tags": [
        {"name": "reading", "description": "Routes that only read."},
        {"name": "changing", "description": "Routes that change data, and need the admin token."},
    ],
    "contact": {"name": "The people who run this server"},
    "license_info": {"name": "MIT", "identifier": "MIT"},
}
# Sent with every answer. Pages may load only from their own server; Swagger UI's style sheet embeds its images.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CROSS_ORIGIN: dict[str, Any] = {
    "allow_methods": ["GET", "HEAD", "POST", "DELETE"],
    "allow_headers": ["Authorization"],
    "expose_headers": ["Retry-After", "WWW-Authenticate"],
}
ENCODINGS = {"identity": "identity", "gzip": "gzip"}
DOCS = Path(__file__).with_name("docs")


@asynccontextmanager
async def engines(name: str, url: URL, admin: tuple[URL, SecretStr] | None) -> AsyncIterator[dict[str, Any]]:
    """Give the state of an app: two engines that only read, one of them for streams, and the one that may write.

    name: the app's name in the database. admin: the URL and the token; without them nobody may write.
    """
    streams = engine.create(url, name, pool_size=POOL_SIZE, check_pooled=True, time_limit_s=STREAM_TIMEOUT_S)
    others = engine.create(url, name, pool_size=OTHER_POOL_SIZE, check_pooled=True)
    pools: dict[str, Engine] = {
        "streams": streams.execution_options(postgresql_readonly=True),
        "engine": others.execution_options(postgresql_readonly=True),
    }
    if admin:
        pools["admin_engine"] = engine.create(admin[0], f"{name} admin", check_pooled=True)
    yield {**pools, "admin_token": admin and admin[1]}
    for pool in pools.values():
        pool.dispose()


def reading(media_types: Iterable[str] = (), **links: dict[str, Any]) -> dict[str, Any]:
    """Describe a route that reads: media types beside those of its model, and links from its answer to routes."""
    answer = {"content": {media_type: {} for media_type in media_types}, "links": links}
    return {"tags": ["reading"], "responses": PROBLEMS | {200: {name: held for name, held in answer.items() if held}}}


def health(request: Request, query: Annotated[Strict, Query()]) -> dict[str, Literal["ok"]]:
    """Asks the database for each table and column that the API reads."""
    with request.state.engine.connect() as connection:
        connection.exec_driver_sql(request.app.state.probe)
    return {"status": "ok"}


class LogLine(logging.Formatter):
    """Writes a record as one line of key=value with the message as JSON; for uvicorn's --log-config log.json."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = super().format(record)
        return f"time={moment} level={record.levelname} logger={record.name} message={json.dumps(message)}"


def make_app(
    side: str,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[dict[str, Any]]],
    probe: str,
    obstacle: Callable[[Engine], str],
    **described: str,
) -> FastAPI:
    """Make an app with the routes that both APIs have; its handlers answer errors as {"detail": "one line"}.

    side: Fonte or Alvo; messages of its database are logged, not sent to clients. probe: SQL that fails if the database
    is not set up; obstacle then says why. described: title and summary.
    """
    database = f"{side}'s database"

    @asynccontextmanager
    async def started(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        asyncio.get_running_loop().set_exception_handler(_report)
        async with lifespan(app) as state:
            yield {**state, **settings.allowed(side)}

    # All handlers are async: a sync handler needs a thread, and an overloaded machine has none left.
    async def unavailable(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s: %s", database, engine.reason(error))
        if (code := engine.sqlstate(error)).startswith(_NOT_SET_UP):
            with suppress(*engine.ERRORS):
                may_not = engine.NO_RIGHT if code == INSUFFICIENT_PRIVILEGE else ""
                why = may_not or await in_own_thread(obstacle, request.state.engine)
                return JSONResponse({"detail": f"{database} is not set up: {why}"}, 503)
        in_use = isinstance(error, PoolTimeoutError)
        return _ask_later(f"all connections to {database} are in use" if in_use else f"{database} does not answer")

    handlers: dict[Any, Any] = {404: _not_found, 405: _not_allowed, RequestValidationError: _invalid, Failure: _failed}
    handlers |= dict.fromkeys((OSError, RuntimeError), _overloaded)
    handlers |= dict.fromkeys(engine.ERRORS, unavailable)
    app = FastAPI(
        lifespan=started,
        exception_handlers=handlers,
        middleware=[Middleware(_Front), Middleware(GZipMiddleware, compresslevel=6)],
        generate_unique_id_function=lambda route: route.name,
        # A redirection would repeat the Host that the client names.
        redirect_slashes=False,
        dependencies=[Depends(parameters.refuse_ignored)],
        **DESCRIBED | described,
    )
    app.state.probe = probe
    app.add_api_route("/health", health, **reading(), summary="Whether the database answers, and is set up")
    # The page that shows the description, and its files: none of them comes from another server.
    app.add_route("/docs", lambda request: FileResponse(DOCS / "docs.html"), include_in_schema=False)
    app.mount("/docs", StaticFiles(directory=DOCS, packages=[("fastapi_offline", "static")]))
    return app


class _Front:
    """Checks Host and Origin, answers HEAD as GET without the body, chooses the encoding, and adds HEADERS."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self.app
        if scope["type"] == "http":
            # Made for each request, because these settings are read when a server starts.
            origins, hosts = scope["state"]["origins"], scope["state"]["hosts"]
            app = CORSMiddleware(app, origins, **CROSS_ORIGIN) if origins else app
            app = TrustedHostMiddleware(app, hosts or ["*"], www_redirect=False)
            # Starlette's middleware ignores the quality values of RFC 9110, section 12.5.3.
            headers = MutableHeaders(scope=scope)
            headers["Accept-Encoding"] = accepted(",".join(headers.getlist("Accept-Encoding")), ENCODINGS)
            if scope["method"] == "HEAD":
                # The server itself omits the body.
                scope = {**scope, "method": "GET", "head": True}
        await app(scope, receive, with_headers)


def _ask_later(why: str) -> JSONResponse:
    return JSONResponse({"detail": f"{why}; ask again later"}, 503, {"Retry-After": "1"})


async def _overloaded(request: Request, error: Exception) -> JSONResponse:
    # Python has no specific type for a thread that cannot be started.
    if isinstance(error, RuntimeError) and "start new thread" not in str(error):
        raise error
    _log.error("%s", error)
    return _ask_later("this machine has no thread or descriptor left")


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # For one client that finds no descriptor left, asyncio reports two thousand errors at once, and as many of another
    # type if the server then stops.
    if isinstance(error := context.get("exception"), OSError | ValueError):
        _log_once(clean(f"{context['message']}: {error}", 1000), second=int(loop.time()))
    else:
        loop.default_exception_handler(context)


@lru_cache(maxsize=1)
def _log_once(message: str, second: int) -> None:
    """Log a message, once a second."""
    _log.error("%s", message)


async def _failed(request: Request, error: Failure) -> JSONResponse:
    _log.error("%s", error)
    return JSONResponse({"detail": str(error)}, 503)


async def _not_found(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "no such path: /docs describes those that exist"}, 404)


async def _not_allowed(request: Request, error: Exception) -> Response:
    # Starlette's answer would list only the methods of the first route with this path.
    path = request.scope["path"]
    route = path.removeprefix(request.scope.get("root_path", ""))
    methods = {method.upper() for method in request.app.openapi()["paths"].get(route, ["get"])}
    methods |= {"OPTIONS", *(["HEAD"] if "GET" in methods else [])}
    allow = {"Allow": ", ".join(sorted(methods))}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    detail = f"{clean(request.method)} {path}: expected {' or '.join(sorted(methods))}"
    return JSONResponse({"detail": detail}, 405, allow)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse({"detail": parameters.explained(error.errors(), parameters.known(request))}, 422)
