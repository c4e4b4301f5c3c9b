"""Fonte's API and Alvo's database as Dagster's resources: each is connected once per run and tested before use."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import dagster as dg
import httpx
from sqlalchemy import Engine

from fonte import client, local
from fonte.client import AnswerRefused, Client, FonteError, RequestRefused
from fonte_alvo import engine, settings
from fonte_alvo.command import Failure, clean, shown_url
from fonte_alvo.engine import DatabaseError
from fonte_alvo.settings import SettingsError
from orchestration.days import ClusterError

REMEDY = "check FONTE_API_URL and that a connector runs there"
RETRIES = 3
BACKOFF_S = 15.0
# A password before the host, any user in an HTTP URL, and parameters with the name of a secret.
SECRET = re.compile(r"://[^@]*:.*@|^https?://[^/]*@|(password|token|secret|key)=", re.IGNORECASE)

ENVIRONMENT = dg.Selector({"env": str})  # type: ignore[no-untyped-call]


class FonteApi(NamedTuple):
    """Fonte's connector at this URL, or at FONTE_API_URL; with neither, the run serves the connector."""

    url: str | None = None

    @contextmanager
    def connect(self, *, live: bool = False) -> Iterator[Client]:
        """Give a client of a connector that answers. Raises SettingsError and FonteError.

        live: an embedded Fonte gets a row per minute meanwhile.
        """
        with local.base_url(self.url, live=live) as base_url, client.connect(base_url) as http:
            status, body = get(http, "health")
            # A connector need not have this route.
            if status >= 500:
                said = f"it answers {status}, {clean(client.detail(body)) or 'no reason given'}"
                raise FonteError(f"Fonte at {shown_url(http.base_url)} is not ready: {said}; {REMEDY}")
            yield http


class AlvoDatabase(NamedTuple):
    """Alvo's PostgreSQL at this URL, or at ALVO_DATABASE_URL; with neither, the embedded one."""

    url: str | None = None

    @contextmanager
    def connect(self, connections: int) -> Iterator[Engine]:
        """Give an engine of this many connections, after trying one. Raises SettingsError and DatabaseError."""
        with engine.failures("Alvo", "check ALVO_DATABASE_URL and that PostgreSQL runs there"):
            alvo = engine.create(settings.alvo_database_url(self.url), "dagster", pool_size=connections)
            alvo.connect().close()
        try:
            yield alvo
        finally:
            alvo.dispose()


class Url(dg.ScalarUnion):
    """A URL without a password, or `env: NAME`: Dagster keeps and shows every run configuration."""

    def __init__(self) -> None:
        super().__init__(scalar_type=str, non_scalar_schema=ENVIRONMENT, _key="Url")

    def post_process(self, value: str | dict[str, str]) -> str:
        """Return the URL; without a usable one, the launch fails here, before a run exists."""
        if isinstance(value, dict):
            url = dg.EnvVar(value["env"]).get_value()
            if not url:
                said = f"the environment lacks the variable {value['env']} of the run configuration: set it there"
                raise SettingsError(said)
            return url
        if SECRET.search(value):
            raise SettingsError("a run configuration may hold no password, as it is shown: `url: {env: NAME}`")
        return value


def _url(default: str) -> dict[str, dg.Field]:
    described = f"the URL, without a password, or `env: NAME`; default: {default}"
    return {"url": dg.Field(dg.Noneable(Url()), is_required=False, description=described)}


@dg.resource(_url("FONTE_API_URL"), description="Fonte's API.")
def fonte(context: dg.InitResourceContext) -> FonteApi:
    """Make the resource from the run configuration."""
    return FonteApi(**context.resource_config)


@dg.resource(_url("ALVO_DATABASE_URL"), description="Alvo's PostgreSQL.")
def alvo(context: dg.InitResourceContext) -> AlvoDatabase:
    """Make the resource from the run configuration."""
    return AlvoDatabase(**context.resource_config)


def get(http: Client, route: str) -> tuple[int, bytes]:
    """Ask the connector; return the status and the beginning of the body. Raises FonteError."""
    try:
        return client.ask(http, route)
    except (httpx.HTTPError, UnicodeError, OverflowError) as error:
        raise FonteError(f"Fonte at {shown_url(http.base_url)} failed: {clean(str(error))}; {REMEDY}") from error


class Period(NamedTuple):
    """The first and last timestamp in Fonte, and its number of rows."""

    first: datetime
    last: datetime
    rows: int


def period(http: Client) -> Period | None:
    """Ask the connector for Fonte's period; None if Fonte is empty or it does not say. Raises FonteError."""
    _, body = get(http, "period")
    try:
        told = json.loads(body)
        first, last = (datetime.fromisoformat(told[f"{end}_timestamp"]) for end in ("first", "last"))
        return Period(_aware(first), _aware(last), int(told["rows"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@contextmanager
def connected(
    context: dg.OpExecutionContext, fonte: FonteApi, alvo: AlvoDatabase, connections: int
) -> Iterator[tuple[Client, Engine]]:
    """Give tested connections for a run; Dagster retries transient failures inside, and no others."""
    try:
        with fonte.connect() as http, alvo.connect(connections) as alvo_engine:
            yield http, alvo_engine
    except Failure as error:
        # A refusal of Alvo's tables has no cause; every other failure of Alvo has one.
        refused = isinstance(error, DatabaseError) and error.__cause__ is None
        permanent = refused or isinstance(error, (RequestRefused, AnswerRefused))
        transient = isinstance(error, (FonteError, DatabaseError, ClusterError)) and not permanent
        if transient and context.retry_number < RETRIES:
            context.log.warning(f"will be retried: {error}")
            raise dg.RetryRequested(RETRIES, BACKOFF_S * 2**context.retry_number) from error
        raise dg.Failure(str(error), allow_retries=False) from error
