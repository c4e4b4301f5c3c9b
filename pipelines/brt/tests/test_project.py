"""The project as a whole: its settings, messages, installation, READMEs and size."""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from urllib.request import proxy_bypass_environment

import pytest
from sqlalchemy import make_url

from brt import __main__, pipeline, settings
from fonte_alvo.engine import DatabaseError
from fonte_alvo.settings import SettingsError
from tests.conftest import PROJECT

SOURCES = sorted((PROJECT / "brt").glob("*.py"))


def test_only_the_settings_read_the_environment():
    readers = [file.name for file in SOURCES if re.search(r"os\.environ\b|getenv", file.read_text())]
    assert readers == ["settings.py"]


def code_lines(source):
    """The number of lines with code: no blank lines, comments or docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    docstrings, lines = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def test_the_project_is_small():
    assert sum(code_lines(file.read_text()) for file in SOURCES) <= 900


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_no_function_is_long(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("BRT_CAPTURE_EVERY_S", "0", settings.capture_every_s),
        ("BRT_LOAD_EVERY_S", "soon", settings.load_every_s),
        ("BRT_PREFECT_PORT", "-1", settings.prefect_port),
        ("BRT_STAND_IN_PORT", "70000", settings.stand_in_port),
        ("BRT_POSTGRES_PORT", "-1", settings.postgres_port),
        ("BRT_API_URL", "ftp://host/gps", settings.api_url),
        ("BRT_API_URL", "http://host:port/gps", settings.api_url),
        ("BRT_API_URL", "http://host:65536/gps", settings.api_url),
        ("BRT_API_URL", "http://host:0/gps", settings.api_url),
        ("BRT_DATABASE_URL", "mysql://host/brt", settings.database_url),
        ("BRT_DATABASE_URL", "postgresql:///brt", settings.database_url),
        ("BRT_DATABASE_URL", "postgresql://host/brt", settings.database_url),
        ("BRT_DATABASE_URL", "postgresql://me@host", settings.database_url),
    ],
)
def test_an_unusable_setting_is_named(monkeypatch, name, value, read):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        read()


def test_the_defaults_are_one_and_thirteen_minutes_on_this_machine(monkeypatch, tmp_path):
    for name in (
        "API_URL",
        "DATABASE_URL",
        "CAPTURE_EVERY_S",
        "LOAD_EVERY_S",
        "PREFECT_PORT",
        "STAND_IN_PORT",
        "POSTGRES_PORT",
    ):
        monkeypatch.delenv(f"BRT_{name}", raising=False)
    monkeypatch.delenv("BRT_FOLDER", raising=False)
    assert (settings.capture_every_s(), settings.load_every_s()) == (60, 780)
    assert settings.api_url() == "http://127.0.0.1:4201/gps/brt"
    assert settings.folder() == PROJECT / ".brt"
    monkeypatch.setenv("BRT_FOLDER", str(tmp_path))
    environment = settings.services_environment()
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert environment["DO_NOT_TRACK"] == "1"
    assert settings.postgres_port() == 0


def test_prefect_reads_its_settings_and_sends_no_telemetry(monkeypatch, tmp_path):
    monkeypatch.setenv("BRT_FOLDER", str(tmp_path))
    command = [sys.executable, "-m", "prefect", "config", "view"]
    shown = subprocess.run(
        command, cwd=PROJECT, env=settings.services_environment(), capture_output=True, text=True, check=True
    ).stdout
    for name in ("ANALYTICS_ENABLED", "EPHEMERAL_ENABLED", "UI_SHOW_PROMOTIONAL_CONTENT", "SERVICES_TRIGGERS_ENABLED"):
        assert re.search(f"PREFECT_SERVER_{name}='(false|False)'", shown), shown
    assert "PREFECT_SERVER_API_HOST='127.0.0.1'" in shown


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_requests_to_this_machine_bypass_the_proxy(monkeypatch, name):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv(name, "company.example")
    for each in settings.services_environment().items():
        monkeypatch.setenv(*each)
    away = {host: bool(proxy_bypass_environment(host)) for host in ("127.0.0.1:4200", "company.example", "rio.example")}
    assert away == {"127.0.0.1:4200": True, "company.example": True, "rio.example": False}


def test_the_services_get_a_relative_folder_as_an_absolute_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRT_FOLDER", "state")
    assert settings.services_environment()["BRT_FOLDER"] == str(tmp_path / "state")


@pytest.mark.parametrize("step", ["capture", "load", "map", "stop"])
def test_a_folder_that_cannot_be_written_is_reported_on_one_line(monkeypatch, capsys, step):
    monkeypatch.setenv("BRT_FOLDER", "/dev/null/state")
    monkeypatch.delenv("BRT_DATABASE_URL", raising=False)
    monkeypatch.setattr("sys.argv", ["brt", step])
    assert __main__.main() == 2
    assert re.fullmatch("brt: /dev/null/state.*: Not a directory; .*BRT_FOLDER.*\n", capsys.readouterr().err)


def test_a_capture_that_cannot_be_read_is_reported_on_one_line(monkeypatch, capsys, pool):
    (pipeline.captures_folder() / "brt_20230726T015300Z.csv").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["brt", "load"])
    assert __main__.main() == 2
    assert re.fullmatch("brt: /.*Z.csv: Is a directory; .*BRT_FOLDER.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("place", "code", "said"), [("/dev/full", 6, "cannot be written: No space left"), ("", 141, "")]
)
def test_output_that_cannot_be_written_has_its_own_code(monkeypatch, tmp_path, place, code, said):
    """The disk is full, or the reader of the pipe is gone."""
    monkeypatch.setenv("BRT_FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    if place:
        output = os.open(place, os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    stop = [sys.executable, "-m", "brt", "stop"]
    run = subprocess.run(stop, cwd=PROJECT, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    os.close(output)
    assert (run.returncode, run.stderr.count("\n")) == (code, bool(said))
    assert said in run.stderr


@pytest.mark.parametrize(("url", "variable", "password"), [("me:a@", "b", "a"), ("me@", "b", "b"), ("me@", "", "")])
def test_dbt_gets_the_password_of_the_url_or_else_of_pgpassword(monkeypatch, url, variable, password):
    monkeypatch.setenv("PGPASSWORD", variable)
    # give_dbt changes the environment: this test gives it a copy.
    monkeypatch.setattr(settings.os, "environ", os.environ.copy())
    settings.give_dbt(make_url(f"postgresql://{url}host/brt"))
    assert settings.os.environ["DBT_ENV_SECRET_BRT_PASSWORD"] == password


def test_dbt_gets_the_port_and_the_tls_settings_of_the_loader(monkeypatch):
    given = {"PGPORT": "6543", "PGSSLMODE": "verify-full"}
    monkeypatch.setattr(settings.os, "environ", os.environ | given)
    settings.give_dbt(make_url("postgresql://me@host/brt?sslrootcert=/ca.pem&sslkey=/key.pem"))
    names = ("BRT_DBT_PORT", "BRT_DBT_SSLMODE", "PGSSLROOTCERT", "PGSSLKEY")
    assert [settings.os.environ[name] for name in names] == ["6543", "verify-full", "/ca.pem", "/key.pem"]
    settings.give_dbt(make_url("postgresql://me@host:7654/brt?sslmode=require"))
    assert [settings.os.environ[name] for name in names[:2]] == ["7654", "require"]


def test_the_services_get_no_settings_of_another_prefect(monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////another.db")
    monkeypatch.setenv("PREFECT_SERVER_API_HOST", "0.0.0.0")
    given = settings.services_environment()
    assert not {"PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_SERVER_API_HOST"} & {*given}
    assert given["PREFECT_API_URL"].startswith("http://127.0.0.1:")


def test_a_map_before_the_first_load_fails_with_the_remedy(pool):
    with pytest.raises(DatabaseError, match="posicao_onibus.* does not exist.*; .*`make capture load run_dbt`"):
        pipeline.draw()


def test_an_interrupted_installation_is_repeated(tmp_path):
    """The environment's Python exists before pip has installed anything."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".venv/bin/python"):
        (tmp_path / "pipelines/brt" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pipelines/brt" / name).touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "pipelines/brt/Makefile").write_text((PROJECT / "Makefile").read_text())
    make = ["make", "--directory", tmp_path / "pipelines/brt", "--dry-run", "start"]
    assert "pip install" in subprocess.run(make, capture_output=True, text=True, check=True).stdout
    (tmp_path / "pipelines/brt/.venv/installed").touch()
    assert "pip install" not in subprocess.run(make, capture_output=True, text=True, check=True).stdout


READMES = [(PROJECT / name).read_text() for name in ("README.md", "README.pt-BR.md")]


def test_the_readmes_have_the_same_content_in_two_languages():
    """The same sections, tables, commands, pictures and names, in one order."""
    english, portuguese = READMES
    for pattern in (r"^(#+) ", r"^```.*?^```", r"^(-) ", r"^(\|)", r"\]\((docs/.*?)\)", r"\bhttps?://\S+\b"):
        parts = [re.findall(pattern, text, re.MULTILINE | re.DOTALL) for text in READMES]
        assert parts[0] == parts[1] != []
    assert set(re.findall("`[^`\n]+`", english)) == set(re.findall("`[^`\n]+`", portuguese))


def test_the_readmes_name_every_setting():
    source = (PROJECT / "brt/settings.py").read_text()
    for readme in READMES:
        table = set(re.findall(r"^\| `(BRT_[A-Z_]+)` \|", readme, re.MULTILINE))
        assert table == set(re.findall(r'"(BRT_(?!DBT)[A-Z_]+)"', source))


def test_every_command_of_the_readme_exists(tmp_path):
    targets = set(
        re.findall(r"\bmake ((?:[a-z_]+ ?)+)", " ".join(re.findall("`[^`]+`|^```sh.*?^```", READMES[0], re.M | re.S)))
    )
    assert {"run_dbt", "start", "stop", "map"} <= {target for each in targets for target in each.split()}
    for each in targets:
        subprocess.run(["make", "--dry-run", "PYTHON=python", *each.split()], cwd=PROJECT, check=True)


def test_start_prints_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("BRT_API_URL", "https://user:secret@host/gps?token=secret")
    monkeypatch.setenv("BRT_DATABASE_URL", "postgresql://user:secret@host/brt?password=secret")
    monkeypatch.setattr(__main__.services, "start", lambda: None)
    __main__._start()
    assert "secret" not in (said := capsys.readouterr().out)
    assert "https://host/gps" in said
