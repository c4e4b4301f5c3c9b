"""Fonte to Alvo under Dagster: a partition a day, its schedule, and a job for any range."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
from pydantic import Field
from sqlalchemy import Engine

from alvo.aggregation import STATISTICS
from fonte import client
from orchestration import day, days
from orchestration.dagster import quality
from orchestration.dagster.resources import AlvoDatabase, FonteApi, connected
from orchestration.day import COLUMNS, Day, EmptyPeriod, Outcome

HOUR_UTC = 6  # 03:00 in Sao Paulo
# dagster.yaml says how many runs may ask Fonte at once.
POOL = "fonte"


class Options(dg.Config):
    """How the days of a run are carried."""

    variables: list[str] = Field(COLUMNS, description="what is fetched, such as ambient_temperature")
    days_at_once: int = Field(days.AT_ONCE, ge=1, le=100, description="days in hand, each with two connections")
    dask: str | None = Field(None, description="scheduler of a Dask cluster that carries the days, tcp://HOST:PORT")


def _between(first: str, last: str) -> list[Day]:
    """Return the UTC days from first to last, both YYYY-MM-DD. Raises BadPeriod."""
    try:
        return list(days.between(date.fromisoformat(first), date.fromisoformat(last), ZoneInfo("UTC")))
    except ValueError:
        raise days.BadPeriod(f"{first!r} to {last!r} is not a range of dates: expected YYYY-MM-DD twice") from None


def _carried(
    asked: Sequence[Day], options: Options, http: client.Client, alvo: Engine
) -> Iterator[tuple[Day, Outcome | EmptyPeriod]]:
    """Yield each day when it is done; an empty one does not stop the others, any other failure is raised."""
    with days.running(asked, options.variables, STATISTICS, http, alvo, options.days_at_once, options.dask) as results:
        for each, result in results:
            if isinstance(result, Exception) and not isinstance(result, EmptyPeriod):
                raise result
            yield each, result


@dg.asset(
    key=quality.ASSET,
    partitions_def=quality.DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=quality.SPECS,
    freshness_policy=dg.FreshnessPolicy.cron(f"0 {HOUR_UTC + 2} * * *", timedelta(hours=2)),
    kinds={"python", "postgres"},
    # A day without a sample is no materialization.
    output_required=False,
    pool=POOL,
)
def ten_minute_statistics(
    context: dg.AssetExecutionContext, config: Options, fonte: FonteApi, alvo: AlvoDatabase
) -> Iterator[quality.Event | dg.AssetObservation | dg.Output[None]]:
    """Mean, minimum, maximum and standard deviation of 10 minutes, in Alvo; a partition is a UTC day."""
    keys = context.partition_key_range
    with connected(context.op_execution_context, fonte, alvo, config.days_at_once + 1) as (http, engine):
        known = {name: each.unit for name, each in client.variables(http).items()}
        for each, done in _carried(_between(keys.start, keys.end), config, http, engine):
            if isinstance(done, EmptyPeriod):
                reason = f"{each.date} skipped: {done}; Alvo stays as it was"
                context.log.warning(reason)
                yield dg.AssetObservation(quality.ASSET, reason, partition=str(each.date))
            else:
                context.log.info(day.line(each, done))
                yield from quality.events(each, done, engine, known)
    for spec in quality.SPECS:
        # Its evaluations are made above, a partition each; of a skipped day there is none.
        yield dg.Output(None, spec.get_python_identifier())


class Range(Options):
    """What the job `etl` is asked for."""

    start_date: str = Field(description="first UTC day, YYYY-MM-DD")
    end_date: str = Field(description="last UTC day, YYYY-MM-DD")
    api_url: str | None = Field(None, description="Fonte's API; default: FONTE_API_URL")
    database_url: str | None = Field(None, description="Alvo's database; default: ALVO_DATABASE_URL")


@dg.op(pool=POOL)
def run_etl(context: dg.OpExecutionContext, config: Range) -> None:
    """Carry the days of a range, as `python etl.py START_DATE END_DATE` does."""
    outcomes = []
    fonte, alvo = FonteApi(url=config.api_url), AlvoDatabase(url=config.database_url)
    with connected(context, fonte, alvo, config.days_at_once) as (http, engine):
        for each, done in _carried(_between(config.start_date, config.end_date), config, http, engine):
            if isinstance(done, EmptyPeriod):
                context.log.warning(f"{each.date} skipped: {done}; Alvo stays as it was")
            else:
                context.log.info(day.line(each, done))
                outcomes.append(done)
    context.log.info(days.total(outcomes))
    context.add_output_metadata({"total": days.total(outcomes)})


@dg.job(name="etl")
def etl_job() -> None:
    """A range of days, from its run configuration alone; partitions stay as they are."""
    run_etl()


daily_job = dg.define_asset_job("ten_minute_statistics_job", [ten_minute_statistics])
daily_schedule = dg.build_schedule_from_partitioned_job(
    daily_job,
    name="daily",
    description=f"Every day at {HOUR_UTC:02}:00 UTC, 03:00 in Sao Paulo, for the UTC day before.",
    hour_of_day=HOUR_UTC,
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

defs = dg.Definitions(
    assets=[ten_minute_statistics],
    jobs=[daily_job, etl_job],
    schedules=[daily_schedule],
    resources={"fonte": FonteApi(), "alvo": AlvoDatabase()},
    # A day takes less time than the start of a process; a run is a process of its own anyway.
    executor=dg.in_process_executor,
)
