"""The aggregation beside pandas' resample, on the same samples in the same run."""

import numpy as np
import pytest

from alvo.aggregation import aggregate

pandas = pytest.importorskip("pandas", reason="the benchmarks need pip install '.[bench]'")

SIZES = {"a day": 1440, "a year": 525_600}
STATISTICS = ["mean", "min", "max", "std"]


@pytest.fixture(params=["regular", "1 % missing"])
def gaps(request):
    return request.param


@pytest.fixture(params=SIZES)
def samples(request, gaps):
    """Timestamps and two columns, one sample a minute."""
    random = np.random.default_rng(2024)
    count = SIZES[request.param]
    timestamps = np.datetime64("2024-01-01", "us") + np.arange(count) * np.timedelta64(60_000_000, "us")
    columns = {"wind_speed": random.weibull(2, count) * 8.5, "power": random.uniform(0, 1900, count)}
    kept = random.random(count) >= (0.01 if gaps == "1 % missing" else 0)
    return request.param, timestamps[kept], {name: values[kept] for name, values in columns.items()}


@pytest.mark.parametrize("candidate", ["fonte-alvo", "pandas"])
def test_aggregation(benchmark, samples, gaps, candidate):
    size, timestamps, columns = samples
    benchmark.group = f"aggregation of {size}, {gaps}"
    if candidate == "pandas":
        frame = pandas.DataFrame(columns, index=timestamps)
        benchmark(lambda: frame.resample("10min").agg(STATISTICS))
    else:
        benchmark(aggregate, timestamps, columns)
