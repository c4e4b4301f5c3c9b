"""What the commands share, where no command shows it by itself."""

import sys

import pytest
from psycopg2 import OperationalError

import command


def test_a_failure_that_has_no_exit_code_is_no_failure_of_the_user(capsys):
    with pytest.raises(ZeroDivisionError):
        command.failed("etl.py", ZeroDivisionError("a bug"), {ValueError: 2}, debug=False)
    assert capsys.readouterr().err == ""


def test_only_what_psycopg2_raises_as_well_is_left_out_of_what_python_prints(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, where: printed.append(error))
    twice, once = SystemError("decode returned a result"), SystemError("another")
    twice.__cause__ = OperationalError("server closed the connection")

    def action():
        for error in (twice, once):
            sys.excepthook(SystemError, error, None)
        return 0

    assert command.run("etl.py", action, {}) == 0
    assert printed == [once]


def test_lines_that_go_to_a_file_stand_there_beside_a_bar_on_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with command.progress(1, "day") as (tell, aside):
        tell("2024-05-20 UTC")
        with aside():
            print("a failure", file=sys.stderr)
    said = capsys.readouterr()
    assert said.out == "2024-05-20 UTC\n"
    assert "1/1" in said.err
    assert "a failure\n" in said.err
