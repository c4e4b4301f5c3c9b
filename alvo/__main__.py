"""Serve Alvo's page and API on 127.0.0.1 until Ctrl-C, or answer a query.

  python -m alvo                                     the page, on http://127.0.0.1:8080
  python -m alvo "SELECT * FROM signal"              the result of a query as CSV; it cannot change a table
  python -m alvo --url                               run the embedded PostgreSQL for psql and other tools, until Ctrl-C

Alvo is the database that ALVO_DATABASE_URL names; unset, it is the embedded one (see etl.py --help).
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

if __name__ == "__main__":
    from fonte_alvo.command import begin

    begin("python -m alvo")

import uvicorn
from psycopg2 import Error as PostgresError
from psycopg2.errors import InsufficientPrivilege, UndefinedTable
from sqlalchemy import URL, text

from alvo import api, schema
from fonte import local
from fonte_alvo import command, engine, settings

# SQLSTATE classes that are no fault of the query: connection, conflicts, resources, locks, an operator, the system.
_NOT_THE_QUERY = ("08", "40", "53", "55", "57", "58", "XX")
# Refuses all but one statement. A query could otherwise close COPY's parenthesis, COMMIT, and write.
_ONE = "DO $$ DECLARE one refcursor; BEGIN OPEN one FOR EXECUTE current_setting('alvo.query'); END $$"
ONE_SELECT = "correct it: one SELECT"
REMEDIES = {
    UndefinedTable: "correct its name, or load a day first",
    InsufficientPrivilege: "use a role that may read it",
}
FIX = "set ALVO_DATABASE_URL, or correct what the message names"


class QueryError(command.Failure):
    """Alvo refuses a query."""

    exit_code = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return an exit code like etl.py's."""
    parser = command.Parser("python -m alvo", __doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("query", nargs="?", metavar="QUERY", help="a SELECT")
    what.add_argument("--url", action="store_true", help="show the embedded Alvo's URL, and keep its server running")
    what.add_argument("--port", type=int, default=8080, help="where the browser finds the page; default: %(default)s")
    options = parser.parse_args(arguments)

    def act() -> int:
        if options.query is not None:
            return _answer(options.query)
        return _hold() if options.url else _serve(options.port)

    return command.run("python -m alvo", act, debug=options.debug)


def _answer(query: str) -> int:
    with engine.failures("Alvo", FIX), engine.create(settings.alvo_database_url(), "alvo query").begin() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        copy = f"COPY ({query.rstrip().rstrip(';')}\n) TO STDOUT (FORMAT csv, HEADER)"
        cursor = connection.connection.cursor()
        try:
            cursor.execute("SELECT set_config('alvo.query', %s, true)", [query])
            cursor.execute(_ONE)
            with ThreadPoolExecutor(1) as threads:
                copying = threads.submit(cursor.copy_expert, copy, sys.stdout)
                try:
                    copying.result()
                except KeyboardInterrupt:
                    # The thread would wait, in libpq for the server, or for the reader of a full pipe.
                    command.complain("python -m alvo: interrupted; nothing is left half done")
                    os._exit(130)  # 128 + SIGINT, as a shell reports it
        except BaseException as error:
            if isinstance(error, PostgresError) and error.pgcode and not error.pgcode.startswith(_NOT_THE_QUERY):
                remedy = REMEDIES.get(type(error), ONE_SELECT)
                raise QueryError(f"the query failed: {error.diag.message_primary}; {remedy}") from error
            # Otherwise the rollback would first receive the rest of the result, or hide why the connection was lost.
            connection.invalidate()
            raise
    return 0


def _hold() -> int:
    if not settings.database_is_embedded("Alvo"):
        raise settings.SettingsError("ALVO_DATABASE_URL names Alvo already: --url is for the embedded one")
    url = settings.alvo_database_url()
    # Without the other parameters: only libpq knows them.
    plain = URL.create("postgresql", url.username, url.password, url.host, url.port, url.database)
    with suppress(KeyboardInterrupt):
        print(plain.render_as_string(hide_password=False), flush=True)
        command.notice("the server runs until Ctrl-C")
        signal.pause()
    return 130  # 128 + SIGINT, as a shell reports it


def _serve(port: int) -> int:
    # A wrong setting would end the server after its address is printed.
    settings.admin("Alvo")
    settings.allowed("Alvo")
    with command.listener(port) as listener, local.base_url() as base_url:
        api.check_client(base_url)
        with engine.failures("Alvo", FIX):
            with engine.create(settings.alvo_database_url(), "alvo api").begin() as connection:
                schema.create_absent(connection)
        api.app.state.fonte_api_url = base_url
        config = uvicorn.Config(api.app, http="h11", ws="none", log_config=None, workers=1)
        config.timeout_graceful_shutdown = 10
        logging.basicConfig(format="%(levelname)s: %(message)s")
        print(f"Alvo: http://127.0.0.1:{listener.getsockname()[1]} until Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run([listener])
    return 130  # 128 + SIGINT, as a shell reports it


if __name__ == "__main__":
    sys.exit(main())
