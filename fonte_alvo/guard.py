"""Runs the embedded PostgreSQL while any process uses it. Started by fonte_alvo.embedded, never by hand.

Four lock files in the server's folder are the whole protocol. The kernel releases a lock when its holder ends, however
it ends, so nothing here depends on a clean exit:

- users.lock: every user holds it shared; the guard gets it exclusively when the last user has ended.
- guard.lock: the guard holds it exclusively while users may join the server.
- start.lock: a user holds it exclusively while it looks for a guard and starts one.
- server.lock: the server and all its processes inherit it. Once the guard gets it, none of them lives; the number in
  postmaster.pid cannot prove that.
"""

import fcntl
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired, run
from typing import BinaryIO

NOBODY = "65534"
FAST_SHUTDOWN_S = 1.5
START_ATTEMPTS = 3
PAUSE_S = 0.01


def main() -> None:
    """Serve the folder argv[2] with the binaries in argv[1], on port argv[3], until its last user has ended."""
    binaries, folder, fixed_port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    if os.fork():
        # The starter waits for this process; the child serves on.
        os._exit(0)
    try:
        serve(binaries, folder, fixed_port)
    except OSError as error:
        sys.exit(str(error))


def serve(binaries: Path, folder: Path, fixed_port: int) -> None:
    """Start the server, write its port down, and stop it when its last user has ended."""
    guard_lock = locked(folder / "guard.lock")
    log = (folder / "server.log").open("wb")
    if not (folder / "data").exists():
        initialise(binaries, folder, log)
    server = start(binaries, folder, log, locked(folder / "server.lock"), fixed_port)
    # The starter reads this output to its end, so it must end here.
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    # If the server ends by itself, so does this process: the next user finds no guard and starts another.
    threading.Thread(target=lambda: (server.wait(), os._exit(0)), daemon=True).start()

    with locked(folder / "users.lock"):
        # A new user now waits for this lock, which lasts as long as this process, and must then find no guard.
        guard_lock.close()
        server.send_signal(signal.SIGINT)
        try:
            server.wait(FAST_SHUTDOWN_S)
        except TimeoutExpired:
            server.send_signal(signal.SIGQUIT)
            server.wait()


def locked(path: Path) -> BinaryIO:
    """Wait for the exclusive lock of a file, and return the file that holds it."""
    file = path.open("ab")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def run_as_owner() -> list[str]:
    """Return a command prefix: PostgreSQL never runs as root and, with setpriv, not longer than this process.

    Root's server becomes nobody with one capability: to reach a checkout or an environment in a folder that is closed
    to others, such as root's home. Otherwise that folder would have to be opened to everybody. PostgreSQL looks for
    its own files with access(2), which respects the capability only with the secure bit.
    """
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0:
        return [setpriv, "--pdeathsig", "INT"] if setpriv else []
    if not setpriv:
        sys.exit("running as root needs the command setpriv (util-linux): install it, or run as a normal user")
    nobody = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--securebits=+no_setuid_fixup"]
    return [setpriv, *nobody, "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--pdeathsig", "INT"]


def initialise(binaries: Path, folder: Path, log: BinaryIO) -> None:
    """Create the cluster and its databases under a temporary name; the rename completes it."""
    unfinished, password_file = folder / "data.new", folder / "password"
    shutil.rmtree(unfinished, ignore_errors=True)
    password_file.unlink(missing_ok=True)
    password_file.touch(0o600)
    password_file.write_text(secrets.token_urlsafe(24))
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    access = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={password_file}"]
    initdb: list[str | Path] = [*run_as_owner(), binaries / "initdb", "-D", unfinished, *locale, *access]
    single_user: list[str | Path] = [*run_as_owner(), binaries / "postgres", "--single", "-D", unfinished, "postgres"]
    for command, given in ((initdb, b""), (single_user, b"CREATE DATABASE fonte;\nCREATE DATABASE alvo;\n")):
        # With an empty environment, because PGDATESTYLE, PGPORT and PGCLIENTENCODING would set up the server too.
        if run(command, input=given, stdout=log, stderr=log, env={}).returncode != 0:
            sys.exit(last_words(log))
    unfinished.rename(folder / "data")


def start(binaries: Path, folder: Path, log: BinaryIO, lock: BinaryIO, fixed_port: int) -> Popen[bytes]:
    """Start the server, which inherits the lock, on the fixed port, or with 0 on a free one, and write the port down.

    If another process takes the free port first, try again.
    """
    pid_file = folder / "data" / "postmaster.pid"
    for _ in range(START_ATTEMPTS):
        # The lock proves it stale, even if another process has its number by now.
        pid_file.unlink(missing_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = fixed_port or probe.getsockname()[1]
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", "unix_socket_directories="]
        command: list[str | Path] = [*run_as_owner(), binaries / "postgres", "-D", folder / "data", *settings]
        server = Popen(command, stdin=DEVNULL, stdout=log, stderr=log, env={}, pass_fds=[lock.fileno()])
        if became_ready(server, pid_file):
            (folder / "port").write_text(f"{port}\n")
            return server
    sys.exit(last_words(log))


def became_ready(server: Popen[bytes], pid_file: Path) -> bool:
    """Wait until the server's pid file says that it is ready (True) or the server ends (False)."""
    while server.poll() is None:
        lines = pid_file.read_text(errors="replace").split("\n") if pid_file.exists() else []
        if len(lines) > 7 and lines[7].strip() == "ready":
            return True
        time.sleep(PAUSE_S)
    return False


def last_words(log: BinaryIO) -> str:
    """Return the last error in the log, and the log's name."""
    lines = Path(log.name).read_text(errors="replace").splitlines()
    errors = [line for line in lines if "error:" in line or "FATAL:" in line]
    return f"{(errors or lines or ['it ended'])[-1]} (see {log.name})"


if __name__ == "__main__":
    main()
