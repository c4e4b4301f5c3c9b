"""The command `python -m alvo`: a query's answer, the embedded server's URL, the page."""

import signal
import socket
import subprocess
import sys

import psycopg2
import pytest
from support.project import bare

QUERY = "SELECT timestamp, name, value FROM data JOIN signal ON id = signal_id ORDER BY 1, 2 LIMIT 2;"


@pytest.fixture
def loaded(alvo, fonte_api, run_command):
    """The command's runner, over an Alvo that holds a day."""
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


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT nothing FROM data", 'column "nothing" does not exist'),
        ("SELECT 'a", "unterminated quoted string"),
        ("", "syntax error"),
        ("DELETE FROM data", "COPY query must have a RETURNING clause"),
        ("DELETE FROM data RETURNING 1", "cannot execute DELETE in a read-only transaction"),
        ("SELECT 1) TO STDOUT; DROP TABLE data; COPY (SELECT 1", "cannot execute DROP TABLE in a read-only"),
    ],
)
def test_a_query_that_is_wrong_or_changes_something_is_refused(loaded, query, said):
    run = loaded(query)
    assert run.returncode == 2
    assert said in run.stderr
    assert run.stderr.count("\n") == 1
    assert loaded("SELECT count(*) FROM data").stdout == "count\n1152\n"


def test_an_alvo_that_is_away_is_exit_code_4(run_command, refused_port):
    run = run_command("-m", "alvo", "SELECT 1", ALVO_DATABASE_URL=f"postgresql://u:p@127.0.0.1:{refused_port}/alvo")
    assert (run.returncode, run.stderr.count("\n")) == (4, 1)


def test_the_url_of_the_embedded_alvo_serves_other_tools_until_ctrl_c(folder):
    line = [sys.executable, "-m", "alvo", "--url"]
    process = subprocess.Popen(line, cwd=folder, env=bare(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with psycopg2.connect(process.stdout.readline().decode().strip()) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT current_database()")
        assert cursor.fetchone() == ("alvo",)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == (b"", b"")
    assert process.returncode == 130


def test_no_url_is_shown_of_a_database_that_is_named(loaded):
    run = loaded("--url")
    assert (run.returncode, run.stdout) == (2, "")
    assert "--url is for the embedded one" in run.stderr


def test_a_busy_port_is_told_before_a_server_is_started(run_command, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = run_command("-m", "alvo", "--port", str(taken.getsockname()[1]))
    assert run.returncode == 2
    assert "choose another by --port" in run.stderr
    assert not (folder / ".embedded").exists()
