"""The READMEs: their commands print what they show, and both tell the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support.project import ROOT, SETTINGS, bare

from fonte_alvo.command import Failure

READMES = ("README.md", "README.pt-BR.md")


def blocks(readme, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(), flags=re.DOTALL)


def without_times(text):
    return re.sub(r"\d+\.\d\d(?= s\b|,|$)", "0.00", text, flags=re.MULTILINE)


def test_the_commands_print_what_is_shown(folder):
    """Those of one README; the other has the same."""
    environment = bare(folder)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    sessions = blocks(READMES[0], "console")
    assert len(sessions) >= 3
    for session in sessions:
        command, shown = session.removeprefix("$ ").split("\n", 1)
        run = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")
        assert without_times(run.stdout) == without_times(shown)


def test_both_tell_the_same():
    english, portuguese = ((ROOT / readme).read_text() for readme in READMES)
    for pattern in (r"^#+ ", r"^\|", r"^```", r"^```mermaid"):
        assert len(re.findall(pattern, english, re.MULTILINE)) == len(re.findall(pattern, portuguese, re.MULTILINE))
    for language in ("console", "sh", "python"):
        assert blocks(READMES[0], language) == blocks(READMES[1], language)
    assert (
        blocks(READMES[0], "yaml")
        == blocks(READMES[1], "yaml")
        == [(ROOT / "orchestration/dagster/etl.yaml").read_text()]
    )
    codes = [re.findall(r"^\| (`\w+`|\d+) \|", text, re.MULTILINE) for text in (english, portuguese)]
    assert codes[0] == codes[1]
    # What stands in code spans are names: they are the same in every language.
    spans = [set(re.findall(r"`([^`\n]+)`", text)) for text in (english, portuguese)]
    assert spans[0] - spans[1] <= {"{variable}_{statistic}"}


def exit_codes():
    """Those of every failure that a command of the main project may report."""
    import etl  # noqa: F401  # with all that it imports

    kinds, codes = [Failure], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        codes.add(kind.exit_code)
    return codes


def test_the_exit_codes_are_those_of_the_command():
    table = set(map(int, re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)))
    assert table == {0, 130, *exit_codes()}


def test_the_variables_are_those_that_the_settings_read():
    read = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', (ROOT / "fonte_alvo/settings.py").read_text()))
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert table == read - {"XDG_DATA_HOME"} == set(SETTINGS)
