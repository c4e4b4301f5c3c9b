"""Fonte to Alvo under Dagster: a partition per day, its schedule, and a job for any range."""

from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import dagster as dg
from pydantic import Field
from sqlalchemy import Engine

from alvo.aggregation import STATISTICS
from fonte import client
from fonte.client import FonteError
from fonte_alvo import command
from fonte_alvo.engine import DatabaseError
from orchestration import day, days
from orchestration.dagster import quality, resources
from orchestration.dagster.partitions import DAYS, FIRST, HOUR, ZONE
from orchestration.dagster.resources import AlvoDatabase, FonteApi, connected
from orchestration.day import COLUMNS, Day, EmptyPeriod, Outcome

# dagster.yaml limits the runs that ask Fonte at once.
POOL = "fonte"
# How late samples may arrive.
LATE_DAYS = 7
# A run of this many days ends long before run monitoring's limit in dagster.yaml.
DAYS_PER_RUN = 366


class Options(dg.Config):
    """How a run loads its days."""

    variables: list[str] = Field(COLUMNS, min_length=1, description="variables, such as ambient_temperature")
    days_at_once: int = Field(days.AT_ONCE, ge=1, le=100, description="days loaded at once; on Dask, tasks at once")
    dask: str | None = Field(None, description="scheduler of a Dask cluster that runs the days, tcp://HOST:PORT")


def _between(first: str, last: str) -> list[Day]:
    """Return the days from first to last, both YYYY-MM-DD, today or yesterday. Raises BadPeriod."""
    try:
        first_date, last_date = (command.day(text, ZONE) for text in (first, last))
    except ArgumentTypeError as error:
        raise days.BadPeriod(str(error)) from None
    return list(days.between(first_date, last_date, ZONE))


def _carried(
    asked: Sequence[Day], options: Options, http: client.Client, alvo: Engine
) -> Iterator[tuple[Day, Outcome | EmptyPeriod]]:
    """Yield each day when it is done. An empty day does not stop the others; any other failure is raised."""
    with days.running(
        asked, options.variables, STATISTICS, http, alvo, options.days_at_once, options.dask or None
    ) as results:
        for each, result in results:
            if isinstance(result, Exception) and not isinstance(result, EmptyPeriod):
                raise result
            yield each, result


def _log(context: dg.OpExecutionContext, each: Day, done: Outcome | EmptyPeriod) -> None:
    if isinstance(done, EmptyPeriod):
        context.log.warning(f"{each.date} is empty: {done}; Alvo stays as it was")
    else:
        context.log.info(day.line(each, done))


@dg.multi_observable_source_asset(specs=[quality.FONTE])  # type: ignore[untyped-decorator]
def observe_fonte(fonte: dg.ResourceParam[FonteApi]) -> Iterator[dg.ObserveResult]:
    """Ask the connector for Fonte's period."""
    with fonte.connect() as http:
        yield dg.ObserveResult(asset_key=quality.FONTE.key, metadata=quality.held(resources.period(http)))


@dg.asset(
    key=quality.ASSET,
    deps=[quality.FONTE],
    group_name=quality.GROUP,
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.multi_run(DAYS_PER_RUN),
    check_specs=quality.SPECS,
    owners=quality.OWNERS,
    kinds={"python"},
    # The function yields one materialization per partition.
    output_required=False,
    pool=POOL,
)
def ten_minute_statistics(
    context: dg.AssetExecutionContext,
    config: Options,
    fonte: dg.ResourceParam[FonteApi],
    alvo: dg.ResourceParam[AlvoDatabase],
) -> Iterator[quality.Event | dg.AssetObservation | dg.Output[None]]:
    """Mean, minimum, maximum and standard deviation of 10 minutes, loaded into Alvo; a partition is a day."""
    keys = context.partition_key_range
    with connected(context.op_execution_context, fonte, alvo, config.days_at_once + 1) as (http, engine):
        try:
            yield dg.AssetObservation(quality.FONTE.key, metadata=quality.held(resources.period(http)))
        except FonteError as error:
            # The days do not need it, and counting many rows may take longer than a request.
            context.log.warning(f"the period of Fonte is not recorded: {error}")
        known = {name: each.unit for name, each in client.variables(http).items()}
        for each, done in _carried(_between(keys.start, keys.end), config, http, engine):
            _log(context.op_execution_context, each, done)
            if isinstance(done, EmptyPeriod):
                yield from quality.empty(context.instance, each, config.variables, done, engine)
            else:
                yield from quality.events(context.instance, each, done, engine, known)
    for spec in quality.SPECS:
        # Its evaluations are yielded above, one per partition.
        yield dg.Output(None, spec.get_python_identifier())


class Range(Options):
    """The configuration of the job `etl`."""

    start_date: str = Field("yesterday", description="first day: YYYY-MM-DD, today or yesterday")
    end_date: str = Field("yesterday", description="last day, inclusive: YYYY-MM-DD, today or yesterday")


@dg.op(pool=POOL)
def run_etl(
    context: dg.OpExecutionContext,
    config: Range,
    fonte: dg.ResourceParam[FonteApi],
    alvo: dg.ResourceParam[AlvoDatabase],
) -> None:
    """Load the days of a range, the last one included, as `python etl.py START_DATE END_DATE` does."""
    outcomes, empty = [], 0
    with connected(context, fonte, alvo, config.days_at_once) as (http, engine):
        for each, done in _carried(_between(config.start_date, config.end_date), config, http, engine):
            _log(context, each, done)
            if isinstance(done, EmptyPeriod):
                empty += 1
            else:
                outcomes.append(done)
    total = days.total(outcomes, empty)
    if not outcomes:
        raise EmptyPeriod(f"Fonte holds nothing of this range: {total}")
    context.log.info(total)
    context.add_output_metadata({"total": total})


YESTERDAY = dg.RunConfig(ops={"run_etl": Range()})  # type: ignore[call-arg]


@dg.job(name="etl", config=YESTERDAY)
def etl_job() -> None:
    """Load any range of days that the run configuration names; like `etl.py`, it changes no partition."""
    run_etl()


daily_job = dg.define_asset_job(
    "materialize_ten_minute_statistics",
    [ten_minute_statistics],
    description="Materializes partitions of ten_minute_statistics; the schedule `daily` runs it.",
)


@dg.schedule(
    job=daily_job,
    name="daily",
    cron_schedule=f"0 {HOUR} * * *",
    execution_timezone=ZONE.key,
    description=f"Every day at {HOUR:02}:00 in {ZONE.key}: the day before, and late ones of the last {LATE_DAYS}.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def daily_schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Request a run of the day before, and of each recent day that Alvo does not record as loaded and complete."""
    tick = context.scheduled_execution_time.astimezone(ZONE).date()
    yesterday = tick - timedelta(days=1)
    if yesterday < FIRST:
        yield dg.SkipReason(f"the first day that is a partition, {FIRST}, is not over yet")
        return
    yield _request(yesterday, str(yesterday))
    try:
        recent = list(days.between(max(FIRST, tick - timedelta(days=LATE_DAYS)), yesterday, ZONE))
        late = quality.late(AlvoDatabase(), recent[:-1])
    except DatabaseError as error:
        # The run of the day before tries again, and fails with the reason.
        context.log.warning(f"late days are not requested: {error}")
        return
    for each in late:
        yield _request(each, f"{each} on {tick}")


def _request(day: date, run_key: str) -> dg.RunRequest:
    """Request a run of a day; Dagster starts one run per key."""
    return dg.RunRequest(run_key, partition_key=str(day), tags={"dagster/partition": str(day)})


defs = dg.Definitions(
    assets=[observe_fonte, ten_minute_statistics, quality.ALVO],
    jobs=[daily_job, etl_job],
    schedules=[daily_schedule],
    resources={"fonte": resources.fonte, "alvo": resources.alvo},
    # A day takes less time than starting a process, and every run is a process already.
    executor=dg.in_process_executor,
)
