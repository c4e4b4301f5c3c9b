"""Draw docs/accuracy.png, docs/kernel.png and docs/cost.png: `tox -e figures`, some ten minutes on a quiet machine."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import matplotlib as mpl
import numpy as np
from candidates import CANDIDATES
from matplotlib import pyplot
from support import reference
from vectors import make

from conftest import _computed, _windows

ROOT = Path(__file__).resolve().parents[1]
COMPARED = [name for name in CANDIDATES if not name.startswith("floor")]
ROWS = {"a day": 1440, "a year": 525_600, "ten years": 5_256_000}
YEARS = (1, 2, 5, 10)
# Runs a command and prints its peak memory, in a small process: a child's peak includes its parent's memory.
PEAK_KIB = """
import os, subprocess, sys
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid, 0)
assert status == 0
print(usage.ru_maxrss)
"""
# Larger errors are drawn at this value.
WORST_ULP = 1e17


def main() -> None:
    """Measure and draw."""
    mpl.use("agg")
    accuracy()
    kernel()
    cost()


def accuracy() -> None:
    """Draw each candidate's largest error of mean and std in each family."""
    families = {name: list(_windows(draw)) for name, draw in make.FAMILIES.items() if name != "one sample"}
    figure, axes = pyplot.subplots(figsize=(10, 0.4 * len(families) + 1.5), layout="constrained")
    for place, name in enumerate(COMPARED):
        errors = [_largest_error_ulp(CANDIDATES[name], windows) for windows in families.values()]
        heights = np.arange(len(families)) + 0.12 * (place - len(COMPARED) / 2)
        axes.plot(np.clip(errors, 0.1, WORST_ULP), heights, "o", label=name)
    axes.set(xscale="log", xlabel="largest error of mean and std, units in the last place; 0.5 is correctly rounded")
    axes.set_yticks(range(len(families)), list(families))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(ROOT / "docs/accuracy.png", dpi=130)


def _largest_error_ulp(candidate, windows) -> float:
    computed = _computed(candidate, windows)
    if isinstance(computed, str):
        return WORST_ULP
    exact = [(reference.mean(window), reference.std(window)) for window in windows]
    pairs = zip(computed, zip(*exact, strict=True), strict=True)
    return max(max(map(reference.error_ulp, map(float, values), truths)) for values, truths in pairs)


def kernel() -> None:
    """Draw the candidates' times, medians of seven, as multiples of ours."""
    random = np.random.default_rng(2024)
    figure, axes = pyplot.subplots(figsize=(10, 4), layout="constrained")
    for place, (size, rows) in enumerate(ROWS.items()):
        timestamps = np.datetime64("2014-01-01", "us") + np.arange(rows) * np.timedelta64(60_000_000, "us")
        columns = {"wind_speed": random.weibull(2, rows) * 8.5, "power": random.uniform(0, 1900, rows)}
        times = {name: _seconds(CANDIDATES[name](timestamps, columns)) for name in COMPARED}
        ours = times[COMPARED[0]]
        bars = axes.barh(
            np.arange(len(COMPARED)) + 0.27 * place, [each / ours for each in times.values()], 0.25, label=size
        )
        axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set(xlabel="time of the aggregation, as multiples of ours: more is slower")
    axes.set_yticks(np.arange(len(COMPARED)) + 0.27, COMPARED)
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(ROOT / "docs/kernel.png", dpi=130)


def _seconds(compute) -> float:
    compute()
    times = []
    for _ in range(7):
        began = perf_counter()
        compute()
        times.append(perf_counter() - began)
    return median(times)


def cost() -> None:
    """Draw seconds and peak memory of `etl.py` over ranges of one to ten years, each new to Alvo."""
    seconds, memory_mib, first = [], [], np.datetime64("2000-01-01")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        environment = os.environ | {"FONTE_ALVO_HOME": home}
        seed = [sys.executable, "seed.py", "--start", str(first), "--days", str(365 * sum(YEARS))]
        subprocess.run(seed, cwd=ROOT, env=environment, check=True)
        for years in YEARS:
            load = [sys.executable, "etl.py", str(first), str(first + 365 * years - 1)]
            first += 365 * years
            began = perf_counter()
            run = subprocess.run(
                [sys.executable, "-c", PEAK_KIB, *load], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True
            )
            seconds.append(perf_counter() - began)
            memory_mib.append(int(run.stdout) / 1024)
    figure, (above, below) = pyplot.subplots(2, figsize=(8, 6), sharex=True, layout="constrained")
    above.plot(YEARS, seconds, "o-")
    above.set(ylabel="seconds", title="etl.py over a range, the embedded services included")
    below.plot(YEARS, memory_mib, "o-")
    below.set(ylabel="peak memory in MiB", xlabel="years of two columns, one sample a minute")
    for axes, numbers in ((above, seconds), (below, memory_mib)):
        axes.grid(alpha=0.3)
        # Room for the number above the highest point.
        axes.set_ylim(0, 1.2 * max(numbers))
        for year, number in zip(YEARS, numbers, strict=True):
            axes.annotate(f"{number:.0f}", (year, number), xytext=(0, 8), textcoords="offset points", ha="center")
    figure.savefig(ROOT / "docs/cost.png", dpi=130)


if __name__ == "__main__":
    main()
