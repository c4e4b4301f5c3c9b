"""The only reader of the environment. A file `.env` beside this one serves too; the environment wins."""

import io
import os
from pathlib import Path

from sqlalchemy import URL

from postgres import embedded, engine

_ENV_FILE = Path(__file__).resolve().parent / ".env"


class SettingsError(Exception):
    """A setting that is there cannot be used; the message names it."""


def fonte_api_url(given: str | None = None) -> str | None:
    """Return the given URL or else FONTE_API_URL; None means: serve it in this process. Raises SettingsError."""
    url = given or _read("FONTE_API_URL")
    if url is None:
        return None
    import httpx

    try:
        parsed = httpx.URL(url)
        usable = parsed.scheme in ("http", "https") and parsed.host
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise SettingsError("FONTE_API_URL is not a URL of HTTP: expected something like http://localhost:8000")
    return url


def fonte_database_url() -> URL:
    """Return FONTE_DATABASE_URL, or the embedded server's database. Raises SettingsError, EmbeddedServerError."""
    return _database_url("FONTE_DATABASE_URL", "fonte")


def fonte_database_is_embedded() -> bool:
    """Tell whether Fonte's database is the embedded one, which may be filled without asking."""
    return _read("FONTE_DATABASE_URL") is None


def services_are_external() -> bool:
    """Tell whether both the connector and Alvo's database are named, and so can be reached from other machines."""
    return _read("FONTE_API_URL") is not None and _read("ALVO_DATABASE_URL") is not None


def alvo_database_url(given: str | None = None) -> URL:
    """Return the given URL, ALVO_DATABASE_URL, or the embedded one. Raises SettingsError, EmbeddedServerError."""
    return _database_url("ALVO_DATABASE_URL", "alvo", given)


def child_environment(**settings: str) -> dict[str, str]:
    """Return the environment for a process that is to have these settings."""
    return {**os.environ, **settings}


def _database_url(name: str, embedded_database: str, given: str | None = None) -> URL:
    url = given or _read(name)
    if url is None:
        return embedded.url(embedded_database)
    try:
        return engine.parse(url)
    except ValueError as error:
        raise SettingsError(f"{name} {error}") from None


def _read(name: str) -> str | None:
    if name in os.environ or not _ENV_FILE.exists():
        return os.environ.get(name) or None
    from dotenv.parser import parse_stream

    try:
        bindings = list(parse_stream(io.StringIO(_ENV_FILE.read_text())))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{_ENV_FILE} cannot be read: {error}") from error
    if wrong := [binding.original.line for binding in bindings if binding.error]:
        raise SettingsError(f"{_ENV_FILE} line {wrong[0]}: expected NAME=value")
    return {binding.key: binding.value for binding in bindings}.get(name) or None
