"""The command `python -m alvo`: a query's answer, the embedded server's URL, the page."""

import re
import socket
import subprocess
import sys
import uuid
from contextlib import contextmanager

import httpx
import psycopg2
import pytest
from sqlalchemy import text
from support.project import alvo_values, bare, interrupt, wait_until
from support.two_days import filled

from alvo.__main__ import main

QUERY = "SELECT timestamp, name, value FROM data JOIN signal ON id = signal_id ORDER BY 1, 2 LIMIT 2;"


@pytest.fixture(scope="module")
def two_days(make_database):
    return filled(make_database())


@pytest.fixture
def loaded(alvo, fonte_api, run_command):
    """Load a day; give a function that runs the command over it."""
    url = alvo.render_as_string(hide_password=False)
    assert run_command("etl.py", "2024-05-20", FONTE_API_URL=fonte_api, ALVO_DATABASE_URL=url).returncode == 0
    return lambda *arguments: run_command("-m", "alvo", *arguments, ALVO_DATABASE_URL=url)


def test_a_query_is_answered_as_csv(loaded):
    run = loaded(QUERY)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [
        "timestamp,name,value",
        "2024-05-20 00:00:00+00,power_max,961.2",
        "2024-05-20 00:00:00+00,power_mean,788.8",
    ]


@pytest.fixture
def ask(two_days, monkeypatch, capsys):
    """Give a function that runs the command with a query, and returns its exit code, output and errors."""
    monkeypatch.setenv("ALVO_DATABASE_URL", two_days.render_as_string(hide_password=False))
    return lambda query: (main([query]), *capsys.readouterr())


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("VALUES (1, 'a\nb'), (2, '50%s');", 'column1,column2\n1,"a\nb"\n2,50%s\n'),
        ("WITH one AS (SELECT 1 AS n) TABLE one -- a comment", "n\n1\n"),
        ("(SELECT ')' AS \"a;b\", $$'; --$$ AS c, ARRAY[1, 2] AS d)", 'a;b,c,d\n),\'; --,"{1,2}"\n'),
        ("SELECT 1 AS n, 2 AS n WHERE false", "n,n\n"),
    ],
)
def test_any_single_query_is_answered(ask, query, rows):
    assert ask(query) == (0, rows, "")


# They end the transaction that cannot write.
ENDS = ("", "COMMIT; ", "ROLLBACK; BEGIN READ WRITE; ", "COMMIT; SET default_transaction_read_only = off; BEGIN; ")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT nothing FROM data", 'column "nothing" does not exist'),
        ("SELECT 'a", "unterminated quoted string"),
        ("SELECT 1; SELECT 2", "cannot open multi-query plan as cursor; correct it: one SELECT"),
        ("COMMIT; DROP TABLE data", "cannot open multi-query plan"),
        ("DROP TABLE data", "cannot open DROP TABLE query as cursor"),
        ("COMMIT", "cannot open COMMIT query as cursor"),
        ("DELETE FROM data", "cannot open DELETE query as cursor"),
        ("DELETE FROM data RETURNING 1", "cannot execute DELETE in a read-only transaction"),
        ("WITH gone AS (DELETE FROM data RETURNING 1) SELECT * FROM gone", "cannot execute SELECT in a read-only"),
        ("SELECT nextval(pg_get_serial_sequence('signal', 'id'))", "cannot execute nextval() in a read-only"),
        ("SELECT set_config('transaction_read_only', 'off', true)", "transaction read-write mode must be set before"),
        *(
            (f"SELECT 1) TO STDOUT; {end}DROP TABLE data; COPY (SELECT 2", 'syntax error at or near ")"')
            for end in ENDS
        ),
        ("SELECT 1) TO STDOUT; SELECT pg_sleep(1000); --", 'syntax error at or near ")"'),
        ("SELECT 1)) TO STDOUT; COMMIT; DROP TABLE data; COPY ((SELECT 2", 'syntax error at or near ")"'),
        ("SELECT 1 /*", "unterminated /* comment"),
    ],
)
def test_a_query_that_is_wrong_or_changes_something_is_refused(ask, two_days, make_pool, query, said):
    pool = make_pool(two_days)
    before = alvo_values(pool)
    code, _, errors = ask(query)
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert alvo_values(pool) == before


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT pg_sleep(60)", "canceling statement due to statement timeout"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "terminating connection|closed the connection"),
    ],
)
def test_a_database_that_ends_a_query_is_exit_code_4(ask, two_days, monkeypatch, query, said):
    url = two_days.update_query_dict({"options": "-c statement_timeout=100"})
    monkeypatch.setenv("ALVO_DATABASE_URL", url.render_as_string(hide_password=False))
    code, _, errors = ask(query)
    assert code == 4
    assert re.fullmatch(f"python -m alvo: Alvo failed: .*({said}).*\n", errors)


def test_a_locked_table_is_exit_code_4(ask, two_days, make_pool, monkeypatch):
    url = two_days.update_query_dict({"options": "-c lock_timeout=100"})
    monkeypatch.setenv("ALVO_DATABASE_URL", url.render_as_string(hide_password=False))
    with make_pool(two_days).begin() as holder:
        holder.execute(text("LOCK TABLE data"))
        code, _, errors = ask("SELECT count(*) FROM data")
    assert code == 4
    assert errors.startswith("python -m alvo: Alvo failed: canceling statement due to lock timeout")


def test_a_table_that_a_role_may_not_read_is_named(ask, two_days, make_pool, monkeypatch):
    pool = make_pool(two_days)
    with pool.begin() as connection:
        role = f"r{uuid.uuid4().hex}"
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'"))
    try:
        monkeypatch.setenv(
            "ALVO_DATABASE_URL", two_days.set(username=role, password="x").render_as_string(hide_password=False)
        )
        code, _, errors = ask("SELECT * FROM load")
    finally:
        with pool.begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))
    assert code == 2
    assert errors == (
        "python -m alvo: the query failed: permission denied for table load; use a role that may read it\n"
    )


FULL = "python -m alvo: standard output cannot be written: No space left on device; what was done stays done\n"


# It would take minutes to receive the rest of the last result.
LARGE = ["repeat('x', 5000000)", "generate_series(1, 10000000000)"]


@pytest.mark.parametrize(
    ("selected", "output", "ended"),
    [
        ("1", "| head -1", "0\n"),
        *((selected, "| head -1", "141\n") for selected in LARGE),
        *((selected, ">/dev/full", f"{FULL}6\n") for selected in ["1", *LARGE]),
    ],
)
def test_a_result_that_cannot_be_written_ends_the_command_at_once(folder, two_days, selected, output, ended):
    environment = bare(folder) | {"ALVO_DATABASE_URL": two_days.render_as_string(hide_password=False)}
    line = f"""{{ {sys.executable} -m alvo "SELECT {selected}"; echo $? >&2; }} {output}"""
    run = subprocess.run(
        ["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stderr == ended


@pytest.mark.parametrize("selected", ["pg_sleep(100)", LARGE[0]], ids=["server", "reader"])
def test_ctrl_c_ends_a_query_whatever_it_waits_for(folder, two_days, make_pool, selected):
    environment = bare(folder) | {"ALVO_DATABASE_URL": two_days.render_as_string(hide_password=False)}
    line = [sys.executable, "-m", "alvo", f"SELECT {selected} FROM generate_series(1, 100)"]
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event IN ('PgSleep', 'ClientWrite') AND query LIKE 'COPY%'"
    )
    with (
        make_pool(two_days).connect().execution_options(isolation_level="AUTOCOMMIT") as watch,
        subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        wait_until(lambda: watch.scalar(waiting))
        interrupt(process)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == b"python -m alvo: interrupted; nothing is left half done\n"
        wait_until(lambda: not watch.scalar(waiting))


@pytest.mark.parametrize("arguments", [["SELECT 1"], ["--port", "0"]], ids=["query", "page"])
def test_an_unreachable_alvo_is_exit_code_4_and_one_line(run_command, refused_port, shared_connector, arguments):
    away = f"postgresql://u:p@127.0.0.1:{refused_port}/alvo"
    run = run_command("-m", "alvo", *arguments, ALVO_DATABASE_URL=away, FONTE_API_URL=shared_connector)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (4, "", 1)
    assert run.stderr.startswith("python -m alvo: Alvo failed: ")


@pytest.mark.parametrize("name", ["ALLOWED_ORIGINS", "ALLOWED_HOSTS", "ADMIN_TOKEN"])
@pytest.mark.parametrize("side", ["FONTE", "ALVO"])
def test_a_setting_that_stops_an_api_is_named_before_any_address_is_printed(monkeypatch, capsys, side, name):
    monkeypatch.setenv(f"{side}_ADMIN_DATABASE_URL", "postgresql://u:p@127.0.0.1/x")
    monkeypatch.setenv(f"{side}_{name}", "!?")
    assert main(["--port", "0"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(rf"python -m alvo: {side}_{name} .*: expected .*\n", said.err)


def test_a_setting_that_stops_the_client_of_fonte_is_named_before_any_address_is_printed(run_command, alvo):
    broken = {"FONTE_API_URL": "http://fonte.example", "HTTP_PROXY": "socks9://x"}
    url = alvo.render_as_string(hide_password=False)
    run = run_command("-m", "alvo", "--port", "0", ALVO_DATABASE_URL=url, **broken)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (3, "", 1)
    assert run.stderr.startswith("python -m alvo: no HTTP client can be made: ")


@contextmanager
def until_ctrl_c(folder, *arguments):
    """Run the command; give its first line, and end it by SIGINT, which it reports by its exit code alone."""
    line = [sys.executable, "-m", "alvo", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, cwd=folder, env=bare(folder), **pipes) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            # Within its print, Ctrl-C could repeat the line.
            interrupt(process)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


def test_one_command_serves_the_page_over_the_embedded_databases_until_ctrl_c(folder):
    with until_ctrl_c(folder, "--port", "0") as said:
        base_url = re.fullmatch(r"Alvo: (http://127\.0\.0\.1:\d+) until Ctrl-C", said)[1]
        assert "<title>Alvo" in httpx.get(base_url).text
        assert httpx.get(f"{base_url}/period").json()["last_timestamp"] is None
        query = "start_timestamp=2024-05-20T00:00&end_timestamp=2024-05-20T00:02&columns=power"
        assert len(httpx.get(f"{base_url}/samples?{query}").json()["timestamps"]) == 2


def test_the_url_of_the_embedded_alvo_serves_other_tools_until_ctrl_c(folder):
    with until_ctrl_c(folder, "--url") as url, psycopg2.connect(url) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT current_database()")
        assert cursor.fetchone() == ("alvo",)


def test_the_url_of_a_database_of_the_settings_is_not_shown(loaded):
    run = loaded("--url")
    assert (run.returncode, run.stdout) == (2, "")
    assert "--url is for the embedded one" in run.stderr


def test_a_busy_port_is_reported_before_a_server_starts(run_command, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = run_command("-m", "alvo", "--port", port)
    assert (run.returncode, run.stdout) == (2, "")
    assert re.fullmatch(rf"python -m alvo: port {port} cannot be used: .*; choose another by --port\n", run.stderr)
    assert not (folder / ".embedded").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "as their owner"),
        (["-h"], 0, "ALVO_DATABASE_URL"),
        (["--version"], 0, "fonte-alvo "),
        (["--url"], 2, "python -m alvo.schema: unrecognized arguments: --url; see python -m alvo.schema --help\n"),
        (["drop"], 2, "unrecognized arguments: drop"),
    ],
)
def test_the_command_of_the_tables_makes_them_only_without_arguments(run_command, alvo, arguments, code, said):
    url = alvo.render_as_string(hide_password=False)
    run = run_command("-m", "alvo.schema", *arguments, ALVO_DATABASE_URL=url)
    assert run.returncode == code
    assert said in (run.stderr if code else run.stdout)
    assert alvo_values(alvo) is None


def test_debug_shows_why_the_tables_cannot_be_made(run_command, refused_port):
    away = f"postgresql://u:p@127.0.0.1:{refused_port}/alvo"
    run = run_command("-m", "alvo.schema", "--debug", ALVO_DATABASE_URL=away)
    assert run.returncode == 4
    assert run.stderr.startswith("Traceback")
