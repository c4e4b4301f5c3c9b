"""Run S3 (moto's server) with the sample, and the function behind Lambda's Invoke API, on this machine."""

import logging
import lzma
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from moto.server import ThreadedMotoServer

from adventureworks import handler, model, settings
from local import lambda_service

BUCKET = "adventureworks"
REGION = "us-east-1"
FUNCTION = "adventureworks.handler.lambda_handler"
# moto accepts any keys.
KEYS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
# Variables that lead to another cloud or Airflow, or through a proxy; everything here runs on this machine.
FOREIGN = ("AWS_", "ADVENTUREWORKS_", "AIRFLOW", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class Cloud(NamedTuple):
    """The URLs of S3 and Lambda, and the process that executes the function."""

    s3_url: str
    lambda_url: str
    sandbox: lambda_service.Sandbox


def forget_settings() -> None:
    """Remove FOREIGN variables from this process's environment, and so from its children's."""
    for name in list(os.environ):
        if name.upper().startswith(FOREIGN):
            del os.environ[name]


@contextmanager
def running(database_url: str, *, timeout_s: float = 180) -> Iterator[Cloud]:
    """Run S3 and the function, which loads into this database."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        s3_url = "http://{}:{}".format(*server.get_host_and_port())
        variables = {**os.environ, **environment(s3_url, database_url)}
        with lambda_service.served(FUNCTION, variables, timeout_s) as (lambda_url, sandbox):
            yield Cloud(s3_url, lambda_url, sandbox)
    finally:
        server.stop()


def environment(s3_url: str, database_url: str) -> dict[str, str]:
    """Return the function's variables."""
    aws = {**KEYS, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": s3_url}
    return {**aws, "ADVENTUREWORKS_BUCKET": BUCKET, "ADVENTUREWORKS_DATABASE_URL": database_url}


def client(service: str, url: str) -> Any:  # noqa: ANN401
    """Return boto3's client of a service at this URL."""
    return boto3.client(service, endpoint_url=url, region_name=REGION, **{name.lower(): KEYS[name] for name in KEYS})


def fill(s3_url: str) -> None:
    """Create the bucket, and put the sample's files into it."""
    s3 = client("s3", s3_url)
    s3.create_bucket(Bucket=BUCKET)
    for file in model.TABLES:
        s3.put_object(Bucket=BUCKET, Key=handler.key(settings.Source(BUCKET, ""), file), Body=sample(file))


def sample(file: str) -> bytes:
    """Return a file of the sample."""
    return lzma.decompress(Path(__file__).parents[1].joinpath("data", f"{file}.csv.xz").read_bytes())
