"""Start, restart, find and stop the pipeline's processes.

The keeper starts them, and restarts those that end. Each process has a mark in its environment, by which it is found:
there is no PID file that can be stale, and processes that a `kill -9` leaves behind are found too.
"""

import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

import httpx
import psutil
from sqlalchemy import create_engine

from brt import pipeline, settings
from fonte_alvo.command import Failure

# In the environment of each process of a service, and of no other process.
MARK = "BRT_SERVICE"
# In stopping order: flows before prefect, whose server then still records their end.
NAMES = ("keeper", "flows", "prefect", "stand-in", "postgres")
ENDED = re.compile(r"^\S+ ended with code .*$", re.MULTILINE)
STARTS_WITHIN_S = 180
STOPS_WITHIN_S = 30
LOOKS_EVERY_S = 0.2
KEEPER_LOOKS_EVERY_S = 2.0


class ServiceError(Failure):
    """A service could not be started or stopped."""

    exit_code = 7


def start() -> None:
    """Start the services; returns when all answer. Raises SettingsError, DatabaseError, ServiceError."""
    with pipeline.alone("start"):
        environment = settings.services_environment()
        runs = any(_settings_in(each.info["environ"]) == _settings_in(environment) for each in _members("keeper"))
        if not runs:
            # Services may run with other settings, or without a keeper.
            _stop()
            _refuse_taken_ports()
        if not settings.database_is_embedded():
            with pipeline.database() as pool:
                pool.connect().close()
        log = settings.log_file("keeper")
        try:
            if not runs:
                log.unlink(missing_ok=True)
                _launch("keeper", [sys.executable, "-m", "brt", "keeper"], environment)
            until = time.monotonic() + STARTS_WITHIN_S
            while not _all_answer():
                # A service that ends at its first start would end again.
                ended = ENDED.search(log.read_text()) if not runs else None
                if ended or time.monotonic() > until:
                    missing = f"the services do not answer; {settings.log_file('*')} have the reason"
                    raise ServiceError(ended[0] if ended else missing)
                time.sleep(LOOKS_EVERY_S)
        except (KeyboardInterrupt, ServiceError):
            # The keeper would start the rest.
            _stop()
            raise


def stop() -> list[str]:
    """Stop all services and their children; returns the names of those that ran. Raises ServiceError."""
    with pipeline.alone("start"):
        return _stop()


def keep() -> None:
    """Start the services, and restart each one that ends, until this process ends."""
    environment = settings.services_environment()
    running: dict[str, subprocess.Popen[bytes]] = {}
    while True:
        for name, command in _commands().items():
            if name in running:
                if running[name].poll() is None:
                    continue
                code = running[name].returncode
                print(f"{name} ended with code {code}; {settings.log_file(name)} has the reason", flush=True)
            # The children of a killed service would run beside the new one.
            _end(_members(name))
            running[name] = _launch(name, command, environment)
        time.sleep(KEEPER_LOOKS_EVERY_S)


def hold_postgres() -> None:
    """Keep the embedded PostgreSQL running. Raises ServiceError when it ends, and the errors of database_url."""
    with create_engine(settings.database_url()).connect() as connection:
        select.select([connection.connection.fileno()], [], [])
    raise ServiceError("PostgreSQL has ended")


def wait_for_prefect() -> None:
    """Wait until Prefect's server answers."""
    while not _answers(settings.prefect_port(), "/api/health"):
        time.sleep(LOOKS_EVERY_S)


def _commands() -> dict[str, list[str]]:
    python = [sys.executable, "-m"]
    steps = ["postgres"] * settings.database_is_embedded() + ["stand-in"] * settings.api_is_stand_in() + ["flows"]
    return {"prefect": [*python, "prefect", "server", "start"]} | {step: [*python, "brt", step] for step in steps}


def _members(name: str) -> list[psutil.Process]:
    """Return the processes of a service, its children included."""
    mark = f"{settings.folder()} {name}"
    # The environment is None if this user may not read it; a zombie has none.
    return [one for one in psutil.process_iter(["environ"]) if (one.info["environ"] or {}).get(MARK) == mark]


def _settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    ours = ("BRT_", "PREFECT_")
    return {name: value for name, value in environment.items() if name.startswith(ours) and name != MARK}


def _refuse_taken_ports() -> None:
    # No server listens on port 0.
    ports = {
        "BRT_POSTGRES_PORT": settings.postgres_port() if settings.database_is_embedded() else 0,
        "BRT_PREFECT_PORT": settings.prefect_port(),
        "BRT_STAND_IN_PORT": settings.stand_in_port() if settings.api_is_stand_in() else 0,
    }
    for variable, port in ports.items():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise ServiceError(f"port {port} is in use: set {variable} to another one")


def _launch(name: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with settings.log_file(name).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=settings.PROJECT,
            env={**environment, MARK: f"{settings.folder()} {name}"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _stop() -> list[str]:
    stopped = []
    for name in NAMES:
        if running := _members(name):
            _end(running)
            stopped.append(name)
    return stopped


def _end(processes: list[psutil.Process]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        for _ in range(STOPS_WITHIN_S):
            left = psutil.wait_procs(processes, timeout=1)[1]
            # A container's PID 1 may never reap a zombie.
            found = psutil.process_iter(["status"])
            processes = [one for one in found if one in left and one.info["status"] != psutil.STATUS_ZOMBIE]
    if processes:
        raise ServiceError(f"processes do not end: {', '.join(str(process.pid) for process in processes)}")


def _answers(port: int, path: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _all_answer() -> bool:
    """Tell whether the stand-in and Prefect's server answer, and a runner of each flow is ready."""
    url = f"http://127.0.0.1:{settings.prefect_port()}/api/deployments/filter"
    names = list(settings.DEPLOYMENTS.values())
    if settings.api_is_stand_in() and not _answers(settings.stand_in_port(), "/health"):
        return False
    try:
        found = httpx.post(url, json={"deployments": {"name": {"any_": names}}}, trust_env=False, timeout=10).json()
    except (httpx.HTTPError, ValueError):
        return False
    return len(found) == len(names) and all(each["status"] == "READY" and not each["paused"] for each in found)
