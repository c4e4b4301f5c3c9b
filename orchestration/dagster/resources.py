"""Fonte's API and Alvo's database as Dagster's resources: each is connected once in a run, and tested before use."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import httpx
from sqlalchemy import Engine

from fonte import client, local
from fonte.client import Client, FonteError, RequestRefused
from fonte_alvo import engine, settings
from fonte_alvo.command import Failure, clean, shown_url
from fonte_alvo.engine import DatabaseError
from orchestration.days import ClusterError

REMEDY = "check FONTE_API_URL and that a connector runs there"
RETRIES = 3
BACKOFF_S = 15.0


class FonteApi(dg.ConfigurableResource[None]):
    """Fonte's connector: at this URL, or at FONTE_API_URL; where that is unset too, the run serves it itself."""

    url: str | None = None

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """Give a client of a connector that answers. Raises SettingsError and FonteError."""
        with local.base_url(self.url) as base_url, client.connect(base_url) as http:
            status = _status(http, "health")
            # A server that has no such route is a connector all the same.
            if status >= 500:
                raise FonteError(f"Fonte at {shown_url(http.base_url)} is not ready: it answers {status}; {REMEDY}")
            yield http


class AlvoDatabase(dg.ConfigurableResource[None]):
    """Alvo's PostgreSQL: at this URL, or at ALVO_DATABASE_URL; where that is unset too, the embedded one."""

    url: str | None = None

    @contextmanager
    def connect(self, connections: int) -> Iterator[Engine]:
        """Give an engine of so many connections, of which one was made. Raises SettingsError and DatabaseError."""
        with engine.failures("Alvo", "check ALVO_DATABASE_URL and that PostgreSQL runs there"):
            alvo = engine.create(settings.alvo_database_url(self.url), "dagster", pool_size=connections)
            alvo.connect().close()
        try:
            yield alvo
        finally:
            alvo.dispose()


def _status(http: Client, route: str) -> int:
    """Return the status of an answer, whose body, perhaps without end, is not read."""
    try:
        with http.stream("GET", route) as response:
            return response.status_code
    except (httpx.HTTPError, UnicodeError, OverflowError) as error:
        raise FonteError(f"Fonte at {shown_url(http.base_url)} failed: {clean(str(error))}; {REMEDY}") from error


@contextmanager
def connected(
    context: dg.OpExecutionContext, fonte: FonteApi, alvo: AlvoDatabase, connections: int
) -> Iterator[tuple[Client, Engine]]:
    """Give tested connections for a run; Dagster retries transient failures inside, and no others."""
    try:
        with fonte.connect() as http, alvo.connect(connections) as alvo_engine:
            yield http, alvo_engine
    except Failure as error:
        transient = isinstance(error, (FonteError, DatabaseError, ClusterError))
        if transient and not isinstance(error, RequestRefused) and context.retry_number < RETRIES:
            context.log.warning(f"will be tried again: {error}")
            raise dg.RetryRequested(RETRIES, BACKOFF_S * 2**context.retry_number) from error
        raise dg.Failure(str(error), allow_retries=False) from error
