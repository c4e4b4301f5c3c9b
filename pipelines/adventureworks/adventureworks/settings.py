"""The only reader of the environment."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import URL

from fonte_alvo import embedded, engine
from fonte_alvo.command import Failure

# Every wait ends well before the function's timeout.
NETWORK = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 3})
FOLDER = Path(__file__).resolve().parents[1] / ".embedded"


class SettingsError(Failure):
    """A setting is absent or cannot be used; the message names it."""

    exit_code = 2


class Source(NamedTuple):
    """The place of the files: s3://BUCKET/PREFIXsales/Sales.Customer.csv."""

    bucket: str
    prefix: str


class Limits(NamedTuple):
    """The largest shares that a load accepts: of a file's rows rejected, of a table's rows removed."""

    reject: float = 0.05
    shrink: float = 0.05


REJECT_LIMIT = "ADVENTUREWORKS_REJECT_LIMIT_PERCENT"


def limits() -> Limits:
    """Return the limits; the environment has them in percent. Raises SettingsError."""
    return Limits(*map(_share, (REJECT_LIMIT, "ADVENTUREWORKS_SHRINK_LIMIT_PERCENT"), Limits()))


def _share(name: str, default: float) -> float:
    text = os.environ.get(name) or str(100 * default)
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", text) or float(text) > 100:
        raise SettingsError(f"{name} is {text[:50]!r}: expected a number from 0 to 100")
    # Rounded once, as the load's shares are: 12.3 % equals 123 / 1000.
    return float(f"{text}e-2")


def source() -> Source:
    """Return ADVENTUREWORKS_BUCKET and ADVENTUREWORKS_PREFIX. Raises SettingsError."""
    if not (bucket := os.environ.get("ADVENTUREWORKS_BUCKET")):
        raise SettingsError("ADVENTUREWORKS_BUCKET is not set: expected the name of the bucket with the files")
    return Source(bucket, os.environ.get("ADVENTUREWORKS_PREFIX", ""))


def database_url(*, or_embedded: bool = False) -> URL:
    """Return the URL that the secret ADVENTUREWORKS_DATABASE_SECRET holds, or else ADVENTUREWORKS_DATABASE_URL.

    or_embedded: if neither is set, the embedded server's. Raises SettingsError, EmbeddedServerError.
    """
    name = "ADVENTUREWORKS_DATABASE_URL"
    url = os.environ.get(name)
    if secret := os.environ.get("ADVENTUREWORKS_DATABASE_SECRET"):
        name, url = f"the secret {secret}", _secret(secret)
    if not url and or_embedded:
        return embedded.url("postgres", FOLDER)
    if not url:
        raise SettingsError("neither ADVENTUREWORKS_DATABASE_SECRET nor ADVENTUREWORKS_DATABASE_URL is set")
    try:
        return engine.parse(url)
    except ValueError as error:
        raise SettingsError(f"{name} {error}") from None


def _secret(identifier: str) -> str:
    try:
        return str(boto3.client("secretsmanager", config=NETWORK).get_secret_value(SecretId=identifier)["SecretString"])
    except (ClientError, BotoCoreError, KeyError) as error:
        raise SettingsError(f"the secret {identifier} cannot be read as text: {error}") from error
