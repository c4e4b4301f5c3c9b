"""What the commands share: arguments, failures on one line with their exit codes, and progress."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tqdm import tqdm


class Failure(Exception):
    """A failure that a command reports on one line: the value, the cause and the remedy."""

    exit_code = 1


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage in front."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """Name an unknown option before anything else: some Pythons would take its value for a date."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in sys.argv[1:] if args is None else args:
            name = word.partition("=")[0]
            if re.match("-[A-Za-z]|--.", name) and not any(option.startswith(name) for option in known):
                self.error(f"unrecognized arguments: {name}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def run(program: str, action: Callable[[], int], *, debug: bool = False) -> int:
    """Return the action's exit code, or that of its failure, which is reported on one line."""
    hook = sys.excepthook
    # psycopg2 prints by it an error that it raises as well.
    sys.excepthook = lambda kind, error, where: None
    try:
        return action()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141  # 128 + SIGPIPE, as a shell reports it
    except KeyboardInterrupt:
        print(f"{program}: interrupted; each day is done wholly or not at all", file=sys.stderr)
        return 130  # 128 + SIGINT, as a shell reports it
    except Exception as error:
        return failed(program, error, debug=debug)
    finally:
        sys.excepthook = hook


def failed(program: str, error: Exception, *, debug: bool) -> int:
    """Report a failure on one line, and return its exit code: 1 for one that nobody foresaw."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, Failure):
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    said = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"{program}: unexpected {said:.500}; run with --debug for the traceback, and report it", file=sys.stderr)
    return 1


def notice(text: str) -> None:
    """Say on a terminal why something takes long; nothing in a pipe."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)


def day(text: str) -> date:
    """Read YYYY-MM-DD. Raises argparse.ArgumentTypeError."""
    try:
        parsed = date.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.isoformat() != text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date: expected YYYY-MM-DD")
    return parsed


def progress(steps: int, unit: str) -> "tqdm[NoReturn]":
    """Make a bar of tqdm's: on a terminal it shows rate and remaining time, elsewhere nothing."""
    # Loaded here, because a day needs none.
    from tqdm import tqdm

    return tqdm(total=steps, unit=unit, dynamic_ncols=True, file=sys.stderr, disable=None)
