"""Fonte to Alvo under Dagster: a partition a day, its schedule, and a job for any range."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
from pydantic import Field

import etl
import outcome
from fonte import client
from orchestration import days, quality
from orchestration.resources import AlvoDatabase, FonteApi

HOUR_UTC = 6  # 03:00 in Sao Paulo
# dagster.yaml says how many runs may ask Fonte at once.
POOL = "fonte"


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
    context: dg.AssetExecutionContext, config: days.Options, fonte: FonteApi, alvo: AlvoDatabase
) -> Iterator[quality.Event | dg.AssetObservation | dg.Output[None]]:
    """Mean, minimum, maximum and standard deviation of 10 minutes, in Alvo; a partition is a UTC day."""
    keys = context.partition_key_range
    with days.connected(context.op_execution_context, fonte, alvo, config.days_at_once + 1) as (http, engine):
        known = client.units(http)
        for period, done in days.carried(days.between(keys.start, keys.end), config, http, engine):
            if isinstance(done, etl.EmptyPeriod):
                reason = f"{period.day} skipped: {done}; Alvo stays as it was"
                context.log.warning(reason)
                yield dg.AssetObservation(quality.ASSET, reason, partition=str(period.day))
            else:
                context.log.info(outcome.line(period, done))
                yield from quality.events(period, done, engine, known)
    for spec in quality.SPECS:
        # Its evaluations are made above, a partition each; of a skipped day there is none.
        yield dg.Output(None, spec.get_python_identifier())


class Range(days.Options):
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
    with days.connected(context, fonte, alvo, config.days_at_once) as (http, engine):
        for period, done in days.carried(days.between(config.start_date, config.end_date), config, http, engine):
            if isinstance(done, etl.EmptyPeriod):
                context.log.warning(f"{period.day} skipped: {done}; Alvo stays as it was")
            else:
                context.log.info(outcome.line(period, done))
                outcomes.append(done)
    context.log.info(outcome.total(outcomes))
    context.add_output_metadata({"total": outcome.total(outcomes)})


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
