"""Serves Alvo's page and API on this machine, with the embedded databases where none are named."""

import logging
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

if __name__ == "__main__":
    from fonte_alvo.command import begin

    begin("python -m alvo")

import uvicorn

from alvo import api, schema
from fonte import local
from fonte_alvo import command, engine, settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns an exit code as etl.py's."""
    parser = command.Parser(prog="python -m alvo", description="Serve Alvo's page and API on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=8080, help="where the browser finds the page; default: 8080")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    options = parser.parse_args(arguments)
    return command.run("python -m alvo", lambda: _serve(options.port), debug=options.debug)


def _serve(port: int) -> int:
    settings.alvo_admin()
    with local.base_url() as base_url:
        with engine.failures("Alvo", "set ALVO_DATABASE_URL, or mend what the message says"):
            with engine.create(settings.alvo_database_url(), "alvo api").begin() as connection:
                schema.create_absent(connection)
        api.app.state.fonte_api_url = base_url
        try:
            listener = socket.create_server(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise settings.SettingsError(f"port {port} cannot be used: {error}; choose another by --port") from error
        logging.basicConfig(format="%(levelname)s: %(message)s")
        print(f"Alvo: http://127.0.0.1:{listener.getsockname()[1]} until Ctrl-C", flush=True)
        with listener, suppress(KeyboardInterrupt):
            uvicorn.Server(
                uvicorn.Config(api.app, http="h11", ws="none", log_config=None, timeout_graceful_shutdown=10)
            ).run([listener])
    return 130  # 128 + SIGINT, as a shell reports it


if __name__ == "__main__":
    sys.exit(main())
