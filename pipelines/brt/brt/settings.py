"""The only reader of the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from sqlalchemy import URL, create_engine, text

from fonte_alvo import embedded, engine
from fonte_alvo.settings import SettingsError

PROJECT = Path(__file__).resolve().parent.parent
DATABASE = "brt"
DAY_S = 86_400
LAST_PORT = 65_535
# Parameters of a database URL that dbt's profile lacks, and libpq reads from the environment.
TLS_FILES = ("sslrootcert", "sslcert", "sslkey")
REAL_API_URL = "https://dados.mobilidade.rio/gps/brt"
# The deployments of the flows on Prefect's server.
DEPLOYMENTS = {"capture": "brt-capture", "load": "brt-load"}


def folder() -> Path:
    """Return BRT_FOLDER, the folder of everything that the pipeline writes outside the database."""
    return Path(os.environ.get("BRT_FOLDER") or PROJECT / ".brt").absolute()


@contextmanager
def file_failures() -> Iterator[None]:
    """Raise errors of the file system as SettingsError."""
    try:
        yield
    except OSError as error:
        remedy = "make room, or name a folder in BRT_FOLDER that can be read and written"
        raise SettingsError(f"{error.filename or folder()}: {error.strerror}; {remedy}") from error


def api_is_stand_in() -> bool:
    """Tell whether the API is the stand-in, because BRT_API_URL is unset."""
    return not os.environ.get("BRT_API_URL")


def api_url() -> str:
    """Return BRT_API_URL, or else the stand-in's URL. Raises SettingsError."""
    url = os.environ.get("BRT_API_URL") or f"http://127.0.0.1:{stand_in_port()}/gps/brt"
    with suppress(httpx.InvalidURL):
        parsed = httpx.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host and (parsed.port is None or 0 < parsed.port <= LAST_PORT):
            return url
    raise SettingsError(f"BRT_API_URL is not an HTTP URL: expected one such as {REAL_API_URL}")


def database_url() -> URL:
    """Return BRT_DATABASE_URL, or the database of the embedded server, which then runs until this process ends.

    Raises SettingsError, EmbeddedServerError and SQLAlchemyError.
    """
    given = os.environ.get("BRT_DATABASE_URL")
    if not given:
        with file_failures():
            folder().mkdir(parents=True, exist_ok=True)
        return _created(embedded.url("postgres", postgres_folder(), postgres_port()))
    try:
        url = engine.parse(given)
    except ValueError as error:
        raise SettingsError(f"BRT_DATABASE_URL {error}") from None
    if not (url.host and url.username and url.database):
        wanted = "expected postgresql://HOST:PORT/DATABASE, with USER:PASSWORD@ before the host"
        raise SettingsError(f"BRT_DATABASE_URL lacks a host, user or database, which dbt needs: {wanted}")
    return url


def database_is_embedded() -> bool:
    """Tell whether BRT_DATABASE_URL is unset."""
    return not os.environ.get("BRT_DATABASE_URL")


def postgres_folder() -> Path:
    """Return the folder of the embedded server."""
    return folder() / "postgres"


def postgres_port() -> int:
    """Return the port of the embedded server; 0, the default, is any free one. Raises SettingsError."""
    return _number("BRT_POSTGRES_PORT", 0, LAST_PORT, lowest=0)


def capture_every_s() -> int:
    """Return BRT_CAPTURE_EVERY_S, the seconds between captures; 60 by default. Raises SettingsError."""
    return _number("BRT_CAPTURE_EVERY_S", 60, DAY_S)


def load_every_s() -> int:
    """Return BRT_LOAD_EVERY_S, the seconds between loads; 780 by default. Raises SettingsError."""
    return _number("BRT_LOAD_EVERY_S", 13 * 60, DAY_S)


def prefect_port() -> int:
    """Return the port of Prefect's server. Raises SettingsError."""
    return _number("BRT_PREFECT_PORT", 4200, LAST_PORT)


def stand_in_port() -> int:
    """Return the port of the API's stand-in. Raises SettingsError."""
    return _number("BRT_STAND_IN_PORT", 4201, LAST_PORT)


def log_file(service: str) -> Path:
    """Return the file of a service's output."""
    return folder() / f"{service}.log"


def services_environment() -> dict[str, str]:
    """Return the environment of the services; prefect.toml has the constant settings of Prefect."""
    port = str(prefect_port())
    # If both are set, the lower-case one counts.
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    no_proxy = ",".join(filter(None, (others, "127.0.0.1,localhost")))
    # Settings of another Prefect could name its database, which this server would change.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= dict.fromkeys(("NO_PROXY", "no_proxy"), no_proxy)
    return environment | {
        # Absolute: the services run in the project's folder.
        "BRT_FOLDER": str(folder()),
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        "PREFECT_HOME": str(folder() / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_PORT": port,
        # For the services only: in other processes Prefect would look for a run at each log message.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "brt",
        # Polls for due runs three times per capture, at least every 10 s; schedules them twice, at least every minute.
        "PREFECT_RUNNER_POLL_FREQUENCY": str(min(10, max(1, capture_every_s() // 3))),
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": str(min(60, max(5, capture_every_s() // 2))),
    }


def give_dbt(url: URL) -> None:
    """Set the variables that dbt's profile reads; dbt keeps those named DBT_ENV_SECRET out of its log."""
    os.environ["BRT_DBT_HOST"] = str(url.host)
    os.environ["BRT_DBT_PORT"] = str(url.port or os.environ.get("PGPORT", 5432))
    os.environ["BRT_DBT_USER"] = str(url.username)
    os.environ["DBT_ENV_SECRET_BRT_PASSWORD"] = str(url.password or os.environ.get("PGPASSWORD", ""))
    os.environ["BRT_DBT_DATABASE"] = str(url.database)
    os.environ["BRT_DBT_SSLMODE"] = str(url.query.get("sslmode", os.environ.get("PGSSLMODE", "prefer")))
    os.environ |= {f"PG{each.upper()}": str(url.query[each]) for each in TLS_FILES if each in url.query}
    os.environ["DO_NOT_TRACK"] = "1"


def _number(name: str, otherwise: int, highest: int, lowest: int = 1) -> int:
    text_ = os.environ.get(name) or str(otherwise)
    if not text_.isdecimal() or not lowest <= int(text_) <= highest:
        raise SettingsError(f"{name} is {text_!r}: expected a number from {lowest} to {highest}")
    return int(text_)


def _created(administrator: URL) -> URL:
    """Create the pipeline's database on the embedded server where it is absent; returns its URL."""
    pool = create_engine(administrator, isolation_level="AUTOCOMMIT")
    with pool.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(1)"))
        if not connection.scalar(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": DATABASE}):
            connection.execute(text(f"CREATE DATABASE {DATABASE}"))
    # Closing the connection releases the lock.
    pool.dispose()
    return administrator.set(database=DATABASE)
