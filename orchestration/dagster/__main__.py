"""The connector, the databases and Dagster in one command; Ctrl-C stops them all.

FONTE_API_URL and ALVO_DATABASE_URL name services of your own; what is unset is started here. Dagster keeps its runs
in the folder .dagster of FONTE_ALVO_HOME.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    from fonte_alvo.command import begin

    begin("python -m orchestration.dagster")

from fonte_alvo import command, settings
from orchestration.dagster.resources import AlvoDatabase, FonteApi

DEFINITIONS = "orchestration.dagster.definitions"


def main() -> int:
    """Run the command; returns its exit code."""
    parser = command.Parser(prog="python -m orchestration.dagster", description=__doc__)
    parser.add_argument("--port", default="3000", help="where the browser finds Dagster; default: %(default)s")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    options = parser.parse_args()
    return command.run("python -m orchestration.dagster", lambda: _serve(options.port), debug=options.debug)


def _serve(port: str) -> int:
    # Also where the shell that started this lets Ctrl-C be ignored.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    # What is away is reported here in one line, and not by runs that fail.
    with FonteApi().connect() as http:
        with AlvoDatabase().connect(connections=1):
            pass
        environment = settings.child_environment(
            FONTE_API_URL=str(http.base_url),
            DAGSTER_HOME=str(_dagster_home()),
            # `dg dev`, which it recommends instead, needs a checkout.
            PYTHONWARNINGS="ignore:Function `dev_command` is superseded",
        )
        line = [str(Path(sys.executable).with_name("dagster")), "dev", "--module-name", DEFINITIONS, "--port", port]
        # Of a session of its own, so that Ctrl-C reaches it once, and the connector lasts until it has stopped.
        with subprocess.Popen(line, env=environment, start_new_session=True) as dagster:
            try:
                return dagster.wait()
            except KeyboardInterrupt:
                dagster.send_signal(signal.SIGINT)
                dagster.wait()
                return 130  # 128 + SIGINT, as a shell reports it


def _dagster_home() -> Path:
    folder = settings.home() / ".dagster"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("dagster.yaml"), folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
