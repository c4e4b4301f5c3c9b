"""Many days, each carried separately: in order, several at once, over any executor, and stoppable at any moment."""

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from itertools import islice
from time import monotonic, sleep
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from sqlalchemy import URL, Engine

from alvo.aggregation import WINDOW_S
from alvo.load import Report
from fonte.client import Client, connect
from fonte_alvo import command, engine, settings
from fonte_alvo.command import Failure, clean
from fonte_alvo.settings import SettingsError
from orchestration import day as one
from orchestration.day import Day, Outcome

# So that one day is fetched while the one before it is loaded.
AT_ONCE = 2
CHECK_EVERY_S = 1
DASK_RETRIES = 2
DASK_TIMEOUT_S = 10
WORKER_LIMIT_S = 45
PROJECT, INSTALL = "fonte-alvo", "python -m pip install '.[dask]'"
LOST_SCHEDULER = "the Dask cluster lost its scheduler: start it again and add --resume"

Result = TypeVar("Result")


class BadPeriod(Failure):
    """The asked period cannot be run."""

    exit_code = 2


class ClusterError(Failure):
    """The Dask cluster cannot be used, or lost a day more often than it tries."""


def between(first: date, last: date, zone: ZoneInfo) -> Iterator[Day]:
    """Yield the days from first to last as the zone has them. Raises BadPeriod."""
    if last < first:
        raise BadPeriod(f"the range ends on {last}, before it begins on {first}: put the earlier date first")
    today = datetime.now(zone).date()
    if last > today:
        raise BadPeriod(f"{last} is in the future: the last day that can be run is today, {today} in {zone.key}")
    for number in range(first.toordinal(), last.toordinal() + 1):
        day = date.fromordinal(number)
        bounds = [datetime.combine(midnight, time(), zone) for midnight in (day, day + timedelta(days=1))]
        if any((bound.utcoffset() or timedelta()) % timedelta(seconds=WINDOW_S) for bound in bounds):
            raise BadPeriod(f"{day} in {zone.key} does not begin and end on a 10-minute boundary: choose another zone")
        try:
            start, end = (bound.astimezone(UTC) for bound in bounds)
        except OverflowError:
            raise BadPeriod(f"{day} in {zone.key} begins before the year 1 in UTC: choose a later day") from None
        if start == end:
            if first == last:
                raise BadPeriod(f"{day} does not exist in {zone.key}: leave it out")
            continue
        yield Day(day, zone.key, start, end)


@contextmanager
def running(
    days: Sequence[Day],
    columns: Sequence[str],
    statistics: Sequence[str],
    fonte: Client,
    alvo: Engine,
    at_once: int = AT_ONCE,
    dask: str | None = None,
) -> Iterator[Iterator[tuple[Day, Outcome | Exception]]]:
    """Carry days with these connections, or on the Dask cluster of a scheduler; give an iterator over them, in order.

    Each day comes with its outcome, or with the exception that ended it. When the context ends, no new day starts and
    running days finish. Raises ClusterError, and SettingsError where Dask cannot be used.
    """

    def here(day: Day) -> Outcome:
        return one.run(fonte, alvo, day, columns, statistics)

    carry = partial(_elsewhere, str(fonte.base_url), alvo.url, columns, statistics) if dask else here
    with _executor(dask, at_once) as (executor, check):
        with closing(in_order(days, carry, executor, at_once, check)) as results:
            yield ((day, _result(future)) for day, future in results)


def _elsewhere(base_url: str, alvo_url: URL, columns: Sequence[str], statistics: Sequence[str], day: Day) -> Outcome:
    """Carry a day in another process, on another machine perhaps, with connections that it makes itself."""
    alvo = engine.create(alvo_url, "etl.py")
    try:
        with connect(base_url) as fonte:
            return one.run(fonte, alvo, day, columns, statistics)
    finally:
        alvo.dispose()


def in_order(
    days: Iterable[Day],
    carry: Callable[[Day], Result],
    executor: Executor,
    at_once: int,
    check: Callable[[], None] = lambda: None,
) -> Generator[tuple[Day, Future[Result]], None, None]:
    """Carry days on an executor, at most at_once at the same time; yield each in order, with its finished future.

    check is called while a day takes long, and raises where the executor is lost. If the caller stops early, by closing
    the iterator or by an exception, no new day starts; running days finish.
    """
    waiting = iter(days)
    running = deque((day, executor.submit(carry, day)) for day in islice(waiting, at_once))
    try:
        while running:
            while not wait([running[0][1]], CHECK_EVERY_S).done:
                check()
            running.extend((day, executor.submit(carry, day)) for day in islice(waiting, 1))
            yield running.popleft()
    finally:
        for _, future in running:
            future.cancel()


def _result(future: Future[Outcome]) -> Outcome | Exception:
    """Return the outcome of a finished day, or why it failed; a failure of Dask itself is a ClusterError."""
    try:
        return future.result()
    except CancelledError:
        return ClusterError(LOST_SCHEDULER)
    except Exception as error:
        if type(error).__module__.startswith("distributed"):
            return ClusterError(f"the Dask cluster failed: {clean(str(error))}; mend it and add --resume")
        return error


@contextmanager
def _executor(dask: str | None, at_once: int) -> Iterator[tuple[Executor, Callable[[], None]]]:
    """Give an executor, threads or the Dask cluster of this scheduler, and in_order's check for it."""
    if dask is None:
        with ThreadPoolExecutor(at_once) as threads:
            yield threads, lambda: None
        return
    if not settings.services_are_external():
        raise SettingsError("Dask needs FONTE_API_URL and ALVO_DATABASE_URL: its workers cannot reach this process")
    from distributed import Client

    address = clean(dask)
    try:
        # Of versions that differ it warns in a table.
        warnings.filterwarnings("ignore", module="distributed.client")
        client: Any = Client(dask, timeout=DASK_TIMEOUT_S)
    except (OSError, ValueError) as error:
        said = f"no Dask scheduler answers at {address}: {clean(str(error))}"
        raise ClusterError(f"{said}; start it, or correct its address") from error
    seen_at = monotonic()

    def check() -> None:
        nonlocal seen_at
        if client.status in ("closing", "closed"):
            raise ClusterError(LOST_SCHEDULER)
        with suppress(OSError):
            if client.sync(client.scheduler.ncores, callback_timeout=DASK_TIMEOUT_S):
                seen_at = monotonic()
        if monotonic() - seen_at > WORKER_LIMIT_S:
            lack = f"no worker of the Dask cluster at {address} answers for {WORKER_LIMIT_S} s"
            raise ClusterError(f"{lack}: start one by python -m distributed.cli.dask_worker {address}")

    with client:
        _check_versions(client, check)
        cluster = client.get_executor(retries=DASK_RETRIES)
        yield cluster, check
        if client.status == "running":
            cluster.shutdown()


def _check_versions(client: Any, check: Callable[[], None]) -> None:  # noqa: ANN401
    """Wait for a worker; raise ClusterError where the scheduler or a worker has other versions than this process."""
    command.notice("waiting for the Dask cluster to have a worker")
    while not (found := client.get_versions(packages=[PROJECT]))["workers"]:
        check()
        sleep(CHECK_EVERY_S)
    for where, there in {"its scheduler": found["scheduler"], **found["workers"]}.items():
        for name in ("python", "dask", "distributed", PROJECT):
            here, has = (str(each["packages"][name]) for each in (found["client"], there))
            # Python's third number does not matter, nor what follows it.
            parts = 2 if name == "python" else None
            if has.split(".")[:parts] != here.split(".")[:parts]:
                differ = f"{where} has {name} {has}, and this process {here}"
                raise ClusterError(f"the Dask cluster cannot run a day: {differ}; install the same on both: {INSTALL}")


def ranges(days: Iterable[Day]) -> list[tuple[date, date]]:
    """Join days that follow each other: the first and the last date of each run."""
    joined: list[tuple[date, date]] = []
    for day in days:
        if joined and day.date - joined[-1][1] == timedelta(days=1):
            joined[-1] = joined[-1][0], day.date
        else:
            joined.append((day.date, day.date))
    return joined


def total(outcomes: Sequence[Outcome], empty: int = 0, failed: int = 0, left_out: int = 0) -> str:
    """Report many days together."""
    sums = [sum(numbers) for numbers in zip(*(outcome.report for outcome in outcomes), strict=True)]
    others = {"empty": empty, "failed": failed, "left out": left_out}
    rest = "".join(f", {days:,} {name}" for name, days in others.items() if days)
    loaded = command.count(len(outcomes), "day") + (f" loaded{rest}" if rest else "")
    return f"{loaded}: {one.changes(Report(*sums) if sums else Report(0, 0, 0))}"
