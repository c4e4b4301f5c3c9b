"""Other libraries for the same job: mean, min, max and std of 10-minute windows of some columns."""

import duckdb
import numpy as np
import pandas
import polars

from alvo.aggregation import aggregate

STATISTICS = ["mean", "min", "max", "std"]


def with_fonte_alvo(timestamps, columns):
    return lambda: aggregate(timestamps, columns)


def with_pandas(timestamps, columns):
    frame = pandas.DataFrame(columns, index=timestamps)
    return lambda: frame.resample("10min").agg(STATISTICS)


def with_polars(timestamps, columns):
    frame = polars.DataFrame({"timestamp": timestamps, **columns})
    wanted = [(name, statistic) for name in columns for statistic in STATISTICS]
    results = [getattr(polars.col(name), statistic)().alias(f"{name}_{statistic}") for name, statistic in wanted]
    return lambda: frame.group_by_dynamic("timestamp", every="10m").agg(results)


def with_duckdb(timestamps, columns):
    connection = duckdb.connect()
    connection.register("given", pandas.DataFrame({"timestamp": timestamps, **columns}))
    connection.execute("CREATE TABLE samples AS SELECT * FROM given")
    results = ", ".join(f"avg({name}), min({name}), max({name}), stddev_samp({name})" for name in columns)
    start = "time_bucket(INTERVAL '10 minutes', timestamp)"
    query = f"SELECT {start}, {results} FROM samples GROUP BY 1 ORDER BY 1"
    return lambda: connection.execute(query).fetchnumpy()


def with_numpy_two_pass(timestamps, columns):
    def compute():
        windows = timestamps.view(np.int64) // 600_000_000
        edges = np.flatnonzero(np.diff(windows, prepend=windows[0] - 1))
        counts = np.diff(edges, append=len(windows))
        results = {}
        for name, values in columns.items():
            mean = np.add.reduceat(values, edges) / counts
            squares = np.add.reduceat((values - np.repeat(mean, counts)) ** 2, edges)
            results[name] = (
                mean,
                np.minimum.reduceat(values, edges),
                np.maximum.reduceat(values, edges),
                np.sqrt(squares / np.maximum(counts - 1, 1)),
            )
        return results

    return compute


def reading_the_bytes_once(timestamps, columns):
    return lambda: (timestamps.view(np.int64).sum(), [values.sum() for values in columns.values()])


CANDIDATES = {
    "fonte-alvo": with_fonte_alvo,
    "pandas": with_pandas,
    "polars": with_polars,
    "duckdb": with_duckdb,
    "numpy, two passes": with_numpy_two_pass,
    "floor: one read of the bytes": reading_the_bytes_once,
}
