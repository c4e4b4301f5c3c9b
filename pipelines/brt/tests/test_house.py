"""What holds for the project as a whole: its dependencies, its settings, its size."""

import ast
import re
from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement

from brt import settings
from settings import SettingsError
from tests.conftest import PROJECT

SOURCES = sorted((PROJECT / "brt").glob("*.py"))


def test_sqlalchemy_with_which_prefect_schedules_nothing_is_refused(monkeypatch):
    (bound,) = [each for each in map(Requirement, requires("brt")) if each.name == "sqlalchemy"]
    assert not bound.specifier.contains("2.1.0")
    assert bound.specifier.contains(version("sqlalchemy"))
    settings.refuse_late_sqlalchemy()
    for late in ("2.1.0", "2.1.9", "3.0"):
        monkeypatch.setattr(settings, "version", lambda _, late=late: late)
        with pytest.raises(SettingsError, match=f"SQLAlchemy {late} is installed, with which Prefect schedules no run"):
            settings.refuse_late_sqlalchemy()


def test_only_the_settings_read_the_environment():
    readers = [file.name for file in SOURCES if re.search(r"os\.environ\b|getenv", file.read_text())]
    assert readers == ["settings.py"]


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
        ("BRT_API_URL", "ftp://host/gps", settings.api_url),
        ("BRT_API_URL", "http://host:port/gps", settings.api_url),
        ("BRT_DATABASE_URL", "mysql://host/brt", settings.database_url),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(monkeypatch, name, value, read):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        read()


def test_without_settings_it_is_a_minute_and_thirteen_and_all_local(monkeypatch, tmp_path):
    for name in ("API_URL", "DATABASE_URL", "CAPTURE_EVERY_S", "LOAD_EVERY_S", "PREFECT_PORT", "STAND_IN_PORT"):
        monkeypatch.delenv(f"BRT_{name}", raising=False)
    monkeypatch.delenv("BRT_FOLDER", raising=False)
    assert (settings.capture_every_s(), settings.load_every_s()) == (60, 780)
    assert settings.api_url() == "http://127.0.0.1:4201/gps/brt"
    assert settings.folder() == PROJECT / ".brt"
    monkeypatch.setenv("BRT_FOLDER", str(tmp_path))
    environment = settings.services_environment()
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["DO_NOT_TRACK"] == "1"


def test_the_readme_names_every_setting():
    table = set(re.findall(r"^\| `(BRT_[A-Z_]+)` \|", (PROJECT / "README.md").read_text(), re.MULTILINE))
    source = (PROJECT / "brt/settings.py").read_text()
    assert table == set(re.findall(r'"(BRT_(?!DBT)[A-Z_]+)"', source))
