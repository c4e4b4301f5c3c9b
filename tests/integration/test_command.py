"""The commands' common parts: failed imports, Ctrl-C, standard streams, arguments, foreign text."""

import argparse
import os
import re
import subprocess
import sys

import pytest
from support.project import RANGE, ROOT, SCRIPTS, alvo_values, bare, external

from fonte_alvo import command

COMMANDS = {
    "etl.py": [str(SCRIPTS / "etl.py"), "2024-05-20"],
    "seed.py": [str(SCRIPTS / "seed.py")],
    "python -m alvo": ["-m", "alvo"],
    "alvo.schema": ["-m", "alvo.schema"],
    "python -m orchestration.dagster": ["-m", "orchestration.dagster"],
}


def shell(folder, command, environment=None, **streams):
    """Run a command as a shell does, with its redirections."""
    line = ["sh", "-c", command, "sh", *streams.pop("words", [])]
    environment = environment or bare(folder)
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("etl.py", "numpy", ""),
        ("etl.py", "httpx", ""),
        ("seed.py", "sqlalchemy", ""),
        ("python -m alvo", "uvicorn", ""),
        ("alvo.schema", "psycopg2", ""),
        ("python -m orchestration.dagster", "dagster", "[dagster]"),
    ],
)
def test_a_missing_package_is_one_line_with_the_install_command(run_command, name, package, extra):
    how = "run_module(sys.argv[2]" if COMMANDS[name][0] == "-m" else "run_path(sys.argv[1]"
    code = f"import runpy, sys; sys.modules['{package}'] = None; runpy.{how}, run_name='__main__')"
    run = run_command("-c", code, *COMMANDS[name])
    assert run.returncode == 2
    assert run.stderr.startswith(f"{name}: import of {package} halted")
    assert run.stderr.endswith(f"install what is missing: python -m pip install '.{extra}'\n")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("folder", [ROOT, SCRIPTS], ids=["in the checkout", "alone"])
@pytest.mark.parametrize("script", ["etl.py", "seed.py"])
def test_before_the_install_a_script_says_how_to_install(run_command, folder, script):
    run = run_command("-S", str(folder / script), "--help")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"{script}: ")
    assert "python -m pip install" in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_during_the_imports_is_silent(run_command, tmp_path, name):
    for module in ("numpy", "sqlalchemy", "uvicorn", "dagster"):
        (tmp_path / f"{module}.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    run = run_command(*COMMANDS[name], PYTHONPATH=str(tmp_path))
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")


def test_an_ignored_ctrl_c_stays_ignored(run_command):
    code = "import signal; signal.signal(2, signal.SIG_IGN); from fonte_alvo import command; command.begin('x'); "
    run = run_command("-c", code + "command.run('x', lambda: print(signal.getsignal(2) is signal.SIG_IGN) or 0)")
    assert (run.returncode, run.stdout) == (0, "True\n")


def test_ctrl_c_after_the_imports_is_one_line_and_restores_the_handlers(run_command):
    code = "from fonte_alvo import command; import signal; command.begin('x'); before = signal.getsignal(2); "
    code += "print(command.run('x', lambda: signal.raise_signal(2)), signal.getsignal(2) is before)"
    run = run_command("-c", code)
    assert (run.returncode, run.stdout) == (0, "130 True\n")
    assert run.stderr == "x: interrupted; nothing is left half done\n"


DAY = f"{sys.executable} etl.py 2024-05-20"
NOT_WRITTEN = "etl.py: standard output cannot be written: {}; what was done stays done\n"


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (f"{DAY} >/dev/full", 6, NOT_WRITTEN.format("No space left on device")),
        (f"{DAY} 2024-05-21 >/dev/full", 6, NOT_WRITTEN.format("No space left on device")),
        (f"{DAY} >&-", 0, ""),
        (f"{DAY} >&- 2>&-", 0, ""),
        (f"{DAY} <&- >/dev/null 2>&-", 0, ""),
        (f"{DAY} >/dev/full 2>/dev/full", 6, ""),
        (f"{DAY} --help >/dev/full", 6, NOT_WRITTEN.format("No space left on device")),
        (f"{DAY} --speed 2>/dev/full", 2, ""),
        (f"{DAY} --speed 2>&-", 2, ""),
        (f"{sys.executable} etl.py 2001-01-01 2>/dev/full", 5, ""),
        (f"{sys.executable} etl.py 2001-01-01 --debug 2>&-", 5, ""),
        (f"{sys.executable} etl.py 2001-01-01 2001-01-02 >/dev/full 2>/dev/full", 5, ""),
        (f"{DAY} | true", 0, ""),
    ],
)
def test_full_or_closed_standard_streams_change_only_the_exit_code(folder, fonte_api, alvo, line, code, said):
    run = shell(folder, line, external(fonte_api, alvo))
    assert (run.returncode, run.stdout, run.stderr) == (code, "", said)
    if "2001" not in line and "--" not in line:
        # The day stays loaded.
        again = shell(folder, DAY, external(fonte_api, alvo))
        assert "0 values written, 1,152 unchanged" in again.stdout


def test_a_range_is_loaded_to_its_end_although_standard_output_is_full(folder, fonte_api, alvo, undisturbed):
    line = f"{sys.executable} etl.py {' '.join(RANGE)} >/dev/full"
    run = shell(folder, line, external(fonte_api, alvo))
    assert (run.returncode, run.stderr) == (6, NOT_WRITTEN.format("No space left on device"))
    assert alvo_values(alvo) == undisturbed


def test_a_name_beyond_the_encoding_of_standard_output_is_escaped(folder, fonte_api, alvo):
    environment = external(fonte_api, alvo) | {"PYTHONIOENCODING": "ascii", "FONTE_ALVO_HOME": str(folder / "größe")}
    assert shell(folder, f"{DAY} --help", environment).stdout.count(r"gr\xf6\xdfe") == 2


def test_seed_reports_a_lost_summary_by_its_exit_code(folder, fonte):
    environment = os.environ | {"FONTE_DATABASE_URL": fonte.render_as_string(hide_password=False)}
    assert shell(folder, f"{sys.executable} seed.py --days 1 >/dev/full", environment).returncode == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("two\n  lines\tof\x1b[31m red\x07", "two lines of [31m red"),
        ("A" * 5000, "A" * 500 + "..."),
        ("at http://user:s3cret@host/path, and x://t@h", "at http://host/path, and x://h"),
        ("\u202eright to left\u2028", "right to left"),
        ("", ""),
    ],
)
def test_foreign_text_is_cut_and_cleaned(text, said):
    assert command.clean(text) == said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://user:pass@host:8000/api/?token=secret#more", "http://host:8000/api/"),
        ("http://host/", "http://host/"),
        ("user:pass@host", "host"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, said):
    assert command.shown_url(url) == said


def test_an_argument_is_repeated_cut_and_cleaned(capsys):
    with pytest.raises(SystemExit):
        command.Parser(prog="etl.py").parse_args(["\x1b[31m" + "A" * 5000])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said[:-1].isprintable()
    assert len(said) < 600


def test_an_unforeseen_failure_is_one_line_too(capsys):
    def action():
        raise ZeroDivisionError("a bug\nof two lines")

    assert command.run("etl.py", action) == 1
    said = capsys.readouterr().err
    assert said.startswith("etl.py: unexpected ZeroDivisionError: a bug of two lines; run with --debug")
    assert said.count("\n") == 1


def test_a_library_does_not_print_an_error_that_it_also_raises(capsys):
    hook = sys.excepthook

    def action():
        sys.excepthook(SystemError, SystemError("printed by psycopg2"), None)
        return 0

    assert command.run("etl.py", action) == 0
    assert capsys.readouterr().err == ""
    assert sys.excepthook is hook


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["2024-05-20", "--speed", "9"], "--speed"),
        (["--speed=9"], "--speed"),
        (["2024-05-20", "-x", "9"], "-x"),
        (["2024-05-20", "--colunms", "power"], "--colunms (did you mean --columns?)"),
        (["--columns", "power", "--speed", "9", "2024-05-20"], "--speed"),
        (["2024-05-20", "--col", "power"], "--col (did you mean --columns?)"),
        (["2024-05-20", "--de"], "--de (did you mean --debug?)"),
    ],
)
def test_an_unknown_option_is_named(capsys, arguments, named):
    parser = command.Parser(prog="etl.py")
    parser.add_argument("date", type=command.day)
    parser.add_argument("--columns", nargs="+")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"etl.py: unrecognized arguments: {named}; see etl.py --help\n"


def test_a_number_may_be_negative():
    parser = command.Parser(prog="etl.py")
    parser.add_argument("--missing", type=float)
    assert parser.parse_args(["--missing", "-999"]).missing == -999


@pytest.mark.parametrize("kind", ["FILE", "FOLDER"])
def test_the_name_of_a_file_may_be_any_bytes(kind):
    parser = command.Parser(prog="etl.py")
    parser.add_argument("--csv", metavar=kind)
    assert parser.parse_args(["--csv", "caf\udce9.csv"]).csv == "caf\udce9.csv"


@pytest.mark.parametrize(("word", "said"), [("", "''"), ("\udce9", r"'\udce9'")], ids=["empty", "no UTF-8"])
@pytest.mark.parametrize(
    "line", ["etl.py 2024-05-20 --dask {}", "seed.py --missing -9 {}", "-m alvo --port {}", "-m alvo {}"]
)
def test_an_empty_argument_or_one_that_is_no_text_is_refused(run_command, line, word, said):
    run = run_command(*(word if each == "{}" else each for each in line.split()))
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert said in run.stderr
    assert f"argument {(re.findall('--[a-z]+', line) or ['QUERY'])[-1]}" in run.stderr


@pytest.mark.parametrize(("number", "said"), [(0, "0 days"), (1, "1 day"), (2, "2 days"), (1440, "1,440 days")])
def test_one_is_singular(number, said):
    assert command.count(number, "day") == said


def test_every_command_shows_its_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.Parser(prog="etl.py").parse_args(["--version"])
    assert stopped.value.code == 0
    assert re.fullmatch(r"fonte-alvo \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("America/SaoPaulo", "'America/SaoPaulo' is not a time zone (did you mean America/Sao_Paulo?)"),
        ("Berlin", "'Berlin' is not a time zone: expected one such as Europe/Berlin"),
        ("/etc/passwd", "'/etc/passwd' is not a time zone: expected one such as Europe/Berlin"),
    ],
)
def test_an_unknown_zone_is_refused_with_one_that_resembles_it(name, said):
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        command.zone(name)
    assert str(refused.value) == said
