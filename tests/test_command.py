"""What the commands share, where no command shows it by itself."""

import sys

import pytest

from fonte_alvo import command


def test_a_failure_that_nobody_foresaw_is_one_line_too(capsys):
    def action():
        raise ZeroDivisionError("a bug\nof two lines")

    assert command.run("etl.py", action) == 1
    said = capsys.readouterr().err
    assert said.startswith("etl.py: unexpected ZeroDivisionError: a bug of two lines; run with --debug")
    assert said.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    assert command.failed("etl.py", command.Failure("a reason"), debug=True) == 1
    traceback, line = capsys.readouterr().err.strip().rsplit("\n", 1)
    assert "Failure: a reason" in traceback
    assert line == "etl.py: a reason"


def test_an_error_that_is_raised_is_not_printed_by_a_library_as_well(capsys):
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
        (["--columns", "power", "--speed", "9", "2024-05-20"], "--speed"),
    ],
)
def test_an_unknown_option_is_what_is_named(capsys, arguments, named):
    parser = command.Parser(prog="etl.py")
    parser.add_argument("date", type=command.day)
    parser.add_argument("--columns", nargs="+")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"etl.py: unrecognized arguments: {named}; see etl.py --help\n"


def test_options_may_be_abbreviated_and_numbers_negative():
    parser = command.Parser(prog="etl.py")
    parser.add_argument("--columns", nargs="+")
    parser.add_argument("--missing", type=float)
    assert vars(parser.parse_args(["--col", "power", "--missing", "-999"])) == {"columns": ["power"], "missing": -999}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_a_bar_and_a_pipe_nothing(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with command.progress(1, "day") as bar:
        bar.update()
        with bar.external_write_mode(file=sys.stderr):
            print("a failure", file=sys.stderr)
    shown = capsys.readouterr().err
    assert ("1/1" in shown) == terminal
    assert "a failure\n" in shown
