"""Many days, each carried on its own: in order, some at once, and stoppable at any moment."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from typing import NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from settings import SettingsError

WINDOW = timedelta(minutes=10)
CHECK_EVERY_S = 1
DASK_RETRIES = 2
DASK_TIMEOUT_S = 10
LOST_SCHEDULER = "the Dask cluster lost its scheduler: start it again and add --resume"

Outcome = TypeVar("Outcome")


class BadPeriod(Exception):
    """The asked period cannot be run."""


class ClusterError(Exception):
    """The Dask cluster cannot be used, or lost a day more often than it tries."""


class Period(NamedTuple):
    """One day: its date and zone, and its half-open period in UTC."""

    day: date
    zone: str
    start: datetime
    end: datetime


def days(first: date, last: date, zone: ZoneInfo) -> Iterator[Period]:
    """Yield the days from first to last as the zone has them. Raises BadPeriod."""
    if last < first:
        raise BadPeriod(f"the range ends on {last}, before it begins on {first}: put the earlier date first")
    today = datetime.now(zone).date()
    if last > today:
        raise BadPeriod(f"{last} is in the future: the last day that can be run is today, {today} in {zone.key}")
    for number in range(first.toordinal(), last.toordinal() + 1):
        day = date.fromordinal(number)
        bounds = [datetime.combine(midnight, time(), zone) for midnight in (day, day + timedelta(days=1))]
        if any((bound.utcoffset() or timedelta()) % WINDOW for bound in bounds):
            raise BadPeriod(f"{day} in {zone.key} does not begin and end on a 10-minute boundary: choose another zone")
        try:
            start, end = (bound.astimezone(UTC) for bound in bounds)
        except OverflowError:
            raise BadPeriod(f"{day} in {zone.key} begins before the year 1 in UTC: choose a later day") from None
        if start == end:
            if first == last:
                raise BadPeriod(f"{day} does not exist in {zone.key}: leave it out")
            continue
        yield Period(day, zone.key, start, end)


def run(
    periods: Iterable[Period],
    carry: Callable[[Period], Outcome],
    executor: Executor,
    at_once: int,
    check: Callable[[], None] = lambda: None,
) -> Generator[tuple[Period, Future[Outcome]], None, None]:
    """Carry periods on an executor, at most at_once of them in hand; yield each in order, with its finished future.

    check is called while a period takes long, and raises where the executor is lost. Who stops early, by closing the
    iterator or an exception, starts no more; the executor finishes those in hand.
    """
    waiting = iter(periods)
    in_hand = deque((period, executor.submit(carry, period)) for period in islice(waiting, at_once))
    try:
        while in_hand:
            while not wait([in_hand[0][1]], CHECK_EVERY_S).done:
                check()
            in_hand.extend((period, executor.submit(carry, period)) for period in islice(waiting, 1))
            yield in_hand.popleft()
    finally:
        for _, future in in_hand:
            future.cancel()


def ranges(periods: Iterable[Period]) -> list[tuple[date, date]]:
    """Join days that follow each other: the first and the last day of each run."""
    joined: list[tuple[date, date]] = []
    for period in periods:
        if joined and period.day - joined[-1][1] == timedelta(days=1):
            joined[-1] = joined[-1][0], period.day
        else:
            joined.append((period.day, period.day))
    return joined


def failure(future: Future[Outcome]) -> Exception | None:
    """Return why a finished period failed, if it did; what Dask says of its cluster becomes a ClusterError."""
    try:
        error = future.exception()
    except CancelledError:
        return ClusterError(LOST_SCHEDULER)
    if type(error).__module__.startswith("distributed"):
        return ClusterError(f"the Dask cluster failed: {' '.join(str(error).split())}; mend it and add --resume")
    assert error is None or isinstance(error, Exception)
    return error


@contextmanager
def executor(dask: str | None, at_once: int) -> Iterator[tuple[Executor, Callable[[], None]]]:
    """Give what carries the periods, threads or the Dask cluster of this scheduler, and run's check for it.

    Raises ClusterError, and SettingsError where Dask is not installed.
    """
    if dask is None:
        with ThreadPoolExecutor(at_once) as threads:
            yield threads, lambda: None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise SettingsError("Dask needs the package distributed: python -m pip install '.[dask]'") from error
    try:
        client = Client(dask, timeout=DASK_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler answers at {dask}: {error}; start it, or correct its address") from error

    def check() -> None:
        if client.status in ("closing", "closed"):
            raise ClusterError(LOST_SCHEDULER)

    with client:
        cluster = client.get_executor(retries=DASK_RETRIES)
        yield cluster, check
        if client.status == "running":
            cluster.shutdown()
