"""The aggregation beside other libraries, on the same samples in the same run."""

import numpy as np
import pytest

pytest.importorskip("polars", reason="the benchmarks need pip install '.[test,bench]'")
from candidates import CANDIDATES

# The number of rows, and the seconds between them.
SIZES = {"a day": (1440, 60), "a day at 1 Hz": (86_400, 1), "a year": (525_600, 60), "ten years": (5_256_000, 60)}


@pytest.fixture(params=["regular", "1 % missing"], scope="module")
def gaps(request):
    return request.param


@pytest.fixture(params=SIZES, scope="module")
def samples(request, gaps):
    """Timestamps and two columns."""
    random = np.random.default_rng(2024)
    count, interval_s = SIZES[request.param]
    timestamps = np.datetime64("2014-01-01", "us") + np.arange(count) * np.timedelta64(interval_s * 1_000_000, "us")
    columns = {"wind_speed": random.weibull(2, count) * 8.5, "power": random.uniform(0, 1900, count)}
    kept = random.random(count) >= (0.01 if gaps == "1 % missing" else 0)
    return request.param, timestamps[kept], {name: values[kept] for name, values in columns.items()}


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_aggregation(benchmark, samples, gaps, candidate):
    size, timestamps, columns = samples
    benchmark.group = f"aggregation of {size}, {gaps}"
    benchmark.name = candidate
    compute = CANDIDATES[candidate](timestamps, columns)
    benchmark.pedantic(compute, rounds=200 if size == "a day" else 9, warmup_rounds=2)
