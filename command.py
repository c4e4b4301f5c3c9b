"""What the commands share: arguments, failures on one line, and their exit codes."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import date
from types import TracebackType
from typing import NoReturn

from psycopg2 import Error as PostgresError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def run(
    program: str, action: Callable[[], int], exit_codes: Mapping[type[Exception], int], *, debug: bool = False
) -> int:
    """Return the action's exit code, or that of its failure, told on one line; the first type that fits counts."""
    try:
        with _each_failure_told_once():
            return action()
    except tuple(exit_codes) as error:
        return failed(program, error, exit_codes, debug=debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141  # 128 + SIGPIPE, as a shell reports it
    except KeyboardInterrupt:
        print(f"{program}: interrupted; what was in hand is done wholly or not at all", file=sys.stderr)
        return 130  # 128 + SIGINT, as a shell reports it


@contextmanager
def _each_failure_told_once() -> Iterator[None]:
    """Leave out what psycopg2 itself prints of a server that ended within a COPY: it raises that as well."""
    hook = sys.excepthook

    def unless_raised(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if not isinstance(error.__cause__, PostgresError):
            hook(kind, error, where)

    sys.excepthook = unless_raised
    try:
        yield
    finally:
        sys.excepthook = hook


def failed(program: str, error: Exception, exit_codes: Mapping[type[Exception], int], *, debug: bool) -> int:
    """Tell a failure on one line, and return its exit code. Raises the failure where it has none."""
    code = next((code for kind, code in exit_codes.items() if isinstance(error, kind)), None)
    if code is None:
        raise error
    if debug:
        traceback.print_exception(error)
    print(f"{program}: {error}", file=sys.stderr)
    return code


def day(text: str) -> date:
    """Read YYYY-MM-DD. Raises argparse.ArgumentTypeError."""
    try:
        parsed = date.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.isoformat() != text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date: expected YYYY-MM-DD")
    return parsed


@contextmanager
def progress(
    steps: int, unit: str
) -> Iterator[tuple[Callable[[str | None], None], Callable[[], AbstractContextManager[object]]]]:
    """Give a function that tells of a finished step, and a context for other lines.

    On a terminal a bar with rate and remaining time moves; elsewhere each step is a line.
    """
    if not sys.stderr.isatty():
        yield lambda line: print(line, flush=True) if line else None, nullcontext
        return
    from tqdm import tqdm

    with tqdm(total=steps, unit=unit, dynamic_ncols=True, file=sys.stderr) as bar:

        def tell(line: str | None) -> None:
            if line and not sys.stdout.isatty():
                print(line, flush=True)
            bar.update()

        yield tell, lambda: tqdm.external_write_mode(file=sys.stderr)
