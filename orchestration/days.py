"""Runs many days in order, in this process or on Dask: one request fetches several days, each day loads separately.

The next request runs while orchestration.day aggregates and loads the days of the last one.
"""

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from itertools import islice
from time import monotonic, sleep
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from sqlalchemy import URL, Engine

from alvo.aggregation import WINDOW_S
from alvo.load import Report
from fonte.client import Client, FonteError, connect
from fonte_alvo import command, engine, settings
from fonte_alvo.command import Failure, clean
from fonte_alvo.settings import SettingsError
from orchestration import day as one
from orchestration.day import Day, EmptyPeriod, Names, Outcome, Samples

# Loads at once. Three take only 3 % less on two cores, and Alvo serves others too.
AT_ONCE = 2
PER_REQUEST = 10
# The target size of the arrays from one request. Ten days of 1-minute samples need far less; two days at 1 Hz fit.
REQUEST_BYTES = 4 * 2**20
CHECK_EVERY_S = 1
DASK_RETRIES = 2
DASK_TIMEOUT_S = 10
WORKER_LIMIT_S = 45
PROJECT, INSTALL = "fonte-alvo", "python -m pip install '.[dask]'"
LOST_SCHEDULER = "the Dask cluster lost its scheduler: start it again and add --resume"

Item = TypeVar("Item")
Made = TypeVar("Made")
Result = Outcome | Exception
Results = Generator[tuple[Day, Result], None, None]
Group = list[Day]
Extracted = Iterator[tuple[Day, Samples | Exception]]
InHand = Generator[tuple[Any, Future[Any]], None, None]
Stage = Callable[..., InHand]


class BadPeriod(Failure):
    """The asked period cannot be run."""

    exit_code = 2


class ClusterError(Failure):
    """The Dask cluster cannot be used, or lost a day more often than it retries."""


def between(first: date, last: date, zone: ZoneInfo) -> Iterator[Day]:
    """Yield the days from first to last in this zone. Raises BadPeriod."""
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
        if start < end:
            yield Day(day, zone.key, start, end)
        elif first == last:
            raise BadPeriod(f"{day} does not exist in {zone.key}: leave it out")


@dataclass
class Limit:
    """The most days per request: the smaller of asked (lowered after failures) and fitting (set by REQUEST_BYTES)."""

    asked: int
    fitting: int = 1000


def requests(days: Iterable[Day], limit: Limit) -> Iterator[Group]:
    """Group days that follow each other without a gap, each time as many as the limit then allows."""
    waiting = deque(days)
    while waiting:
        group, most = [waiting.popleft()], min(limit.asked, limit.fitting)
        while waiting and len(group) < most and waiting[0].start == group[-1].end:
            group.append(waiting.popleft())
        yield group


@contextmanager
def running(
    days: Iterable[Day],
    columns: Names,
    statistics: Names,
    fonte: Client,
    alvo: Engine,
    at_once: int = AT_ONCE,
    dask: str | None = None,
    per_request: int = PER_REQUEST,
) -> Iterator[Results]:
    """Run days with these connections, or on a Dask cluster; give an iterator over the results, in order.

    Each day comes with its outcome, or with the exception that ended it. When the context ends, no new day starts and
    running days finish; on Dask, running tasks finish all their days, and nobody waits for them. Raises ClusterError,
    and SettingsError where Dask cannot be used.
    """
    limit = Limit(per_request)
    groups = requests(days, limit)

    def fetched(groups: Iterable[Group], patience_s: float | None = None) -> InHand:
        return in_order(groups, partial(one.extract, fonte, columns, patience_s=patience_s), fetcher, 1)

    def load(extracted: tuple[Day, Samples]) -> Outcome:
        return one.run(fonte, alvo, extracted[0], columns, statistics, extracted[1])

    with _executor(dask, at_once) as (executor, check), ThreadPoolExecutor(1) as fetcher:
        if dask:
            carry = partial(_elsewhere, str(fonte.base_url), alvo.url, columns, statistics)
            results = _on_cluster(groups, lambda groups: in_order(groups, carry, executor, at_once, check))
        else:
            extracted = _extracted(groups, limit, fonte, fetched)
            # A loaded day is reported before the next request, which may take long.
            results = _here(extracted, lambda days: in_order(days, load, executor, at_once, ahead=False))
        with closing(results):
            yield results


def _here(extracted: Extracted, loaded: Stage) -> Results:
    """Load days in this process. If a fetch fails, finish the earlier days before starting any later one."""
    failed: list[tuple[Day, Exception]] = []

    def until_failure() -> Iterator[tuple[Day, Samples]]:
        for day, samples in extracted:
            if isinstance(samples, Exception):
                failed.append((day, samples))
                return
            yield day, samples

    while True:
        yield from ((day, _result(future)) for (day, _), future in loaded(until_failure()))
        if not failed:
            return
        yield failed.pop()


def _extracted(groups: Iterable[Group], limit: Limit, fonte: Client, fetched: Stage) -> Extracted:
    """Yield days with their samples; the next request is under way while those of the last one are loaded."""
    for group, answer in fetched(groups):
        samples = _result(answer)
        if isinstance(samples, FonteError) and len(group) > 1:
            # A single day may have caused the failure. Fetch each day separately, within the remaining patience.
            rest_s = fonte.rest_s()
            limit.asked = limit.asked if rest_s else len(group) // 2
            yield from _extracted(([day] for day in group), limit, fonte, partial(fetched, patience_s=rest_s))
        elif isinstance(samples, Exception):
            yield from ((day, samples) for day in group)
        else:
            most_bytes = max(day.timestamps.nbytes * (1 + len(day.values)) for day in samples)
            limit.fitting = max(1, REQUEST_BYTES // max(1, most_bytes))
            yield from zip(group, samples, strict=True)


def _on_cluster(groups: Iterable[Group], carried: Stage) -> Results:
    """Run days on a Dask cluster, one task per request; after a failed day, a new task runs the rest of its group."""
    for group, task in carried(groups):
        result = _result(task)
        results = result if isinstance(result, list) else [result]
        yield from zip(group, results, strict=False)
        if rest := group[len(results) :]:
            yield from _on_cluster([rest], carried)


def _elsewhere(base_url: str, alvo_url: URL, columns: Names, statistics: Names, group: Group) -> list[Result]:
    """Run the days of a request, up to the first failure, in another process with its own connections."""
    alvo = engine.create(alvo_url, "etl.py")
    results: list[Result] = []
    try:
        with connect(base_url) as fonte, running(group, columns, statistics, fonte, alvo, 1, None, len(group)) as days:
            for _, result in days:
                results.append(result)
                if isinstance(result, Exception) and not isinstance(result, EmptyPeriod):
                    break
    finally:
        alvo.dispose()
    return results


def in_order(
    items: Iterable[Item],
    carry: Callable[[Item], Made],
    executor: Executor,
    at_once: int,
    check: Callable[[], None] = lambda: None,
    ahead: bool = True,
) -> Generator[tuple[Item, Future[Made]], None, None]:
    """Carry items on an executor, at most at_once at the same time; yield each in order, with its finished future.

    check: called while an item takes long; it raises if the executor is lost. ahead: after an item that succeeded,
    start the next one before yielding it, not only when the caller asks for more. If the caller closes the iterator or
    raises, no new item starts, and running ones finish.
    """
    waiting = iter(items)
    running: deque[tuple[Item, Future[Made]]] = deque()

    def fill() -> None:
        running.extend((item, executor.submit(carry, item)) for item in islice(waiting, at_once - len(running)))

    try:
        fill()
        while running:
            while not wait([running[0][1]], CHECK_EVERY_S).done:
                check()
            done = running.popleft()
            if ahead and not (done[1].cancelled() or done[1].exception()):
                fill()
            yield done
            fill()
    finally:
        for _, future in running:
            future.cancel()


def _result(future: Future[Made]) -> Made | Exception:
    """Return the result of a finished future, or why it failed; a failure of Dask itself is a ClusterError."""
    try:
        return future.result()
    except CancelledError:
        return ClusterError(LOST_SCHEDULER)
    except Exception as error:
        if type(error).__module__.startswith("distributed"):
            return ClusterError(f"the Dask cluster failed: {clean(str(error))}; fix that and add --resume")
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
        # _check_versions reports different versions on one line instead.
        warnings.filterwarnings("ignore", module="distributed.client")
        client: Any = Client(dask, timeout=DASK_TIMEOUT_S)
    except (OSError, TypeError, ValueError) as error:
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
            lack = f"no worker of the Dask cluster at {address} has answered for {WORKER_LIMIT_S} s"
            raise ClusterError(f"{lack}: start one by python -m distributed.cli.dask_worker {address}")

    with client:
        _check_versions(client, check)
        cluster = client.get_executor(retries=DASK_RETRIES)
        yield cluster, check


def _check_versions(client: Any, check: Callable[[], None]) -> None:  # noqa: ANN401
    """Wait for a worker; raise ClusterError where the scheduler or a worker has other versions than this process."""
    command.notice("waiting for the Dask cluster to have a worker")
    found: dict[str, Any] = {}
    while True:
        check()
        # check() reports a scheduler that is lost or frozen.
        with suppress(OSError):
            found = client.sync(client._get_versions, packages=[PROJECT], callback_timeout=DASK_TIMEOUT_S)
        if found.get("workers"):
            break
        sleep(CHECK_EVERY_S)
    for where, there in {"its scheduler": found["scheduler"], **found["workers"]}.items():
        for name in ("python", "dask", "distributed", PROJECT):
            here, has = (str(each["packages"][name]) for each in (found["client"], there))
            # Python's patch version does not matter.
            parts = 2 if name == "python" else None
            if has.split(".")[:parts] != here.split(".")[:parts]:
                differ = f"{where} has {name} {has}, and this process {here}"
                raise ClusterError(f"the Dask cluster cannot run a day: {differ}; install the same on both: {INSTALL}")


def ranges(days: Sequence[Day]) -> list[tuple[date, date]]:
    """Join days that follow each other: the first and the last date of each run."""
    return [(group[0].date, group[-1].date) for group in requests(days, Limit(len(days), len(days)))]


def total(outcomes: Sequence[Outcome], empty: int, failed: int = 0, not_run: int = 0, left_out: int = 0) -> str:
    """Report many days together."""
    changed = Report(*(sum(getattr(outcome.report, name) for outcome in outcomes) for name in Report._fields))
    others = {"empty": empty, "failed": failed, "not run": not_run, "left out": left_out}
    rest = "".join(f", {days:,} {name}" for name, days in others.items() if days)
    loaded = command.count(len(outcomes), "day") + (f" loaded{rest}" if rest else "")
    return f"{loaded}: {one.changes(changed)}"
