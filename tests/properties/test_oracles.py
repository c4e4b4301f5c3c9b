"""The aggregation agrees with NumPy, pandas and PostgreSQL where they are accurate, and with the vectors."""

import json
import math
from datetime import UTC

import numpy as np
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sqlalchemy import text
from support import reference
from vectors import make

from alvo.aggregation import aggregate

START = np.datetime64("2024-05-20T00:00:00", "us")
STATISTICS = ("mean", "min", "max", "std")
VECTORS = [json.loads(line) for line in make.FILE.read_text().splitlines()]
# With values of one magnitude and no large offset, the others lose only a few of their 16 digits.
RELATIVE, ABSOLUTE = 1e-9, 1e-9


@st.composite
def tame_samples(draw):
    """Ascending seconds with gaps, and finite values like those of a sensor."""
    seconds = sorted(draw(st.sets(st.integers(0, 7199), min_size=1, max_size=80)))
    values = draw(
        hnp.arrays(np.float64, len(seconds), elements=st.floats(-100, 100).map(lambda value: round(value, 3)))
    )
    return START + np.array(seconds, dtype="timedelta64[s]"), values


def computed(timestamps, values):
    window_starts, signals = aggregate(timestamps, {"v": values})
    return window_starts.tolist(), {statistic: signals[f"v_{statistic}"] for statistic in STATISTICS}


def assert_agree(ours, theirs):
    for statistic in STATISTICS:
        exact = statistic in ("min", "max")
        np.testing.assert_allclose(
            ours[statistic], theirs[statistic], rtol=0 if exact else RELATIVE, atol=0 if exact else ABSOLUTE
        )


@given(samples=tame_samples())
def test_numpy_agrees_window_by_window(samples):
    timestamps, values = samples
    starts, ours = computed(timestamps, values)
    windows = [
        values[(timestamps >= start) & (timestamps < start + np.timedelta64(600, "s"))]
        for start in map(np.datetime64, starts)
    ]
    theirs = {
        "mean": [np.mean(window) for window in windows],
        "min": [np.min(window) for window in windows],
        "max": [np.max(window) for window in windows],
        "std": [np.std(window, ddof=1) if len(window) > 1 else math.nan for window in windows],
    }
    assert_agree(ours, theirs)


@given(samples=tame_samples())
def test_pandas_agrees(samples):
    timestamps, values = samples
    starts, ours = computed(timestamps, values)
    frame = pandas.Series(values, index=timestamps).resample("10min").agg(list(STATISTICS))
    frame = frame[frame["mean"].notna()]
    assert frame.index.to_pydatetime().tolist() == starts
    assert_agree(ours, frame)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=tame_samples())
def test_postgresql_agrees(administrator, samples):
    timestamps, values = samples
    starts, ours = computed(timestamps, values)
    query = text("""
        SELECT date_bin('10 minutes', moment, TIMESTAMPTZ '1970-01-01Z') AS start,
            avg(value) AS mean, min(value), max(value), stddev_samp(value) AS std
        FROM unnest(CAST(:moments AS timestamptz[]), CAST(:values AS float8[])) AS sample (moment, value)
        GROUP BY 1 ORDER BY 1
    """)
    moments = [moment.replace(tzinfo=UTC) for moment in timestamps.tolist()]
    with administrator.connect() as connection:
        rows = connection.execute(query, {"moments": moments, "values": values.tolist()}).all()
    assert [row.start.astimezone(UTC).replace(tzinfo=None) for row in rows] == starts
    theirs = {
        statistic: [math.nan if (v := getattr(row, statistic)) is None else v for row in rows]
        for statistic in STATISTICS
    }
    assert_agree(ours, theirs)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["family"])
def test_aggregation_reproduces_the_vectors(vector):
    window = [float.fromhex(value) for value in vector["window"]]
    timestamps = START + np.arange(len(window)) * np.timedelta64(1, "s")
    _, ours = computed(timestamps, np.array(window))
    for statistic in ("mean", "min", "max"):
        assert ours[statistic][0].item().hex() == vector[statistic]
    assert math.isnan(ours["std"][0]) == ("std" not in vector)
    if len(window) > 1:
        assert reference.error_ulp(ours["std"][0].item(), reference.std(window)) <= 1


def test_the_script_reproduces_the_file_of_vectors():
    assert make.FILE.read_text() == make.lines()
