"""What the partitioned asset and the job of a range share: the days of a run, by the functions of etl.py."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date
from functools import partial
from zoneinfo import ZoneInfo

import dagster as dg
import httpx
from pydantic import Field
from sqlalchemy import Engine

import backfill
import etl
import settings
from alvo.aggregation import STATISTICS
from backfill import BadPeriod, ClusterError, Period
from fonte.client import FonteError, RequestRefused
from orchestration.resources import AlvoDatabase, FonteApi
from outcome import Outcome
from postgres.engine import DatabaseError
from settings import SettingsError

RETRIES = 3
BACKOFF_S = 15.0


class Options(dg.Config):
    """How the days of a run are carried."""

    variables: list[str] = Field(etl.COLUMNS, description="what is fetched, such as ambient_temperature")
    days_at_once: int = Field(etl.DAYS_AT_ONCE, ge=1, le=100, description="days in hand, each with two connections")
    dask: str | None = Field(None, description="scheduler of a Dask cluster that carries the days, tcp://HOST:PORT")


def between(first: str, last: str) -> list[Period]:
    """Return the UTC days from first to last, both YYYY-MM-DD. Raises BadPeriod."""
    try:
        return list(backfill.days(date.fromisoformat(first), date.fromisoformat(last), ZoneInfo("UTC")))
    except ValueError:
        raise BadPeriod(f"{first!r} to {last!r} is not a range of dates: expected YYYY-MM-DD twice") from None


@contextmanager
def connected(
    context: dg.OpExecutionContext, fonte: FonteApi, alvo: AlvoDatabase, connections: int
) -> Iterator[tuple[httpx.Client, Engine]]:
    """Give tested connections for a run; Dagster tries again what fails and may pass by itself, and nothing else."""
    try:
        with fonte.connect() as http, alvo.connect(connections) as engine:
            yield http, engine
    except tuple(etl.EXIT_CODES) as error:
        passes = isinstance(error, (FonteError, DatabaseError, ClusterError)) and not isinstance(error, RequestRefused)
        if passes and context.retry_number < RETRIES:
            context.log.warning(f"will be tried again: {error}")
            raise dg.RetryRequested(RETRIES, BACKOFF_S * 2**context.retry_number) from error
        raise dg.Failure(str(error), allow_retries=False) from error


def carried(
    periods: Sequence[Period], options: Options, http: httpx.Client, alvo: Engine
) -> Iterator[tuple[Period, Outcome | etl.EmptyPeriod]]:
    """Yield each day as it is done; an empty one does not stop the others, any other failure is raised."""
    if options.dask and not settings.services_are_external():
        raise SettingsError("dask needs FONTE_API_URL and ALVO_DATABASE_URL: its workers cannot reach this process")
    base_url = str(http.base_url)

    def here(period: Period) -> Outcome:
        return etl.run(base_url, alvo, period.start, period.end, options.variables, http=http)

    apart = partial(etl.run_apart, base_url, alvo.url, options.variables, STATISTICS)
    with backfill.executor(options.dask, options.days_at_once) as (executor, check):
        carry = apart if options.dask else here
        with closing(backfill.run(periods, carry, executor, options.days_at_once, check)) as results:
            for period, future in results:
                error = backfill.failure(future)
                if error is not None and not isinstance(error, etl.EmptyPeriod):
                    raise error
                yield period, error or future.result()
