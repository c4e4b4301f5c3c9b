"""The processes of the pipeline: started, found again, and stopped, each a process group of its own."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import psutil

from brt import pipeline, settings
from fonte_alvo import engine
from fonte_alvo.command import Failure

# In the environment of each process of a service, and of no other process.
MARK = "BRT_SERVICE"
STARTS_WITHIN_S = 180
STOPS_WITHIN_S = 30
LOOKS_EVERY_S = 0.2


class ServiceError(Failure):
    """A service could not be started or stopped."""

    exit_code = 7


def start() -> None:
    """Start what does not run yet; returns when all answer. Raises SettingsError, DatabaseError, ServiceError."""
    python = [sys.executable, "-m"]
    with pipeline.alone("services"), pipeline.database() as pool:
        with engine.failures("BRT's database", "check BRT_DATABASE_URL, and that a server runs there"):
            pool.connect().close()
        if settings.api_is_stand_in():
            port = settings.stand_in_port()
            _run("stand-in", [*python, "brt", "stand-in"], port, lambda: _answers(port, "/health"))
        port = settings.prefect_port()
        _run("prefect", [*python, "prefect", "server", "start"], port, lambda: _answers(port, "/api/health"))
        _run("flows", [*python, "brt", "flows"], None, _flows_are_ready)


def stop() -> list[str]:
    """Stop all services and their children; returns the names of those that ran. Raises ServiceError."""
    stopped = []
    with pipeline.alone("services"):
        # The flows first, while Prefect's server can still note that they end.
        for name in ("flows", "prefect", "stand-in"):
            if running := members(name):
                _end(running)
                stopped.append(name)
            _pid_file(name).unlink(missing_ok=True)
        if settings.database_is_embedded():
            _wait_for_postgres()
    return stopped


def members(name: str) -> list[psutil.Process]:
    """Return the processes of a service: those of its group with its mark, or all with it where no group is noted."""
    group = _group(name)
    found = []
    for process in psutil.process_iter():
        try:
            # A group's number may have gone to another program since; the mark alone has PostgreSQL as well, where a
            # service had to start it.
            if group in (None, os.getpgid(process.pid)) and process.status() != psutil.STATUS_ZOMBIE:
                found += [process] * (process.environ().get(MARK) == _mark(name))
        except (psutil.Error, OSError):
            continue
    return found


def log_file(name: str) -> Path:
    """Return where a service's output goes."""
    return settings.folder() / f"{name}.log"


def _run(name: str, command: list[str], port: int | None, is_ready: Callable[[], bool]) -> None:
    environment = settings.services_environment() | {MARK: _mark(name), "PYTHONUNBUFFERED": "1"}
    if not _runs(name, environment):
        _launch(name, command, port, environment)
    until = time.monotonic() + STARTS_WITHIN_S
    while not is_ready():
        if not members(name) or time.monotonic() > until:
            _end(members(name))
            raise ServiceError(f"{name} did not start; {log_file(name)} tells why")
        time.sleep(LOOKS_EVERY_S)


def _runs(name: str, environment: Mapping[str, str]) -> bool:
    """Tell whether a service's first process runs, with these settings."""
    first = [process for process in members(name) if process.pid == _group(name)]
    return any(_settings_in(process.environ()) == _settings_in(environment) for process in first)


def _settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(("BRT_", "PREFECT_"))}


def _launch(name: str, command: list[str], port: int | None, environment: Mapping[str, str]) -> None:
    # Children of a service that was killed would go on beside the new one, and so would one with other settings.
    _end(members(name))
    if port and _is_taken(port):
        variable = {"prefect": "BRT_PREFECT_PORT", "stand-in": "BRT_STAND_IN_PORT"}[name]
        raise ServiceError(f"port {port}, meant for {name}, is in use: set {variable} to another one")
    # A number that is not the new one's would hide it, if this process were killed in between.
    _pid_file(name).unlink(missing_ok=True)
    with log_file(name).open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=settings.PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _pid_file(name).write_text(str(process.pid))


def _end(processes: list[psutil.Process]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            try:
                process.send_signal(how)
            except psutil.NoSuchProcess:
                continue
        _, processes = psutil.wait_procs(processes, timeout=STOPS_WITHIN_S)
    if processes:
        raise ServiceError(f"processes {[process.pid for process in processes]} do not end")


def _wait_for_postgres() -> None:
    """Wait until the embedded server has ended, as it does after its last user."""
    folder = settings.postgres_folder()
    until = time.monotonic() + STOPS_WITHIN_S
    for name in ("guard.lock", "users.lock") if folder.exists() else ():
        with (folder / name).open("ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise ServiceError("PostgreSQL still runs: another process uses its database") from None
                    time.sleep(LOOKS_EVERY_S)


def _pid_file(name: str) -> Path:
    return settings.folder() / f"{name}.pid"


def _group(name: str) -> int | None:
    """Return the number of a service's first process, which is its group's too; None where it is not noted."""
    try:
        return int(_pid_file(name).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _mark(name: str) -> str:
    return f"{settings.folder()} {name}"


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(port: int, path: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _flows_are_ready() -> bool:
    """Tell whether Prefect's server has heard of a runner of each flow."""
    url = f"http://127.0.0.1:{settings.prefect_port()}/api/deployments/filter"
    names = list(settings.DEPLOYMENTS.values())
    try:
        found = httpx.post(url, json={"deployments": {"name": {"any_": names}}}, trust_env=False, timeout=10).json()
    except httpx.HTTPError:
        return False
    return len(found) == len(names) and all(each["status"] == "READY" and not each["paused"] for each in found)
