"""No error, traceback, log, description or repr shows a password or a token."""

import os
import re
import subprocess
import sys
import traceback
from contextlib import contextmanager

import httpx
import pytest
from sqlalchemy import text
from support.faulty import answering, http
from support.project import SCRIPTS, connector_over

from fonte import connector as fonte_connector
from fonte_alvo import embedded, engine, settings

SECRET = "s3cr3t-of-the-tests"
TOKEN = "t0ken-of-the-tests"
WRONG = "wr0ng-of-the-tests"


def shown_secrets(*texts):
    """The secrets whose beginning is in some text."""
    return [secret for secret in (SECRET[:6], TOKEN[:5], WRONG[:5]) for text in texts if secret in text]


@pytest.fixture
def everything(refused_port):
    """An environment full of secrets; none of its services answers."""
    database = f"postgresql://user:{SECRET}@127.0.0.1:{refused_port}/d"
    return {
        "FONTE_API_URL": f"http://user:{SECRET}@127.0.0.1:{refused_port}",
        "FONTE_DATABASE_URL": database,
        "FONTE_ADMIN_DATABASE_URL": database,
        "FONTE_ADMIN_TOKEN": TOKEN,
        "ALVO_DATABASE_URL": database,
        "ALVO_ADMIN_DATABASE_URL": database,
        "ALVO_ADMIN_TOKEN": TOKEN,
    }


BROKEN = f"postgresql://user:{SECRET}@{SECRET}@127.0.0.1:1/d"
FAST = "from fonte import client; client.PATIENCE_S = 0; import etl, sys; sys.exit(etl.main(sys.argv[1:]))"
FAILURES = {
    "Fonte is away": (["-c", FAST, "2024-05-20", "--debug"], {}, 3),
    "Fonte's database is away": (["-c", FAST, "2024-05-20", "--debug"], {"FONTE_API_URL": ""}, 3),
    "Fonte's URL is broken": (["etl.py", "2024-05-20", "--debug"], {"FONTE_API_URL": f"http://u:{SECRET}@h:port"}, 2),
    "Alvo is away": (["etl.py", "2024-05-20", "--resume", "--debug"], {}, 4),
    "Alvo's URL is broken": (["etl.py", "2024-05-20", "--debug"], {"ALVO_DATABASE_URL": BROKEN}, 2),
    "seed.py": (["seed.py"], {}, 3),
    "seed.py, its URL is broken": (["seed.py"], {"FONTE_DATABASE_URL": BROKEN}, 2),
    "alvo.schema": (["-m", "alvo.schema"], {}, 4),
    "alvo.schema, its URL is broken": (["-m", "alvo.schema"], {"ALVO_DATABASE_URL": BROKEN}, 2),
    "help": (["etl.py", "--help"], {}, 0),
}


@pytest.mark.parametrize(("arguments", "changed", "code"), FAILURES.values(), ids=FAILURES)
def test_no_failing_command_shows_a_secret(run_command, everything, arguments, changed, code):
    run = run_command(*arguments, **everything | changed)
    assert run.returncode == code, run.stderr
    assert shown_secrets(run.stdout, run.stderr) == []


@pytest.mark.parametrize("answer", [http(500), http(401), http(422, {"detail": "no"}), http(200, b"{}")])
def test_no_answer_of_fonte_makes_the_etl_show_its_password(run_command, everything, answer):
    with answering(answer) as server:
        url = server.url.replace("http://", f"http://user:{SECRET}@")
        run = run_command("-c", FAST, "2024-05-20", "--debug", **everything | {"FONTE_API_URL": url})
    assert run.returncode in (2, 3)
    assert "Traceback" in run.stderr
    assert shown_secrets(run.stdout, run.stderr) == []


def test_a_password_that_the_database_refuses_is_not_shown(run_command, everything, server):
    url = server.set(password=SECRET).render_as_string(hide_password=False)
    run = run_command("etl.py", "2024-05-20", "--resume", "--debug", **everything | {"ALVO_DATABASE_URL": url})
    assert run.returncode == 4
    assert "password authentication failed" in run.stderr
    assert shown_secrets(run.stdout, run.stderr) == []


@contextmanager
def uvicorn(app, level, environment, log):
    """Serve an app in another process, as users do, with its output in the file log; yield its base URL."""
    command = [sys.executable, "-m", "uvicorn", app, "--port", "0", "--log-level", level]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=SCRIPTS, env=os.environ | environment, stdout=output, stderr=output)
    try:
        while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
        yield found.group(1)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("level", ["debug", "trace"])
@pytest.mark.parametrize(("app", "side"), [("fonte.connector:app", "FONTE"), ("alvo.api:app", "ALVO")])
def test_no_log_at_any_level_shows_a_token_or_a_password(administrator, everything, fonte, tmp_path, level, app, side):
    role = f"admin_of_{fonte.database}"
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{SECRET}'"))
    url = fonte.set(username=role, password=SECRET).render_as_string(hide_password=False)
    log = tmp_path / "log"
    try:
        environment = everything | {f"{side}_DATABASE_URL": url, f"{side}_ADMIN_DATABASE_URL": url}
        with uvicorn(app, level, environment, log) as base_url:
            paths = ("/openapi.json", "/docs", "/health", "/data?end_timestamp=2024-05-20T00:01")
            answers = [httpx.get(base_url + path) for path in paths]
            for token in (TOKEN, WRONG, TOKEN[:-1]):
                headers = {"Authorization": f"Bearer {token}"}
                for query in ("end_timestamp=2001-01-01", "start_timestamp=yesterday"):
                    answers += [httpx.delete(f"{base_url}/data?{query}", headers=headers)]
            with administrator.connect() as connection:
                connection.execute(text(f"ALTER ROLE {role} PASSWORD 'another'"))
                away = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = :role"
                connection.execute(text(away), {"role": role})
            headers = {"Authorization": f"Bearer {TOKEN}"}
            answers += [httpx.get(f"{base_url}/health"), httpx.delete(f"{base_url}/data", headers=headers)]
    finally:
        with administrator.connect() as connection:
            connection.execute(text(f"DROP ROLE {role}"))
    said = log.read_text()
    assert [answer.status_code for answer in answers[4:]] == [200, 422, 401, 401, 401, 401, 503, 503]
    assert 'audit action="DELETE /data" client="127.0.0.1" rows=0' in said
    assert said.count('status=401 refused="the admin token is wrong"') == 4
    assert "password authentication failed" in said
    assert shown_secrets(said, *(answer.text + str(answer.headers) for answer in answers)) == []


@pytest.mark.parametrize(("app", "side"), [("fonte.connector:app", "FONTE"), ("alvo.api:app", "ALVO")])
@pytest.mark.parametrize("name", ["DATABASE_URL", "ADMIN_DATABASE_URL", "ADMIN_TOKEN"])
def test_a_setting_that_stops_an_api_is_named_without_its_value(run_command, everything, app, side, name):
    broken = {f"{side}_{name}": BROKEN if "URL" in name else f"{TOKEN} "}
    run = run_command("-m", "uvicorn", app, "--port", "0", "--log-level", "trace", **everything | broken)
    assert run.returncode == 3
    assert f"SettingsError: {side}_{name} is n" in run.stderr
    assert shown_secrets(run.stdout, run.stderr) == []


def test_no_repr_shows_a_secret(monkeypatch, everything):
    for name, value in everything.items():
        monkeypatch.setenv(name, value)
    held = [
        settings.fonte_database_url(),
        settings.alvo_database_url(),
        settings.admin("Fonte"),
        settings.admin("Alvo"),
    ]
    pool = engine.create(held[0], "test")
    with pytest.raises(engine.DatabaseError) as failure, engine.failures("Alvo", "look"):
        pool.connect()
    errors = [failure.value, failure.value.__cause__]
    shown = [f"{thing!r} {thing!s}" for thing in [*held, pool, pool.url, pool.pool, *errors]]
    assert shown_secrets(*shown, *traceback.format_exception(failure.value)) == []


def test_the_state_of_an_app_shows_no_secret(monkeypatch, everything):
    import asyncio

    for name, value in everything.items():
        monkeypatch.setenv(name, value)

    async def state():
        async with fonte_connector.app.router.lifespan_context(fonte_connector.app) as held:
            return f"{held!r}"

    shown = asyncio.run(state())
    assert "admin_token" in shown
    assert shown_secrets(shown) == []


def test_the_password_of_the_embedded_server_is_in_no_output_and_no_log(run_command, folder):
    run = run_command("etl.py", "2024-05-20", "--debug")
    assert run.returncode == 0
    folder = folder / ".embedded"
    password = (folder / "password").read_text()
    log = (folder / "server.log").read_text()
    assert password not in run.stdout + run.stderr + log


def test_the_password_of_the_embedded_server_is_on_no_command_line(tmp_path):
    import psutil

    url = embedded.url("alvo", tmp_path / "embedded")
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert any(str(tmp_path / "embedded") in line for line in lines)
    assert not any(url.password in line for line in lines)


def test_the_audit_cannot_be_forged_by_a_client(fonte, monkeypatch, caplog):
    monkeypatch.setenv("FONTE_ADMIN_DATABASE_URL", fonte.render_as_string(hide_password=False))
    monkeypatch.setenv("FONTE_ADMIN_TOKEN", TOKEN)
    forged = {"X-Forwarded-For": '1.2.3.4" rows=1'}
    with connector_over(fonte) as base_url, caplog.at_level("INFO", logger="uvicorn.error"):
        httpx.delete(f"{base_url}/data", headers=forged)
    [line] = [record.getMessage() for record in caplog.records if "audit" in record.getMessage()]
    assert line.count("rows=1") == line.count(r"\" rows=1") <= 1
