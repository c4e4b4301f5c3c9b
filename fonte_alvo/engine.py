"""Makes SQLAlchemy engines from URLs with time limits, and reports database failures on one line."""

import io
import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any

from psycopg2 import Error as PostgresError
from psycopg2 import OperationalError, extensions
from psycopg2.errorcodes import INSUFFICIENT_PRIVILEGE
from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from fonte_alvo import embedded
from fonte_alvo.command import Failure, clean
from fonte_alvo.embedded import EmbeddedServerError

# A lost connection makes a query fail, and that failure is reported: the pool need not log it too.
logging.getLogger("sqlalchemy.pool").addHandler(logging.NullHandler())

CONNECT_TIMEOUT_S = 5
TIME_LIMIT_S = 120
# The server ends a slow statement first, with its own message; only then is the connection cut.
GRACE_S = 10
# The exceptions of a failing database; the last two are for bad UTF-8 and for a port beyond 65535.
ERRORS = (SQLAlchemyError, PostgresError, EmbeddedServerError, UnicodeDecodeError, OverflowError)
DRIVERS = ("postgres", "postgresql", "postgresql+psycopg2")
# Parameters in a URL that psycopg2 or SQLAlchemy would take for themselves.
NOT_OF_LIBPQ = ("async", "async_", "connection_factory", "cursor_factory", "dsn", "plugin")
# Shorter than the connector's client waits, so that it still receives the message about the lock.
LOCK_TIMEOUT_S = 15
IDLE_TIMEOUT_S = 60
# psycopg2 calls read() once per piece: large pieces save system calls.
COPY_CHUNK_BYTES = 256 * 1024
# Set in each transaction, because a pooler may drop a session's settings. Times and numbers then have one form,
# whatever the server, the role or the environment prefers.
FORMS = {"timezone": "UTC", "datestyle": "ISO, YMD", "extra_float_digits": "1"}
# PostgreSQL has timestamps, infinity among them, that readers of the tables cannot hold.
YEARS_1_TO_9999 = "timestamp >= '0001-01-01 00:00Z' AND timestamp < '10000-01-01 00:00Z'"
NO_RIGHT = "connect as the tables' owner, or as a role with that right: see docs/services.md"
# Ends a query soon after its client has gone; servers on other systems may refuse this setting.
_CHECK_CLIENT = "CASE WHEN version() ~ 'linux' THEN set_config('client_connection_check_interval', '1s', true) END"


class DatabaseError(Failure):
    """A database that a command writes to failed; the message names it, the cause and the remedy."""

    exit_code = 4


def parse(url: str) -> URL:
    """Read a PostgreSQL URL; its string form hides the password.

    `postgres://` and `postgresql://` mean psycopg2, whose COPY the loads use; SQLAlchemy 2.1 alone would pick
    psycopg 3. Raises ValueError; its text never repeats the URL, because any malformed part may hold the password.
    """
    try:
        url.encode()
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    # An @ that is not encoded ends the password early; messages would then show the rest as the host.
    if not parsed or parsed.drivername not in DRIVERS or "@" in f"{parsed.host}{parsed.database}" or "%00" in url:
        raise ValueError(
            "is not a URL of PostgreSQL: expected postgresql://HOST:PORT/DATABASE, with USER:PASSWORD@ before the host "
            "and special characters percent-encoded"
        ) from None
    for name, value in parsed.query.items():
        if name in NOT_OF_LIBPQ or (not isinstance(value, str) and name != "host"):
            raise ValueError(f"has a parameter that cannot be used, {clean(name)}: expected those of libpq, once each")
    return parsed.set(drivername=DRIVERS[-1])


def create(
    url: URL, application_name: str, *, pool_size: int = 2, check_pooled: bool = False, time_limit_s: float = 0
) -> Engine:
    """Make an engine; it connects at its first use.

    pool_size: the most connections. check_pooled: test a pooled connection before each use; a long-lived process then
    survives a restart of the server. time_limit_s: the time after which a statement fails, 0 for TIME_LIMIT_S; a
    connection may be in use GRACE_S longer.
    """
    limit_s = time_limit_s or TIME_LIMIT_S
    engine = create_engine(
        url.update_query_dict({"connect_timeout": str(CONNECT_TIMEOUT_S), "client_encoding": "utf8"}),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_use_lifo=True,
        pool_pre_ping=check_pooled,
        isolation_level="READ COMMITTED",
        connect_args={"application_name": application_name},
    )
    settings = ", ".join([*_settings(url, limit_s), _CHECK_CLIENT])
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(f"SELECT {settings}"))
    _cut_after(engine, limit_s + GRACE_S)
    return engine


def _settings(url: URL, limit_s: float) -> list[str]:
    """Return SQL calls with the settings of a transaction; limits that the URL's options name are left alone."""
    limits_s = {
        "statement_timeout": limit_s,
        "lock_timeout": LOCK_TIMEOUT_S,
        "idle_in_transaction_session_timeout": IDLE_TIMEOUT_S,
    }
    named = str(url.query.get("options", ""))
    limits = {name: str(round(limit_s * 1000)) for name, limit_s in limits_s.items() if name not in named}
    return [f"set_config('{name}', '{value}', true)" for name, value in {**FORMS, **limits}.items()]


def _cut_after(engine: Engine, limit_s: float) -> None:
    """Cut a connection that is in use for longer, because a frozen server would keep its client waiting forever."""

    def start(connection: extensions.connection, record: ConnectionPoolEntry, *_: object) -> None:
        stop(connection, record)
        record.info["limit"] = _cut_later(connection, limit_s)

    def stop(connection: extensions.connection, record: ConnectionPoolEntry) -> None:
        if limit := record.info.pop("limit", None):
            limit.cancel()

    def connect(
        dialect: Dialect, record: ConnectionPoolEntry, arguments: tuple[Any, ...], parameters: dict[str, Any]
    ) -> extensions.connection:
        try:
            connection = dialect.connect(*arguments, **parameters)
        except UnicodeDecodeError as error:
            # Before a server knows the client's encoding, its messages have the server's.
            raise OperationalError(error.object.decode("latin-1")) from None
        except PostgresError:
            # The embedded server may have restarted on another port.
            if not embedded.find_again(parameters):
                raise
            connection = dialect.connect(*arguments, **parameters)
        try:
            # SQLAlchemy queries the server before it hands the connection out.
            start(connection, record)
        except RuntimeError:
            # No thread is left. The error's traceback would keep the connection open.
            connection.close()
            raise
        return connection

    plain_ping = engine.dialect.do_ping

    def ping(connection: Any) -> bool:  # noqa: ANN401
        # SQLAlchemy tests a pooled connection before the checkout.
        limit = _cut_later(connection, CONNECT_TIMEOUT_S)
        try:
            return plain_ping(connection)
        finally:
            limit.cancel()

    engine.dialect.do_ping = ping  # type: ignore[assignment, method-assign]
    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkout", start)
    event.listen(engine, "checkin", stop)


def _cut_later(connection: extensions.connection, limit_s: float) -> Timer:
    """Cut a connection after this time, unless the timer is cancelled."""
    limit = Timer(limit_s, cut, [connection])
    limit.daemon = True
    limit.start()
    return limit


def cut(connection: extensions.connection) -> None:
    """Cut a connection that another thread may be using, which then fails at once."""
    if not connection.closed:
        # The descriptor stays the connection's: a copy of it fails where the machine has no descriptor left.
        wire = socket.socket(fileno=connection.fileno())
        # The server may have closed it already.
        with suppress(OSError):
            # Closing then resets the connection. Otherwise a server with a full send buffer would wait for minutes for
            # the client's window.
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.shutdown(socket.SHUT_RDWR)
        wire.detach()


def send(connection: Connection, command: str, stream: io.IOBase) -> int:
    """Run a COPY ... FROM STDIN with a readable stream in the command's format; return the number of rows."""
    cursor = connection.connection.cursor()
    try:
        cursor.copy_expert(command, stream, size=COPY_CHUNK_BYTES)
    except PostgresError as error:
        if cursor.connection.closed:
            # Otherwise SQLAlchemy would roll back, fail again, and hide why the connection was lost.
            connection.invalidate(error)
        raise
    return int(cursor.rowcount)


@contextmanager
def failures(database: str, remedy: str, kind: type[Failure] = DatabaseError) -> Iterator[None]:
    """Raise database errors inside as an exception of this kind that names the database, the cause and the remedy."""
    try:
        yield
    except ERRORS as error:
        # Imported here, because the settings import this module.
        from fonte_alvo import settings

        code = sqlstate(error)
        remedy = NO_RIGHT if code == INSUFFICIENT_PRIVILEGE else remedy
        refused = isinstance(error, DBAPIError) and not code
        variables = ", ".join(settings.libpq_variables()) if refused else ""
        also = f" (the environment sets {variables})" if variables else ""
        raise kind(f"{database} failed: {reason(error)}{also}; {remedy}") from error


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of a database's error; empty if it has none."""
    return getattr(getattr(error, "orig", error), "pgcode", None) or ""


def reason(error: BaseException) -> str:
    """Return the database's message on one line: no SQL, no parameters, no password."""
    said = str(getattr(error, "orig", None) or error)
    return clean(said, 1000) or type(error).__name__
