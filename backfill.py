"""Many days, each carried on its own: in order, some at once, and stoppable at any moment."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from typing import NamedTuple, TypeVar
from zoneinfo import ZoneInfo

WINDOW = timedelta(minutes=10)
CHECK_EVERY_S = 1

Outcome = TypeVar("Outcome")


class BadPeriod(Exception):
    """The asked period cannot be run."""


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
