"""A SQLAlchemy engine from a URL, and the one line that tells why a database failed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg2 import Error as PostgresError
from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from postgres.embedded import EmbeddedServerError

# What a pool logs of a lost connection, the failure that it causes tells on its one line.
logging.getLogger("sqlalchemy.pool").addHandler(logging.NullHandler())

CONNECT_TIMEOUT_S = 5
DRIVERS = ("postgres", "postgresql", "postgresql+psycopg2")
# Times and numbers are read as they are, whatever the server, the role or the environment prefer.
SESSION = "-c timezone=UTC -c datestyle=ISO,YMD -c extra_float_digits=1"


class DatabaseError(Exception):
    """A database failed; the message names it, the cause and the remedy."""


def parse(url: str) -> URL:
    """Read a PostgreSQL URL; its string form hides the password.

    `postgres://` and `postgresql://` mean psycopg2, whose COPY the loads use; SQLAlchemy 2.1 alone would pick
    psycopg 3. Raises ValueError, whose text never repeats the URL: a password may stand in any malformed part.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    # An @ that was not encoded ends the password early: its rest would be taken for a host, and repeated.
    if not parsed or parsed.drivername not in DRIVERS or "@" in f"{parsed.host}{parsed.database}":
        raise ValueError(
            "is not a URL of PostgreSQL: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
            "with special characters percent-encoded"
        ) from None
    return parsed.set(drivername=DRIVERS[-1])


def create(url: URL, application_name: str, *, pool_size: int = 2, check_pooled: bool = False) -> Engine:
    """Make an engine; nothing is connected yet.

    pool_size: connections at most. check_pooled: test a pooled connection before each use, so that a server which
    was away is found again; for processes that live long.
    """
    options = f"{url.query.get('options', '')} {SESSION}"
    return create_engine(
        url.update_query_dict({"options": options, "connect_timeout": str(CONNECT_TIMEOUT_S)}),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_pre_ping=check_pooled,
        isolation_level="READ COMMITTED",
        connect_args={"application_name": application_name},
    )


@contextmanager
def failures(database: str, remedy: str, kind: type[Exception] = DatabaseError) -> Iterator[None]:
    """Raise what fails inside as an exception of this kind that names the database, the cause and the remedy."""
    try:
        yield
    except (SQLAlchemyError, PostgresError, EmbeddedServerError) as error:
        raise kind(f"{database} failed: {reason(error)}; {remedy}") from error


def reason(error: BaseException) -> str:
    """Return what the database said, on one line: no SQL, no parameters, no password."""
    said = str(getattr(error, "orig", None) or error)
    return " ".join(said.split()) or type(error).__name__
