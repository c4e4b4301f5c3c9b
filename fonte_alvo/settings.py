"""The only reader of the environment. A file `.env` in home() serves too; the environment wins.

A value in the file may refer to another one, set above it or in the environment, as ${NAME}.
"""

import io
import os
import re
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL

from fonte_alvo import embedded, engine
from fonte_alvo.command import Failure, clean

if TYPE_CHECKING:
    from pydantic import SecretStr

# The names that are read, by compose.yaml too; a name that only resembles one of them is a mistake to report.
KNOWN = {
    *("FONTE_ALVO_HOME", "FONTE_API_URL", "FONTE_DATABASE_URL", "FONTE_ADMIN_DATABASE_URL", "FONTE_ADMIN_TOKEN"),
    *("ALVO_DATABASE_URL", "ALVO_ADMIN_DATABASE_URL", "ALVO_ADMIN_TOKEN"),
    *("FONTE_ALLOWED_ORIGINS", "FONTE_ALLOWED_HOSTS", "ALVO_ALLOWED_ORIGINS", "ALVO_ALLOWED_HOSTS"),
    *("FONTE_POSTGRES_PASSWORD", "FONTE_READER_PASSWORD", "FONTE_WRITER_PASSWORD", "FONTE_DATABASE_PORT"),
    *("ALVO_POSTGRES_PASSWORD", "ALVO_READER_PASSWORD", "ALVO_WRITER_PASSWORD", "ALVO_DATABASE_PORT", "ALVO_API_PORT"),
    *("DAGSTER_TIMEZONE", "DAGSTER_START_DATE"),
}
_ORIGIN = re.compile(r"(?!https:.*:443$|http:.*:80$)https?://[^/\s*@A-Z\ud800-\udfff]+|\*")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]|\*")
# RFC 6750 names the characters of a bearer token; a short one could be guessed.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")


class SettingsError(Failure):
    """A setting is invalid; the message names it."""

    exit_code = 2


def home() -> Path:
    """Return the folder of `.env` and `.embedded`: FONTE_ALVO_HOME, the checkout, or one for the user's data.

    Raises SettingsError.
    """
    try:
        if given := os.environ.get("FONTE_ALVO_HOME"):
            return Path(given).expanduser().absolute()
        checkout = Path(__file__).resolve().parent.parent
        if (checkout / "etl.py").is_file():
            return checkout
        # XDG Base Directory Specification: the folder of a user's data; a relative one is ignored.
        data = Path(os.environ.get("XDG_DATA_HOME", ""))
        return (data if data.is_absolute() else Path.home() / ".local" / "share") / "fonte-alvo"
    except RuntimeError as error:
        raise SettingsError("the user's home folder is unknown: set FONTE_ALVO_HOME to a folder") from error


def embedded_folder() -> Path:
    """Return the folder of the embedded server."""
    return home() / ".embedded"


def fonte_api_url(given: str | None = None) -> str | None:
    """Return the given URL or FONTE_API_URL, or None: this process then serves the connector. Raises SettingsError."""
    url = given or _read("FONTE_API_URL")
    if url is None:
        return None
    import httpx

    with suppress(httpx.InvalidURL, ValueError):
        parsed = httpx.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host and (parsed.port is None or 0 < parsed.port < 2**16):
            return url
    name = "the given URL of Fonte" if given else _located("FONTE_API_URL")
    raise SettingsError(
        f"{name} is not a URL of HTTP: expected something like http://localhost:8000, its port at most 65535"
    )


def fonte_database_url() -> URL:
    """Return FONTE_DATABASE_URL, or the embedded server's database. Raises SettingsError, EmbeddedServerError."""
    return _database_url("FONTE_DATABASE_URL", "fonte")


def database_is_embedded(side: str) -> bool:
    """Return whether the database of Fonte or Alvo is the embedded one, which may be filled without asking."""
    return _read(f"{side.upper()}_DATABASE_URL") is None


def services_are_external() -> bool:
    """Return whether settings name both the connector and Alvo's database, so that other machines can reach them."""
    return _read("FONTE_API_URL") is not None and _read("ALVO_DATABASE_URL") is not None


def alvo_database_url(given: str | None = None) -> URL:
    """Return the given URL, ALVO_DATABASE_URL, or the embedded one. Raises SettingsError, EmbeddedServerError."""
    return _parsed("the given URL of Alvo", given) if given else _database_url("ALVO_DATABASE_URL", "alvo")


def dagster_timezone() -> str:
    """Return DAGSTER_TIMEZONE, the zone whose local days are Dagster's partitions; UTC by default."""
    return _read("DAGSTER_TIMEZONE") or "UTC"


def dagster_start_date() -> str | None:
    """Return DAGSTER_START_DATE, the first of Dagster's partitions, or None."""
    return _read("DAGSTER_START_DATE")


def child_environment(**settings: str) -> dict[str, str]:
    """Return the environment of a child process with these settings."""
    return {**os.environ, **settings}


def libpq_variables() -> list[str]:
    """Return the names of the variables in the environment that libpq reads."""
    return sorted(name for name in os.environ if re.fullmatch("PG[A-Z_]+", name))


def admin(side: str) -> "tuple[URL, SecretStr] | None":
    """Return FONTE_ADMIN_DATABASE_URL and FONTE_ADMIN_TOKEN, or Alvo's; None unless both are set.

    side: Fonte or Alvo. Raises SettingsError.
    """
    url_name, token_name = f"{side.upper()}_ADMIN_DATABASE_URL", f"{side.upper()}_ADMIN_TOKEN"
    url, token = _read(url_name), _read(token_name)
    if url is None or token is None:
        return None
    if not _TOKEN.fullmatch(token):
        expected = "16 or more letters, digits or -._~+/, such as `openssl rand -hex 16` prints"
        raise SettingsError(f"{_located(token_name)} is no bearer token: expected {expected}")
    # Imported here, because only the APIs need it, and they import it anyway.
    from pydantic import SecretStr

    return _parsed(_located(url_name), url), SecretStr(token)


def allowed(side: str) -> dict[str, list[str]]:
    """Return the origins whose pages may read this side's API, none by default, and the hosts it serves, [] for any.

    side: Fonte or Alvo; the settings are FONTE_ALLOWED_ORIGINS and FONTE_ALLOWED_HOSTS, or Alvo's. Raises
    SettingsError.
    """
    origins = _names(f"{side.upper()}_ALLOWED_ORIGINS", _ORIGIN, "origins such as https://example.org, or *")
    expected = "names without a port such as localhost or *.example.org"
    hosts = _names(f"{side.upper()}_ALLOWED_HOSTS", _HOST, expected)
    # Commands reach the servers in their own process, and health checks theirs, at this address.
    return {"origins": origins, "hosts": hosts and [*hosts, "127.0.0.1"]}


def _names(setting: str, form: re.Pattern[str], expected: str) -> list[str]:
    """Return the names in a setting, separated by commas or blanks."""
    names = re.findall(r"[^,\s]+", _read(setting) or "")
    if wrong := [name for name in names if not form.fullmatch(name)]:
        raise SettingsError(f"{setting} names {clean(wrong[0], 200)}: expected {expected}")
    return names


def _database_url(name: str, embedded_database: str) -> URL:
    url = _read(name)
    # libpq would send these to any server, which may refuse them; each transaction sets time zone and date style.
    for variable in ("PGTZ", "PGDATESTYLE", "PGGEQO"):
        os.environ.pop(variable, None)
    return embedded.url(embedded_database, embedded_folder()) if url is None else _parsed(_located(name), url)


def _parsed(name: str, url: str) -> URL:
    try:
        return engine.parse(url)
    except ValueError as error:
        raise SettingsError(f"{name} {error}") from None


def _located(name: str) -> str:
    """Return a setting's name, and its file if the setting is there."""
    return name if os.environ.get(name) else f"{name} in {home() / '.env'}"


def _read(name: str) -> str | None:
    """Return a setting from the environment or the file, or None. Raises SettingsError."""
    if value := os.environ.get(name):
        return value
    held, referred = ({}, set()) if name in os.environ else _file()
    if undefined := re.search("\0(.*?)\0", held.get(name) or ""):
        lacking = "which neither a line above it nor the environment sets"
        raise SettingsError(f"{home() / '.env'}: {name} refers to {undefined[1]}, {lacking}")
    if not held.get(name):
        unread = {each.upper(): each for each in [*os.environ, *held] if each not in KNOWN}
        # If one of these is unset, an embedded service is used, so an unread name of that side is an error.
        decides = name in ("FONTE_API_URL", "FONTE_DATABASE_URL", "ALVO_DATABASE_URL")
        side = decides and re.compile(rf"\b{name.partition('_')[0]}(?![A-Z0-9])")
        ours = [near for near, each in unread.items() if side and each in held.keys() - referred and side.search(near)]
        for near in [*get_close_matches(name, unread, n=1, cutoff=0.9), *ours]:
            where = home() / ".env" if unread[near] in held else "the environment"
            other = "" if unread[near] in held else f", or if it is another program's, set {name} too"
            meant = next(iter(get_close_matches(near, KNOWN - {*os.environ, *held}, n=1, cutoff=0.9)), name)
            said = f"{where} sets {unread[near]}, which nothing reads, and not {meant}: correct its name{other}"
            raise SettingsError(said)
    return held.get(name) or None


def _file() -> tuple[dict[str, str | None], set[str]]:
    """Return the values in the file, and the names that they refer to."""
    file = home() / ".env"
    try:
        # A byte order mark would be part of the first name.
        content = file.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return {}, set()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}; FONTE_ALVO_HOME names another folder") from error
    except ValueError:
        content = "\0"
    # Imported here, because there is often no file.
    from dotenv.main import DotEnv
    from dotenv.parser import parse_stream

    # UTF-16 without a byte order mark is often valid UTF-8, with a NUL in each character.
    if "\0" in content:
        raise SettingsError(f"{file} is not UTF-8: save it as UTF-8")
    for each in parse_stream(io.StringIO(content)):
        if each.error or (each.key in KNOWN and each.value is None):
            raise SettingsError(f"{file} line {each.original.line}: expected {each.key or 'NAME'}=value")
    # A reference to an unset name would become empty: give each a default that marks it.
    marked = re.sub(r"\$\{([^}:\n]*)\}", "${\\1:-\0\\1\0}", content)
    # In a reference, too, the environment wins; dotenv_values() would prefer the file.
    values = DotEnv(None, io.StringIO(marked), override=False).dict()
    if values.get("FONTE_ALVO_HOME"):
        raise SettingsError(f"{file} sets FONTE_ALVO_HOME, which names this folder: set it in the environment")
    return values, set(re.findall(r"\$\{([^}:\n]*)", content))
