"""The connector, the databases and Dagster in one command; Ctrl-C stops them all.

FONTE_API_URL and ALVO_DATABASE_URL name your services; this command starts those that are unset. Dagster keeps its
runs in the folder .dagster of FONTE_ALVO_HOME. Partitions start where Fonte's data start, unless DAGSTER_START_DATE
names another day.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

if __name__ == "__main__":
    from fonte_alvo.command import begin

    begin("python -m orchestration.dagster")

import httpx

from fonte.client import Client
from fonte_alvo import command, settings
from orchestration.dagster import resources
from orchestration.dagster.resources import AlvoDatabase, FonteApi

DAGSTER = [sys.executable, "-m", "dagster"]
DEFINITIONS = "orchestration.dagster.definitions"
LOOK_EVERY_S = 0.5
# Dagster lists a partition per day: one stray row of the year 1 would make 700,000.
EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)


def main() -> int:
    """Run the command; returns its exit code."""
    parser = command.Parser(prog="python -m orchestration.dagster", description=__doc__)
    parser.add_argument(
        "--port", type=_port, default="3000", help="where the browser finds Dagster; default: %(default)s"
    )
    parser.add_argument("--code-server", metavar="HOST", help="serve only the definitions, on --port of this host")
    options = parser.parse_args()

    def act() -> int:
        return _serve_code(options.code_server, options.port) if options.code_server else _serve(options.port)

    return command.run("python -m orchestration.dagster", act, debug=options.debug)


def _port(text: str) -> str:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: expected 1 to 65535")
    return text


def _serve_code(host: str, port: str) -> int:
    """Become a code server for a daemon and a webserver elsewhere, which have their DAGSTER_HOME."""
    with FonteApi().connect() as http:
        environment = settings.child_environment(DAGSTER_START_DATE=str(_start_date(http)))
    line = [*DAGSTER, "api", "grpc", "--module-name", DEFINITIONS, "--host", host, "--port", port]
    os.execve(sys.executable, line, environment)


def _serve(port: str) -> int:
    # Ctrl-C has to work even if the shell that started this set it to be ignored.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    # A closed terminal signals this process, but not Dagster in its own session; under nohup it ignores SIGHUP.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    command.listener(int(port)).close()
    # Report a missing service here on one line, instead of in failing runs. An embedded Fonte gets a row per minute.
    with FonteApi().connect(live=True) as http:
        with AlvoDatabase().connect(connections=1):
            alvo = settings.alvo_database_url()
        environment = settings.child_environment(
            FONTE_API_URL=str(http.base_url),
            DAGSTER_START_DATE=str(_start_date(http)),
            ALVO_DATABASE_URL=alvo.render_as_string(hide_password=False),
            DAGSTER_HOME=str(home := _dagster_home()),
            FONTE_ALVO_HOME=str(home.parent),
            # Dagster recommends `dg dev` instead, which needs a checkout.
            PYTHONWARNINGS="ignore:Function `dev_command` is superseded",
        )
        # A killed command would otherwise leave Dagster without the connector.
        bound = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
        line = [*bound, *DAGSTER, "dev", "--module-name", DEFINITIONS, "--working-directory", str(Path.cwd())]
        # In its home, because Dagster lets a file .env of the current folder override the environment. In another
        # session, so that Ctrl-C reaches Dagster once, and the connector runs until Dagster has stopped.
        with subprocess.Popen([*line, "--port", port], cwd=home, env=environment, start_new_session=True) as dagster:
            try:
                _announce(dagster, f"http://127.0.0.1:{port}")
                return dagster.wait()
            except KeyboardInterrupt:
                # Dagster's runs too, which would lose the connector.
                os.killpg(dagster.pid, signal.SIGINT)
                dagster.wait()
                return 130  # 128 + SIGINT, as a shell reports it


def _announce(dagster: subprocess.Popen[bytes], url: str) -> None:
    """Print the URL when Dagster answers there; print nothing if it ends first."""
    while dagster.poll() is None:
        try:
            httpx.get(f"{url}/server_info", trust_env=False).raise_for_status()
        except httpx.HTTPError:
            with suppress(subprocess.TimeoutExpired):
                dagster.wait(LOOK_EVERY_S)
        else:
            print(f"open {url}", flush=True)
            return


def _start_date(http: Client) -> date:
    """Return DAGSTER_START_DATE, or the day on which Fonte's data start. Raises FonteError and SettingsError."""
    # Imported here, where an invalid setting is reported on one line.
    from orchestration.dagster import partitions

    held = None if settings.dagster_start_date() else resources.period(http)
    return max(held.first, EARLIEST).astimezone(partitions.ZONE).date() if held else partitions.start()


def _dagster_home() -> Path:
    folder = settings.home() / ".dagster"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ours, held = Path(__file__).with_name("dagster.yaml"), folder / "dagster.yaml"
        if not held.exists():
            shutil.copy(ours, held)
        elif held.read_bytes() != ours.read_bytes():
            command.complain(f"{held} stays as it is; delete it for the project's")
    except OSError as error:
        said = f"{folder} cannot be written: {error.strerror}; set FONTE_ALVO_HOME to another folder"
        raise settings.SettingsError(said) from error
    return folder


if __name__ == "__main__":
    sys.exit(main())
