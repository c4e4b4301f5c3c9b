"""Dagster's partitions: the days from DAGSTER_START_DATE on in DAGSTER_TIMEZONE; no service is asked."""

from argparse import ArgumentTypeError
from datetime import date, datetime
from zoneinfo import ZoneInfo

import dagster as dg

from fonte_alvo import command, settings
from fonte_alvo.settings import SettingsError
from orchestration import days
from orchestration.days import BadPeriod

# Where seed.py starts.
START = date(2024, 5, 20)


def zone() -> ZoneInfo:
    """Return the zone whose days are partitions. Raises SettingsError."""
    try:
        chosen = command.zone(settings.dagster_timezone())
        today = datetime.now(chosen).date()
        # Otherwise each run would refuse a zone whose days begin within a window.
        list(days.between(today, today, chosen))
        return chosen
    except (ArgumentTypeError, BadPeriod) as error:
        raise SettingsError(f"DAGSTER_TIMEZONE: {error}") from None


def start() -> date:
    """Return the first day that is a partition. Raises SettingsError."""
    given = settings.dagster_start_date()
    try:
        return date.fromisoformat(given) if given else START
    except ValueError:
        raise SettingsError(f"DAGSTER_START_DATE is {given!r}, not a date: expected YYYY-MM-DD") from None


ZONE = zone()
FIRST = start()
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST.isoformat(), timezone=ZONE.key)
# At 06:00 UTC it is 03:00 in Sao Paulo. A site's local day is loaded at 03:00 local time.
HOUR = 6 if ZONE.key == "UTC" else 3
