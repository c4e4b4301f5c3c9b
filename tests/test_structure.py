"""The house: what may import what beyond import-linter's contracts, and how large things may be."""

import ast
import io
import re
import sys
import tokenize

import pytest

from tests.conftest import ROOT

PACKAGES = ("alvo", "fonte", "orchestration", "postgres")
SOURCES = sorted([*ROOT.glob("*.py"), *(file for package in PACKAGES for file in (ROOT / package).glob("*.py"))])


def imported(source):
    """The modules that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def code_lines(source):
    """The numbers of lines that hold code: no blank line, comment or docstring."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - docstrings


def test_the_aggregation_imports_only_numpy():
    source = (ROOT / "alvo/aggregation.py").read_text()
    foreign = {name.split(".")[0] for name in imported(source)} - sys.stdlib_module_names
    assert foreign == {"numpy"}


def test_only_the_settings_read_the_environment():
    readers = [file.name for file in SOURCES if re.search(r"\benviron\b|getenv", file.read_text())]
    assert readers == ["settings.py"]


def test_the_command_reaches_fonte_through_its_client_alone():
    reached = {name for name in imported((ROOT / "etl.py").read_text()) if name.startswith("fonte")}
    assert {".".join(name.split(".")[:2]) for name in reached} == {"fonte.client", "fonte.embedded"}


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ("dagster", {"orchestration"}),
        ("distributed", {"backfill.py"}),
        ("matplotlib", {"alvo"}),
        ("orchestration", {"orchestration"}),
    ],
)
def test_a_library_of_one_room_is_imported_there_alone(library, users):
    reached = {file for file in SOURCES if library in {name.split(".")[0] for name in imported(file.read_text())}}
    assert {file.relative_to(ROOT).parts[0] for file in reached} == users


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_function_is_long(file):
    source = file.read_text()
    lines = code_lines(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert len(lines & set(range(node.lineno, node.end_lineno + 1))) < 40, node.name


@pytest.mark.parametrize(("room", "most"), [("pipeline", 2300), ("page", 500), ("orchestration", 300)])
def test_each_room_is_small(room, most):
    of_page = {ROOT / "alvo" / name for name in ("api.py", "plot.py", "screen.py")}
    files = {"page": of_page, "orchestration": {file for file in SOURCES if file.parent.name == "orchestration"}}
    files["pipeline"] = set(SOURCES) - files["page"] - files["orchestration"]
    assert sum(len(code_lines(file.read_text())) for file in files[room]) < most


def test_a_day_loads_no_library_that_it_does_not_need(run_command, connector, alvo):
    """Each of these takes tens of milliseconds to import; what they are for is not part of a plain day."""
    code = "import etl, sys; etl.main(['2024-05-20']); print(*{name.partition('.')[0] for name in sys.modules})"
    run = run_command("-c", code, FONTE_API_URL=connector, ALVO_DATABASE_URL=alvo.render_as_string(hide_password=False))
    loaded = set(run.stdout.splitlines()[-1].split()) - sys.stdlib_module_names
    project = {"alvo", "backfill", "command", "etl", "fonte", "outcome", "postgres", "settings"}
    libraries = {"httpx", "numpy", "psycopg2", "sqlalchemy"}
    their_own = {"anyio", "certifi", "charset_normalizer", "greenlet", "h11", "httpcore", "idna", "typing_extensions"}
    unasked = {name for name in loaded - project - libraries - their_own if not name.startswith(("_", "$"))}
    assert unasked <= {"click", "rich", "pygments", "sniffio", "markdown_it", "mdurl", "cython_runtime", "coverage"}
