"""An Alvo with two days of two signals."""

from datetime import UTC, datetime, timedelta

import numpy as np

from alvo.load import replace_period
from fonte_alvo import engine

START = datetime(2024, 5, 20, tzinfo=UTC)
WINDOWS = np.datetime64("2024-05-20", "us") + np.arange(288) * np.timedelta64(600_000_000, "us")
WRITTEN = {"power_mean": np.arange(288.0), "power_std": np.where(np.arange(288) % 7, 0.1, np.nan)}


def fill(pool):
    replace_period(pool, START, START + timedelta(days=2), WINDOWS, WRITTEN)


def filled(url):
    pool = engine.create(url, "test")
    fill(pool)
    pool.dispose()
    return url
