"""Ten days in Dagster, from the click to the end of the backfill, beside etl.py in the same checkout."""

import subprocess
import sys

import pytest

pytest.importorskip("dagster", reason="the benchmark of Dagster needs pip install '.[dagster]'")
from support.dagster_services import DAYS, backfill, environment


@pytest.mark.parametrize("candidate", ["etl.py", "Dagster, a backfill in one run"])
def test_ten_days(benchmark, clone, ask, candidate):
    benchmark.group = "ten days that Alvo holds already"
    benchmark.name = candidate
    if candidate == "etl.py":
        command = [sys.executable, "etl.py", DAYS[0], DAYS[-1]]
        how = {"cwd": clone, "env": environment(), "check": True}
        benchmark.pedantic(subprocess.run, [command], how, rounds=5, warmup_rounds=1)
        return
    done = benchmark.pedantic(backfill, [ask], rounds=1)
    (run,) = done["runs"]
    benchmark.extra_info["seconds of the run itself"] = round(run["endTime"] - run["startTime"], 1)
