"""The READMEs and docs: commands print the shown output, both languages agree, links are valid."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from support.project import ROOT, SETTINGS, bare, free_port, wait_until

from fonte_alvo.command import Failure

READMES = ("README.md", "README.pt-BR.md")
DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [*(ROOT / name for name in READMES), ROOT / "CONTRIBUTING.md", *DOCS]
PIP = "python -m pip install "
# Tested with Chromium: tox -e orchestration.
ELSEWHERE = ["python -m venv .venv", ". .venv/bin/activate", "python -m orchestration.dagster"]


def blocks(page, language, section=""):
    text = (ROOT / page).read_text().partition(f"\n## {section}\n" if section else "\n")[2]
    text = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0] if section else text
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def without_times(text):
    return re.sub(r"\d+\.\d\d(?= s\b|,|$)", "0.00", text, flags=re.MULTILINE)


@pytest.fixture
def environment(folder):
    environment = bare(folder)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return environment


@pytest.fixture
def shell(folder, environment):
    """Run a line of a README; return its output."""

    def run(line):
        run = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert (run.returncode, run.stderr if "curl" not in line else "") == (0, ""), line
        return run.stdout

    return run


@contextlib.contextmanager
def serving(line, folder, environment, path="/health"):
    """Run the server of a README on a free port; give its base URL."""
    port = str(free_port())
    words = shlex.split(line)
    words = [*words[:-1], port] if "--port" in words else [*words, "--port", port]
    program = (
        [sys.executable, *words[1:]]
        if words[0] == "python"
        else [shutil.which(words[0], path=environment["PATH"]), *words[1:]]
    )
    base_url = f"http://127.0.0.1:{port}"

    def answers():
        assert server.poll() is None
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(base_url + path).status_code == 200

    server = subprocess.Popen(
        program, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(answers)
        yield base_url
    finally:
        server.terminate()
        server.wait()


def test_the_commands_print_the_shown_output(shell):
    """Only those of one README, in order, from an empty start: the other has the same commands."""
    sessions = blocks(READMES[0], "console")
    assert len(sessions) >= 5
    for session in sessions:
        command, shown = session.removeprefix("$ ").split("\n", 1)
        assert without_times(shell(command)) == without_times(shown)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README calls curl")
def test_the_connector_answers_as_shown(folder, environment, shell):
    server, call = blocks(READMES[0], "sh", "A day")[0].splitlines()
    shell("python seed.py")
    with serving(server, folder, environment) as base_url:
        assert shell(call.replace("http://localhost:8000", base_url)).count('"power":') == 2


def test_the_page_is_served_as_shown(folder, environment):
    (line,) = blocks(READMES[0], "sh", "The page")[0].splitlines()
    with serving(line, folder, environment, path="/") as base_url:
        assert "<html" in httpx.get(base_url).text


def test_a_dry_run_of_a_file_works_as_shown(folder, shell):
    _, write, look = blocks(READMES[0], "sh", "A file of your own")[0].splitlines()
    shell(write)
    assert "nothing was loaded, because of --dry-run" in shell(look)


def test_external_services_work_as_shown_from_empty_databases(folder, environment, shell, make_database):
    settings, tables, day = blocks(READMES[0], "sh", "Services of your own")
    names = [line.partition("=")[0] for line in settings.splitlines()]
    assert names == ["FONTE_DATABASE_URL", "ALVO_DATABASE_URL", "FONTE_API_URL"]
    environment |= {name: make_database().render_as_string(hide_password=False) for name in names[:2]}
    for line in tables.splitlines():
        shell(line)
    server, load = day.splitlines()
    (page,) = re.findall(r"`(uvicorn alvo.*)`", (ROOT / READMES[0]).read_text())
    with serving(server, folder, environment) as base_url:
        environment["FONTE_API_URL"] = base_url
        assert "1,152 values written" in shell(load)
        with serving(page, folder, environment) as alvo:
            assert len(httpx.get(f"{alvo}/data", params={"signals": "power_mean"}).json()) == 144


def test_every_other_command_is_tested_elsewhere():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    tested = {"A day", "The page", "A file of your own", "Services of your own"}
    sections = re.findall("^## (.*)$", (ROOT / READMES[0]).read_text(), re.MULTILINE)
    lines = [
        line
        for name in sections
        if name not in tested
        for block in blocks(READMES[0], "sh", name)
        for line in block.splitlines()
    ]
    of_docker = "".join(blocks("docs/services.md", "sh", "With Docker")).splitlines()
    for line in lines:
        installed = re.fullmatch(rf"{PIP}(?:\.|'\.\[(\w+)\]')", line)
        known = installed and (installed[1] is None or installed[1] in extras)
        assert known or line in [*of_docker, *ELSEWHERE, "docker compose ps"], line


def test_both_readmes_have_the_same_structure_and_code():
    english, portuguese = ((ROOT / readme).read_text() for readme in READMES)
    for pattern in (r"^#+ ", r"^\|", r"^ *```", r"^\d\. ", "!?\\[[^]]*\\]\\("):
        assert len(re.findall(pattern, english, re.MULTILINE)) == len(re.findall(pattern, portuguese, re.MULTILINE))
    for language in ("console", "sh", "mermaid"):
        assert blocks(READMES[0], language) == blocks(READMES[1], language)
    # Code spans hold names, which are not translated.
    spans = [set(re.findall(r"`([^`\n]+)`", text)) for text in (english, portuguese)]
    assert spans[0] == spans[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_short_and_its_links_are_valid(page):
    text = page.read_text()
    assert text.count("\n") <= (170 if page.name in READMES else 250)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            headings = re.findall("^#+ (.*)$", linked.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [
                re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings
            ]
    if page in DOCS:
        assert "\nContents: [" in text


def test_every_page_and_picture_is_linked():
    linked = " ".join(page.read_text() for page in PAGES)
    for file in [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.png")]:
        assert file.name in linked


def test_the_run_configuration_of_the_docs_is_that_of_the_launchpad():
    assert (ROOT / "orchestration/dagster/etl.yaml").read_text() in blocks("docs/dagster.md", "yaml")


def exit_codes():
    """Return the exit codes of all failures of the commands."""
    import etl  # noqa: F401  # defines failures, as do its imports

    kinds, codes = [Failure], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        codes.add(kind.exit_code)
    return codes


def test_the_exit_codes_are_those_of_the_command():
    table = set(map(int, re.findall(r"^\| (\d+) \|", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)))
    assert table == {0, 130, 141, *exit_codes()}


def test_the_variables_are_those_that_the_settings_read():
    read = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', (ROOT / "fonte_alvo/settings.py").read_text()))
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/reference.md").read_text(), re.MULTILINE))
    only_of_compose = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text())) - set(SETTINGS)
    assert table == read - {"XDG_DATA_HOME"} - only_of_compose == set(SETTINGS)
