"""The load beside the usual way: each file whole into pandas, then to_sql(method="multi").

python benchmarks/compare.py [TIMES] [--rounds N] [--against CHECKOUT]: loads TIMES copies of the sample, with distinct
keys; with CHECKOUT, compares with that checkout instead of pandas.
Each way runs in a separate process, reads the same objects from moto's S3, and writes to the same embedded PostgreSQL.
Time runs from the first request to the last commit, without imports; memory is the process's peak. to_sql does less:
its tables have no key, no check and no rejects, and its money is a float.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import text

from adventureworks import handler, model, settings
from fonte_alvo import embedded, engine
from local import cloud

KEYS = {"BusinessEntityID", "PersonID", "CustomerID", "SalesOrderID", "ProductID", "SpecialOfferID"}
# More rows per INSERT need more memory, and no less time.
ROWS_PER_INSERT = 1000


class Hours:
    """A context of Lambda with time left."""

    def get_remaining_time_in_millis(self):
        return 7_200_000


def ours():
    handler.lambda_handler({}, Hours())


def empty():
    """Drop what the round before loaded."""
    with engine.create(settings.database_url(), "empty").begin() as connection:
        for schema in {table.schema for table in model.metadata.tables.values()}:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))


def pandas_to_sql():
    import boto3
    import pandas

    s3, pool = boto3.client("s3"), engine.create(settings.database_url(), "to_sql", time_limit_s=7200)
    for file in model.TABLES:
        body = s3.get_object(Bucket=cloud.BUCKET, Key=handler.key(settings.source(), file))["Body"].read()
        frame = pandas.read_csv(io.BytesIO(body), sep=";", encoding="utf-8-sig", na_values=["NULL"], decimal=",")
        frame.to_sql(
            file, pool, schema="public", if_exists="replace", index=False, method="multi", chunksize=ROWS_PER_INSERT
        )


WAYS = {"ours": (empty, ours), "again": (lambda: None, ours), "pandas": (lambda: __import__("pandas"), pandas_to_sql)}


def blown_up(file, times):
    """The sample's rows that many times, the keys of each copy a million higher."""
    header, *rows = cloud.sample(file).decode("utf-8-sig").split("\r\n")
    keys = [number for number, name in enumerate(header.split(";")) if name in KEYS]
    copies = [header]
    for copy in range(times):
        for row in rows[:-1]:
            fields = row.split(";")
            for key in keys:
                if fields[key] != "NULL":
                    fields[key] = str(int(fields[key]) + copy * 1_000_000)
            copies.append(";".join(fields))
    return ("\ufeff" + "\r\n".join([*copies, ""])).encode()


def measured(way, environment, script):
    """(seconds, MiB) of one way."""
    command = [sys.executable, str(script), "--way", way]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def compared(times, rounds, against):
    with tempfile.TemporaryDirectory() as folder:
        database = embedded.url("postgres", Path(folder) / "embedded")
        url = database.render_as_string(hide_password=False)
        cloud.forget_settings()
        with cloud.running(url) as running:
            cloud.fill(running.s3_url)
            s3, size = cloud.client("s3", running.s3_url), 0
            for file in model.TABLES:
                body = blown_up(file, times)
                size += len(body)
                s3.put_object(Bucket=cloud.BUCKET, Key=handler.key(settings.Source(cloud.BUCKET, ""), file), Body=body)
            environment = (
                os.environ | cloud.environment(running.s3_url, url) | {"PYTHONPATH": os.pathsep.join(sys.path)}
            )
            print(f"{times} times the sample, {size / 2**20:.1f} MiB", flush=True)
            ways = [("ours", "ours", environment, __file__), ("ours again", "again", environment, __file__)]
            if against:
                there = against.resolve() / "pipelines/adventureworks"
                script, paths = there / "benchmarks/compare.py", f"{there}{os.pathsep}{there.parents[1]}"
                older = environment | {"PYTHONPATH": paths}
                ways += [(f"{against.name} {way}", way, older, script) for way in ("ours", "again")]
            else:
                ways.append(("pandas and to_sql", "pandas", environment, __file__))
            # In turns, so that other work of the machine slows all of them.
            taken = {label: [] for label, *_ in ways}
            for _ in range(rounds):
                for label, way, variables, script in ways:
                    taken[label].append(measured(way, variables, script))
            for label, (seconds, mebibytes) in {label: min(each) for label, each in taken.items()}.items():
                ratio = seconds / min(taken["ours"])[0]
                print(f"  {label:22} {seconds:8.1f} s  {ratio:6.1f} times ours  {mebibytes:6.0f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=int, nargs="?", default=1)
    parser.add_argument("--rounds", type=int, default=1, help="rounds; the fastest counts (default: %(default)s)")
    parser.add_argument(
        "--against", type=Path, help="another checkout of the project, such as an older commit's, instead of pandas"
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.way:
        compared(options.times, options.rounds, options.against)
        return
    prepare, run = WAYS[options.way]
    prepare()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    # Not getrusage: it counts what the parent held when it made this process.
    peak_kib = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    print(json.dumps([seconds, peak_kib / 1024]))


if __name__ == "__main__":
    main()
