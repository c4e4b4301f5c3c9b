"""What is read back of Alvo."""

from datetime import UTC, datetime, timedelta

import numpy as np

import etl
from alvo import screen
from alvo.aggregation import aggregate
from alvo.load import replace_period

START = datetime(2024, 5, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_what_was_loaded_is_read_as_it_was_aggregated(alvo_pool):
    timestamps = np.datetime64("2024-05-20", "us") + np.arange(60) * np.timedelta64(1, "m")
    power = np.where(np.arange(60) // 10 == 2, np.nan, np.arange(60.0))
    window_starts, signals = aggregate(timestamps, {"power": power, "wind_speed": power * 2})
    replace_period(alvo_pool, START, START + HOUR, window_starts, signals)
    read_starts, read_signals, not_finite = screen.values(alvo_pool, START, START + HOUR, [*signals, "unknown_mean"])
    np.testing.assert_array_equal(read_starts, window_starts)
    assert np.isnan(read_signals.pop("unknown_mean")).all()
    np.testing.assert_equal(read_signals, signals)
    assert not_finite == 0


def test_nothing_is_read_beyond_the_period(fonte_api, alvo_pool):
    assert etl.main(["2024-05-20"]) == 0
    starts, signals, _ = screen.values(alvo_pool, START + HOUR, START + 2 * HOUR, ["power_mean"])
    assert [str(starts[0]), str(starts[-1])] == ["2024-05-20T01:00:00.000000", "2024-05-20T01:50:00.000000"]
    assert len(signals["power_mean"]) == 6
