"""The parts that all commands share: arguments, failures on one line with an exit code, and progress."""

import argparse
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, tzinfo
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING, Any, NoReturn
from zoneinfo import ZoneInfo, available_timezones

if TYPE_CHECKING:
    from tqdm import tqdm

DAYS_AGO = {"today": 0, "yesterday": 1}
# The exit code if the work is done but standard output cannot be written.
OUTPUT_LOST = 6
# The extras that install packages which only some commands need.
EXTRAS = {"dagster": "[dagster]", "distributed": "[dask]", "matplotlib": "[plot]"}


class Failure(Exception):
    """A failure that a command reports on one line: the value, the cause and the remedy."""

    exit_code = 1


class PortError(Failure):
    """A port of this machine cannot be used, such as one that another program has."""

    exit_code = 2


class Output(FileIO):
    """Standard output; it remembers a failed write, because the buffers above may drop the bytes."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:  # noqa: ANN401
        """Write some of the bytes; return how many."""
        try:
            return super().write(data)
        except OSError as error:
            Output.failure = error
            raise


class Parser(argparse.ArgumentParser):
    """An argument parser with --debug and --version; an error is one line without the usage."""

    def __init__(self, prog: str, description: str | None = None, epilog: str | None = None) -> None:
        """Keep the line breaks of the texts."""
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, epilog=epilog, formatter_class=raw, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of a failure")
        self.add_argument("--version", action="store_true", help="show the version and exit")

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """Report an unknown option first: some versions of Python would take its value for a date."""
        known = [option for action in self._actions for option in action.option_strings]
        words = sys.argv[1:] if args is None else args
        if "--version" in words:
            # Imported here, because a day does not need it.
            from importlib.metadata import version

            print(f"fonte-alvo {version('fonte-alvo')}")
            self.exit()
        for word in words:
            name = word.partition("=")[0]
            if re.match("-[A-Za-z]|--.", name) and name not in known:
                self.error(f"unrecognized arguments: {name}{did_you_mean(name, known)}")
        return super().parse_args(args, namespace)

    def _get_value(self, action: argparse.Action, text: str) -> object:
        """Refuse an argument that is empty or no text; the name of a file may be any bytes."""
        if not text or (action.metavar not in ("FILE", "FOLDER") and re.search(r"[\ud800-\udfff]", text)):
            raise argparse.ArgumentError(action, f"{text!r} is {'not UTF-8' if text else 'empty'}")
        return super()._get_value(action, text)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {clean(message)}; see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit, even if a standard stream cannot be written."""
        if message:
            complain(message)
        sys.exit(finished(self.prog, status))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that suggests a similar known word; empty if there is none."""
    from difflib import get_close_matches

    return "".join(f" (did you mean {near}?)" for near in get_close_matches(word, known, 1, 0.7))


def clean(text: str, most: int = 500) -> str:
    """Make foreign text safe to print: cut it, join its lines, remove control characters and passwords in URLs."""
    shown = (character if character.isprintable() else " " for character in text[: 10 * most])
    line = re.sub(r"://[^/?#\s]*@", "://", " ".join("".join(shown).split()))
    return line if len(line) <= most else f"{line[:most]}..."


def shown_url(url: object) -> str:
    """Return a URL without the parts that may be secret: user and password, query and fragment."""
    shown = re.split("[?#]", str(url), maxsplit=1)[0]
    return clean(shown if "://" in shown else shown.rpartition("@")[2])


def begin(program: str) -> None:
    """Report a failure during the imports on one line, and end silently on Ctrl-C.

    Call this first. It reopens closed standard streams, so that no other file gets their numbers.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # The new file gets the lowest free number: the stream's.
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    encoding = sys.stdout.encoding if sys.stdout else None
    # Always buffered, even with PYTHONUNBUFFERED: the flush at the end then shows whether it can be written.
    raw = Output(1, "w", closefd=False)
    sys.stdout = TextIOWrapper(BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty())
    sys.excepthook = lambda kind, error, where: os._exit(failed(program, error, debug=False))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: object) -> None:
    os._exit(128 + number)  # as a shell reports it


def complain(line: str) -> None:
    """Write a line to standard error, if that is possible."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def say(line: str) -> None:
    """Write a line to standard output at once. If that fails, `finished` reports it; a closed pipe ends the command."""
    try:
        print(line, flush=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise


def finished(program: str, code: int) -> int:
    """Return the exit code; if standard output cannot be written, the code for that replaces 0."""
    try:
        if sys.stdout:
            sys.stdout.flush()
        if Output.failure:
            raise Output.failure
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return 141  # 128 + SIGPIPE, as a shell reports it
        complain(f"{program}: standard output cannot be written: {error.strerror}; what was done stays done")
        return code or OUTPUT_LOST
    return code


def run(program: str, action: Callable[[], int], *, debug: bool = False) -> int:
    """Run an action and return its exit code; a failure is reported on one line and has its own code."""
    hook, interrupt = sys.excepthook, signal.getsignal(signal.SIGINT)
    # psycopg2 not only raises some errors but also prints them through this hook.
    sys.excepthook = lambda kind, error, where: None
    if interrupt is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return finished(program, action())
    except KeyboardInterrupt:
        complain(f"{program}: interrupted; nothing is left half done")
        return 130  # 128 + SIGINT, as a shell reports it
    except Exception as error:
        lost = finished(program, 0) if isinstance(error, OSError) else 0
        return lost or failed(program, error, debug=debug)
    finally:
        sys.excepthook = hook
        if interrupt is _end:
            signal.signal(signal.SIGINT, _end)


def failed(program: str, error: BaseException, *, debug: bool) -> int:
    """Report a failure on one line and return its exit code, 1 for an unexpected one."""
    if debug:
        import traceback

        complain("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, Failure):
        complain(f"{program}: {clean(str(error), 2000)}")
        return error.exit_code
    if isinstance(error, ImportError):
        extra = next((extra for name, extra in EXTRAS.items() if name in str(error.name)), "")
        complain(f"{program}: {clean(str(error))}; install what is missing: python -m pip install '.{extra}'")
        return 2
    said = clean(f"{type(error).__name__}: {error}")
    complain(f"{program}: unexpected {said}; run with --debug for the traceback, and report it")
    return 1


def listener(port: int) -> socket.socket:
    """Listen at a port of the loopback interface, 0 for any free one. Raises PortError."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise PortError(f"port {port} cannot be used: {error}; choose another by --port") from error


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 day` or `1,440 samples`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def notice(text: str) -> None:
    """Say on a terminal why something takes long; write nothing into a pipe."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)


def day(text: str, zone: tzinfo = UTC) -> date:
    """Read YYYY-MM-DD, or today or yesterday in that zone. Raises argparse.ArgumentTypeError."""
    if text in DAYS_AGO:
        return datetime.now(zone).date() - timedelta(days=DAYS_AGO[text])
    with suppress(ValueError):
        # Python also reads 20240520 and 2024-W21-1.
        if date.fromisoformat(text).isoformat() == text:
            return date.fromisoformat(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a date: expected YYYY-MM-DD, today or yesterday")


def zone(name: str) -> ZoneInfo:
    """Read the name of a time zone. Raises argparse.ArgumentTypeError."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        near = did_you_mean(name, available_timezones()) or ": expected one such as Europe/Berlin"
        raise argparse.ArgumentTypeError(f"{name!r} is not a time zone{near}") from None


def progress(steps: int, unit: str) -> "tqdm[NoReturn]":
    """Make a tqdm bar: on a terminal it shows the rate and the remaining time, elsewhere nothing."""
    # Imported here, because a day needs no bar.
    from tqdm import tqdm

    return tqdm(total=steps, unit=unit, dynamic_ncols=True, file=sys.stderr, disable=None)
