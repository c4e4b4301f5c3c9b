"""The connector's base URL: FONTE_API_URL, or where that is unset, one that this process serves on loopback."""

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fonte.client import FonteError
from fonte_alvo import command, settings
from fonte_alvo.engine import create, failures, reason


def base_url(given: str | None = None, *, live: bool = False) -> AbstractContextManager[str]:
    """Give the connector's base URL: the given one, FONTE_API_URL, or that of a connector served within the context.

    The embedded database is created and seeded the first time. live: it receives the last ten days instead, and each
    minute while the context lasts; a database that FONTE_DATABASE_URL names stays as it is. Raises SettingsError and
    FonteError.
    """
    url = settings.fonte_api_url(given)
    return _served(live) if url is None else nullcontext(url)


def _exhaust(minutes: Iterator[object]) -> None:
    try:
        for _ in minutes:
            pass
    except Exception as error:
        command.failed("fonte", FonteError(f"no minute is written any more: {reason(error)}"), debug=False)


@contextmanager
def _served(live: bool) -> Iterator[str]:
    # A wrong setting would end the connector's thread, and the client would wait for it in vain.
    settings.admin("Fonte")
    settings.allowed("Fonte")
    with ThreadPoolExecutor(1) as starter:
        # The embedded server starts during these imports, which are here because they take longer than a day.
        starting = starter.submit(settings.fonte_database_url)
        import uvicorn

        from fonte import connector, seeding

    with failures("Fonte's database", "set FONTE_DATABASE_URL, or correct what the message names", FonteError):
        url, stop = starting.result(), threading.Event()
        if settings.database_is_embedded("Fonte"):
            if not settings.database_is_embedded("Alvo"):
                command.complain("Fonte is the embedded demo: FONTE_API_URL or FONTE_DATABASE_URL names another one")
            pool = create(url, "fonte seed", check_pooled=True)
            if not live:
                with pool.begin() as connection:
                    seeding.seed_once(connection)
            else:
                minutes = seeding.live(pool, "turbine", seeding.RANDOM_SEED, stop)
                next(minutes)
                threading.Thread(target=_exhaust, args=[minutes], daemon=True).start()

    # The client, in this process, reports the connector's failures: the log need not repeat them.
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())
    listener = socket.create_server(("127.0.0.1", 0))
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # asyncio sets this only for its own listeners. Without it each answer waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Connections wait in the listener's queue until the server is up.
    # Without workers, uvicorn would read WEB_CONCURRENCY, which may be no number.
    config = uvicorn.Config(connector.app, http="h11", ws="none", log_config=None, lifespan="on", workers=1)
    # A request that nobody waits for any more must not delay the end.
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)

    def serve() -> None:
        with listener:
            server.run([listener])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield base_url
    finally:
        stop.set()
        server.should_exit = True
        # A server that still runs while the interpreter ends can crash the process.
        thread.join()
