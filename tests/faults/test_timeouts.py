"""Every wait ends: for a lock, a frozen server, a slow server and a slow reader."""

import logging
import re
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy import text
from support.faulty import answering, certified, http, stalling
from support.project import DAY, SCRIPTS, alvo_values, connector_over, external, running, stalled_reader, wait_until

import etl
from fonte import client
from fonte.client import FonteError, fetch
from fonte_alvo import engine, serving, streaming

DAY_BOUNDS = datetime(2024, 5, 20, tzinfo=UTC), datetime(2024, 5, 21, tzinfo=UTC)


@pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"])
def test_the_server_has_a_limit_for_every_wait(alvo_pool, name):
    with alvo_pool.connect() as connection:
        assert connection.scalar(text(f"SELECT setting::integer FROM pg_settings WHERE name = '{name}'")) > 0


def test_a_url_may_set_its_timeouts(alvo, make_pool):
    url = alvo.update_query_dict({"options": "-c statement_timeout=7s"})
    with make_pool(url).connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "7s"


@pytest.mark.parametrize(
    "said",
    [
        "PostgreSQL 18.1 on x86_64-windows, compiled by msvc-19.44.35219, 64-bit",
        "PostgreSQL 16.4, compiled by Visual C++ build 1940, 64-bit",
        "PostgreSQL 14.13 (Homebrew) on aarch64-apple-darwin23.4.0, compiled by Apple clang version 15.0.0, 64-bit",
    ],
)
def test_a_setting_that_servers_on_other_systems_refuse_is_not_sent(alvo, make_pool, said):
    show = text("SHOW client_connection_check_interval")
    with make_pool(alvo).begin() as connection:
        assert connection.scalar(show) == "1s"
        connection.execute(text("CREATE SCHEMA other"))
        connection.execute(text(f"CREATE FUNCTION other.version() RETURNS text LANGUAGE sql RETURN '{said}'"))
        connection.execute(text(f"ALTER DATABASE {alvo.database} SET search_path = other, pg_catalog, public"))
    with make_pool(alvo.update_query_dict({"application_name": "other"})).begin() as connection:
        assert connection.scalar(show) == "0"


def test_a_locked_target_is_exit_code_4_and_stays_unchanged(fonte_api, alvo_pool, monkeypatch, capsys):
    assert etl.main(["2024-05-20"]) == 0
    before = alvo_values(alvo_pool)
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.1)
    with alvo_pool.begin() as holder:
        holder.execute(text("LOCK TABLE data"))
        assert etl.main(["2024-05-20"]) == 4
    assert "lock timeout" in capsys.readouterr().err
    assert alvo_values(alvo_pool) == before


def test_a_locked_source_is_a_503(fonte, fonte_pool, monkeypatch):
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.1)
    with connector_over(fonte) as base_url, fonte_pool.begin() as holder:
        holder.execute(text("LOCK TABLE data"))
        assert httpx.get(base_url + DAY).status_code == 503
        assert httpx.get(f"{base_url}/period").status_code == 503


@pytest.mark.parametrize("at", [b"version()", b"pg_advisory_xact_lock", b"COPY data", b"COMMIT"])
def test_a_target_that_falls_silent_is_exit_code_4(fonte_api, alvo, alvo_pool, monkeypatch, capsys, at):
    monkeypatch.setattr(engine, "TIME_LIMIT_S", 0.1)
    monkeypatch.setattr(engine, "GRACE_S", 0.1)
    with stalling((alvo.host, alvo.port), at) as port:
        silent = alvo.set(port=port).render_as_string(hide_password=False)
        monkeypatch.setenv("ALVO_DATABASE_URL", silent)
        assert etl.main(["2024-05-20"]) == 4
    assert capsys.readouterr().err.startswith("etl.py: Alvo failed: ")
    assert not alvo_values(alvo_pool)


def test_a_connection_that_returns_in_time_is_not_cut(alvo, monkeypatch):
    monkeypatch.setattr(engine, "TIME_LIMIT_S", 2.0)
    monkeypatch.setattr(engine, "GRACE_S", 0.1)
    pool = engine.create(alvo, "test")
    others = set(threading.enumerate())
    with pool.connect() as connection:
        first = connection.scalar(text("SELECT pg_backend_pid()"))
        limits = set(threading.enumerate()) - others
    # The timer of the connection's first queries may still run too.
    assert limits
    for limit in limits:
        limit.join()
    with pool.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) == first
    pool.dispose()


def test_a_pooled_connection_that_fell_silent_is_replaced(alvo, monkeypatch):
    with stalling((alvo.host, alvo.port), b"SELECT 1") as port:
        pool = engine.create(alvo.set(port=port), "test", check_pooled=True)
        with pool.connect() as connection:
            silent = connection.scalar(text("SELECT pg_backend_pid()"))
        monkeypatch.setattr(engine, "CONNECT_TIMEOUT_S", 0.1)
        with pool.connect() as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) != silent
        pool.dispose()


def test_an_answer_that_arrives_byte_by_byte_is_given_up(monkeypatch):
    monkeypatch.setattr(client, "DOWNLOAD_TIMEOUT_S", 0.2)
    drips = http(body=b"[" + b" " * 10_000, length=10**9)
    with answering(drips) as server:
        server.pause_s = 0.01
        with pytest.raises(FonteError, match=r"took longer than 0\.2 s"):
            fetch(server.url, *DAY_BOUNDS, ["power"])


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_head_that_arrives_byte_by_byte_is_given_up(monkeypatch, tmp_path, encrypted):
    certificate, tls = certified(tmp_path) if encrypted else (None, None)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(client, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(client, "PATIENCE_S", 0)
    with answering(http(headers=["X-Name: " + "x" * 10_000]), tls=tls) as server:
        server.pause_s = 0.01
        with pytest.raises(FonteError, match="the head of its answer took longer than 1 s"):
            fetch(server.url, *DAY_BOUNDS, ["power"])


def test_a_stalled_reader_is_cut_and_its_query_ends(administrator, large_fonte, monkeypatch, caplog):
    with connector_over(large_fonte) as base_url, administrator.connect() as connection:
        monkeypatch.setattr(streaming, "STREAM_TIMEOUT_S", 0.5)
        with stalled_reader(base_url) as reader:
            wait_until(lambda: running(connection, large_fonte.database) == 1)
            wait_until(lambda: running(connection, large_fonte.database) == 0)
            reader.settimeout(10)
            body = b"".join(iter(lambda: reader.recv(2**20), b""))
    assert body.startswith(b"HTTP/1.1 200")
    assert not body.endswith(b"0\r\n\r\n")
    assert "127.0.0.1 took longer than 0.5 s to read an answer: broken off" in caplog.text


def test_cutting_a_closed_connection_does_nothing(alvo_pool):
    with alvo_pool.connect() as connection:
        raw = connection.connection.driver_connection
        raw.close()
        engine.cut(raw)


def test_a_log_line_is_one_line_of_key_and_value():
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, 'two "lines"\n%s', ("here",), None)
    line = serving.LogLine().format(record)
    assert re.fullmatch(r"time=\S+\+00:00 level=ERROR logger=uvicorn\.error message=\"two .*\\nhere\"", line)


def test_sigterm_lets_the_connector_finish_its_answers_and_cut_stalled_readers(administrator, large_fonte):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "fonte.connector:app", "--port", str(port)]
    command += ["--timeout-graceful-shutdown", "1", "--log-config", "log.json"]
    environment = external("", large_fonte) | {"FONTE_DATABASE_URL": large_fonte.render_as_string(hide_password=False)}
    with (
        subprocess.Popen(command, cwd=SCRIPTS, env=environment, stderr=subprocess.PIPE, text=True) as connector,
        administrator.connect() as connection,
    ):
        base_url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(base_url))
        with stalled_reader(base_url), httpx.stream("GET", base_url + DAY) as answer:
            wait_until(lambda: running(connection, large_fonte.database) == 1)
            connector.send_signal(signal.SIGTERM)
            answer.read()
            said = connector.communicate()[1]
        wait_until(lambda: running(connection, large_fonte.database) == 0)
    assert answer.json()[-1]["timestamp"] == "2024-05-20T23:59:00Z"
    assert "Traceback" not in said
    assert all(line.startswith("time=") for line in said.splitlines())


def answers(base_url):
    try:
        return httpx.get(f"{base_url}/health").status_code == 200
    except httpx.TransportError:
        return False
