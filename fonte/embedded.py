"""Fonte in this process: the connector served on a free loopback port, over a database that is filled once.

Imported only where FONTE_API_URL is unset: there alone one process knows both databases.
"""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

import settings
from fonte import connector, seeding
from fonte.client import FonteError
from postgres import engine


@contextmanager
def served() -> Iterator[str]:
    """Serve the connector over HTTP while the context lasts; gives its base URL. Raises FonteError.

    The embedded database is created and seeded the first time; a database of one's own is left as it is.
    """
    with engine.failures("Fonte's database", "set FONTE_DATABASE_URL, or mend what the message says", FonteError):
        url = settings.fonte_database_url()
        if settings.fonte_database_is_embedded():
            with engine.create(url, "fonte seed").begin() as connection:
                seeding.seed_once(connection)

    # What the connector has to say, it says to its client, who is this process: not on standard error as well.
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # asyncio does not do so for a listener that it is given: each answer would wait 40 ms for an acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Connections wait in the listener's queue from here on: nobody has to ask whether the server is up.
        server = uvicorn.Server(uvicorn.Config(connector.app, log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
