"""Run the whole pipeline on this machine: fill S3, invoke the function from Airflow's DAG, answer the questions.

The embedded PostgreSQL keeps its rows in .embedded: `python -m adventureworks.questions` asks again. S3 (moto), Lambda
(AWS's runtime) and Airflow leave nothing behind. With --airflow, you run the DAG by hand on Airflow's page. Exit codes:
0 done, 1 the DAG or Airflow failed, 2 a setting cannot be used, 4 the database failed, 6 standard output cannot be
written, 141 the reader of its pipe is gone.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

from adventureworks import questions, settings
from fonte_alvo import command
from local import airflow, cloud, lambda_service


def main() -> int:
    """Run the command; returns its exit code."""
    parser = command.Parser(prog="run.py", description=__doc__)
    parser.add_argument("--airflow", metavar="HOST:PORT", help="serve Airflow's page there until SIGTERM or Ctrl-C")
    place = parser.parse_args().airflow
    if place and not re.fullmatch(r".+:[0-9]{1,5}", place):
        parser.error(f"argument --airflow: {place!r}: expected HOST:PORT, such as 127.0.0.1:8080")
    return command.run("run.py", lambda: _run(place))


def _run(place: str | None) -> int:
    command.notice("starting PostgreSQL")
    database = settings.database_url(or_embedded=True)
    cloud.forget_settings()
    with tempfile.TemporaryDirectory(prefix="adventureworks-") as folder:
        with cloud.running(database.render_as_string(hide_password=False)) as running:
            command.notice("filling S3")
            cloud.fill(running.s3_url)
            environment = airflow.environment(Path(folder), running.lambda_url, place)
            if place:
                return airflow.serve(environment)
            command.notice("preparing Airflow, running the DAG")
            run = airflow.run_dag(environment, {"mode": "replace"})
            answer = running.sandbox.current.answer.result(0) if running.sandbox.current else None
    if run.returncode or answer is None:
        raise command.Failure(f"the DAG failed: {reason(answer, run.stdout + run.stderr)}")
    command.notice("asking the questions")
    for file, report in json.loads(answer.body)["files"].items():
        print(_line(file, report))
    print()
    return questions.show(database, questions.ROWS, None)


def reason(answer: lambda_service.Answer | None, log: str) -> str:
    """Return the function's error on one line, or else the end of Airflow's log."""
    if answer and answer.failed:
        return " ".join(str(json.loads(answer.body)["errorMessage"]).split())
    return " ".join(log.split())[-1000:]


def _line(file: str, counts: dict[str, int]) -> str:
    line = f"{file:26}{counts['rows']:>6,} rows, {counts['loaded']:>6,} loaded, {counts['rejected']} rejected"
    return line + (f", {counts['flagged']} loaded without a customer's name" if counts["flagged"] else "")


if __name__ == "__main__":
    command.begin("run.py")
    sys.exit(main())
