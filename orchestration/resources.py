"""Fonte's API and Alvo's database as Dagster's resources: each is connected once in a run, and tested before use."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import httpx
from sqlalchemy import Engine

import etl
import settings
from fonte import client
from fonte.client import FonteError
from postgres import engine

REMEDY = "check FONTE_API_URL and that a connector runs there"


class FonteApi(dg.ConfigurableResource[None]):
    """Fonte's connector: at this URL, or at FONTE_API_URL; where that is unset too, the run serves it itself."""

    url: str | None = None

    @contextmanager
    def connect(self) -> Iterator[httpx.Client]:
        """Give a client of a connector that answers. Raises SettingsError and FonteError."""
        with etl.connector(self.url) as base_url, client.connect(base_url) as http:
            health = _get(http, "health")
            # A server that has no such route is a connector all the same.
            if health.is_server_error:
                raise FonteError(f"Fonte at {http.base_url} is not ready: it answers {health.status_code}; {REMEDY}")
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


def _get(http: httpx.Client, route: str) -> httpx.Response:
    try:
        return http.get(route)
    except httpx.HTTPError as error:
        raise FonteError(f"Fonte at {http.base_url} failed: {error}; {REMEDY}") from error
