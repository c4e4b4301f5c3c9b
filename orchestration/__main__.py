"""The connector, the databases and Dagster in one command; Ctrl-C stops them all.

FONTE_API_URL and ALVO_DATABASE_URL name services of your own; what is unset is started here.
"""

import signal
import subprocess
import sys
from pathlib import Path

import command
import settings
from fonte.client import FonteError
from orchestration.resources import AlvoDatabase, FonteApi
from postgres import engine

ROOT = Path(__file__).resolve().parent.parent
EXIT_CODES = {settings.SettingsError: 2, FonteError: 3, engine.DatabaseError: 4}


def main() -> int:
    """Run the command; returns its exit code."""
    parser = command.Parser(prog="python -m orchestration", description=__doc__)
    parser.add_argument("--port", default="3000", help="where the browser finds Dagster; default: %(default)s")
    options = parser.parse_args()
    return command.run("orchestration", lambda: _serve(options.port), EXIT_CODES)


def _serve(port: str) -> int:
    # Also where the shell that started this lets Ctrl-C be ignored.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    # What is away is told here in one line, and not by runs that fail.
    with FonteApi().connect() as http:
        with AlvoDatabase().connect(connections=1):
            alvo = settings.alvo_database_url()
        environment = settings.child_environment(
            FONTE_API_URL=str(http.base_url), ALVO_DATABASE_URL=alvo.render_as_string(hide_password=False)
        )
        line = [str(Path(sys.executable).with_name("dg")), "dev", "--use-active-venv", "--port", port]
        # Of a session of its own, so that Ctrl-C reaches it once, and the connector lasts until it has stopped.
        with subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True) as dagster:
            try:
                return dagster.wait()
            except KeyboardInterrupt:
                dagster.send_signal(signal.SIGINT)
                dagster.wait()
                return 130  # 128 + SIGINT, as a shell reports it


if __name__ == "__main__":
    sys.exit(main())
