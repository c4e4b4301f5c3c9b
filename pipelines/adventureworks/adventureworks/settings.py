"""The only reader of the environment."""

import os
from pathlib import Path
from typing import NamedTuple

import boto3
from sqlalchemy import URL

from postgres import embedded, engine

FOLDER = Path(__file__).resolve().parents[1] / ".embedded"


class SettingsError(Exception):
    """A setting is absent or cannot be used; the message names it."""


class Source(NamedTuple):
    """Where the files lie: s3://bucket/prefixsales/Sales.Customer.csv."""

    bucket: str
    prefix: str


def source() -> Source:
    """Return ADVENTUREWORKS_BUCKET and ADVENTUREWORKS_PREFIX. Raises SettingsError."""
    bucket = os.environ.get("ADVENTUREWORKS_BUCKET")
    if not bucket:
        raise SettingsError("ADVENTUREWORKS_BUCKET is not set: expected the name of the bucket with the files")
    return Source(bucket, os.environ.get("ADVENTUREWORKS_PREFIX", ""))


def database_url() -> URL:
    """Return the URL in the secret ADVENTUREWORKS_DATABASE_SECRET, ADVENTUREWORKS_DATABASE_URL, or the embedded one.

    Raises SettingsError, EmbeddedServerError, and what boto3 raises where the secret cannot be read.
    """
    name = "ADVENTUREWORKS_DATABASE_URL"
    url = os.environ.get(name)
    if secret := os.environ.get("ADVENTUREWORKS_DATABASE_SECRET"):
        name = f"the secret {secret}"
        url = boto3.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"]
    if not url:
        return embedded.url("postgres", FOLDER)
    try:
        return engine.parse(url)
    except ValueError as error:
        raise SettingsError(f"{name} {error}") from None
