"""Skips the benchmarks by default, and prints the candidates' accuracy below their speed."""

import sys
from pathlib import Path

import numpy as np
import pytest

# Pytest's import mode does not add a test's folder to the path.
sys.path.append(str(Path(__file__).parent))


def pytest_collection_modifyitems(items, config):
    """Skip early: pytest-benchmark alone would first make the servers and years of data."""
    if not config.getoption("benchmark_only"):
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="a benchmark: pytest --benchmark-only"))


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("benchmark_only"):
        return
    for measured in config._benchmarksession.benchmarks:
        for figure, value in measured.extra_info.items():
            terminalreporter.write_line(f"{measured.group}, {measured.name}: {figure} {value}")
    _accuracy(terminalreporter)


def _accuracy(terminalreporter):
    try:
        from candidates import CANDIDATES
    except ImportError:
        return
    from support import reference
    from vectors import make

    compared = [name for name in CANDIDATES if not name.startswith("floor")]
    terminalreporter.section("largest error of mean / std, in units in the last place (0.5 is correctly rounded)")
    terminalreporter.write_line(f"{'family':38}" + "".join(f"{name:>22}" for name in compared))
    for family, draw in make.FAMILIES.items():
        if family == "one sample":
            continue
        windows = list(_windows(draw))
        exact = [(reference.mean(window), reference.std(window)) for window in windows]
        cells = [_cell(_computed(CANDIDATES[name], windows), exact) for name in compared]
        terminalreporter.write_line(f"{family:38}" + "".join(f"{cell:>22}" for cell in cells))


def _windows(draw, count=400):
    import random

    generator = random.Random(2024)
    for _ in range(count):
        yield draw(generator)


def _computed(candidate, windows):
    """Mean and std of every window from one call of a candidate; the error's text if it fails."""
    starts = np.datetime64("2024-01-01", "us") + np.arange(len(windows)) * np.timedelta64(600_000_000, "us")
    timestamps = np.concatenate(
        [start + np.arange(len(window)) * np.timedelta64(1, "s") for start, window in zip(starts, windows, strict=True)]
    ).astype("datetime64[us]")
    try:
        with np.errstate(all="ignore"):
            result = candidate(timestamps, {"v": np.concatenate(windows)})()
    except Exception as error:
        return str(error)
    if isinstance(result, tuple):
        return result[1]["v_mean"], result[1]["v_std"]
    if isinstance(result, dict):
        columns = list(result.values())
        return (columns[0][0], columns[0][3]) if len(columns) == 1 else (columns[1], columns[4])
    if hasattr(result, "to_numpy") and hasattr(result, "iloc"):
        return result["v", "mean"].to_numpy(), result["v", "std"].to_numpy()
    return result["v_mean"].to_numpy(), result["v_std"].to_numpy()


def _cell(computed, exact):
    from support import reference

    if isinstance(computed, str):
        return "error"
    worst = []
    for values, truths in zip(computed, zip(*exact, strict=True), strict=True):
        error = max(map(reference.error_ulp, map(float, values), truths))
        worst.append(f"{error:.3g}" if error < 1e17 else "wrong")
    return " / ".join(worst)
