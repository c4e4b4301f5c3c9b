"""The house: what may import what beyond import-linter's contracts, and how large things may be."""

import ast
import io
import re
import sys
import tokenize

import pytest
from support.project import ROOT

PACKAGES = ("alvo", "fonte", "fonte_alvo", "orchestration")
SCRIPT_FILES = [ROOT / "etl.py", ROOT / "seed.py"]
SOURCES = sorted([*SCRIPT_FILES, *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))])


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


@pytest.mark.parametrize(
    ("script", "rooms"),
    [
        ("etl.py", {"alvo", "fonte.client", "fonte.local", "fonte_alvo", "orchestration.day", "orchestration.days"}),
        ("seed.py", {"fonte", "fonte_alvo"}),
    ],
)
def test_a_script_reaches_only_the_rooms_below_it(script, rooms):
    """import-linter sees packages alone."""
    names = {name for name in imported((ROOT / script).read_text()) if name.split(".")[0] in PACKAGES}
    packages = {name for name in names if name not in PACKAGES}
    assert [name for name in packages if not any(f"{name}.".startswith(f"{room}.") for room in rooms)] == []


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nobody_imports_the_scripts_or_the_tests(file):
    tops = {name.split(".")[0] for name in imported(file.read_text())}
    assert not tops & {"etl", "seed", "tests", "support", "benchmarks", "pipelines"}


def test_tests_and_benchmarks_take_helpers_from_support_alone():
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    tests = {file.stem for file in files if file.stem.startswith("test_")}
    assert {file.name: names for file in files if (names := imported(file.read_text()) & tests)} == {}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_function_is_long(file):
    source = file.read_text()
    lines = code_lines(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert len(lines & set(range(node.lineno, node.end_lineno + 1))) < 40, node.name


def test_the_pipeline_is_small():
    """All but Dagster's room. The design asks for 2,800."""
    files = [file for file in SOURCES if file.parent.name != "dagster"]
    assert sum(len(code_lines(file.read_text())) for file in files) <= 3990


def test_a_day_loads_no_library_that_it_does_not_need(run_command, connector, alvo):
    """Each of these takes tens of milliseconds to import; what they are for is not part of a plain day."""
    code = "import etl, sys; etl.main(['2024-05-20']); print(*{name.partition('.')[0] for name in sys.modules})"
    run = run_command("-c", code, FONTE_API_URL=connector, ALVO_DATABASE_URL=alvo.render_as_string(hide_password=False))
    loaded = set(run.stdout.splitlines()[-1].split()) - sys.stdlib_module_names
    project = {*PACKAGES, "etl"}
    libraries = {"httpx", "numpy", "psycopg2", "sqlalchemy"}
    their_own = {"anyio", "certifi", "charset_normalizer", "greenlet", "h11", "httpcore", "idna", "typing_extensions"}
    the_systems = {"sitecustomize", "usercustomize"}
    needed = project | libraries | their_own | the_systems
    unasked = {name for name in loaded - needed if not name.startswith(("_", "$"))}
    assert unasked <= {"click", "rich", "pygments", "sniffio", "markdown_it", "mdurl", "cython_runtime", "coverage"}
