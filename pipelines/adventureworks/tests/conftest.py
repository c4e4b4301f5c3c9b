"""A real PostgreSQL (TEST_POSTGRES_URL, or else the embedded one), the sample, and Python in another process."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as properties
from sqlalchemy import create_engine, text

from adventureworks import load, model
from fonte_alvo import embedded, engine
from local import cloud

properties.register_profile("default", deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
properties.load_profile("default")
ROOT = Path(__file__).resolve().parents[1]
ALL = list(model.TABLES)
# Of each file: rows, loaded, rejected, flagged.
EXPECTED = {
    "Person.Person": (2057, 2057, 0, 0),
    "Production.Product": (504, 504, 0, 0),
    "Sales.Customer": (19820, 19820, 0, 0),
    "Sales.SpecialOfferProduct": (538, 538, 0, 0),
    "Sales.SalesOrderHeader": (1566, 1566, 0, 13),
    "Sales.SalesOrderDetail": (5716, 5675, 41, 0),
}


def pytest_addoption(parser):
    parser.addoption("--build-network", help="the network of the image's build, such as host")


@pytest.fixture(autouse=True, scope="session")
def _isolated():
    """Remove the machine's settings."""
    cloud.forget_settings()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if given := os.environ.get("TEST_POSTGRES_URL"):
        return engine.parse(given)
    return embedded.url("postgres", tmp_path_factory.mktemp("postgres") / "embedded")


@pytest.fixture(scope="session")
def administrator(server):
    pool = create_engine(server, isolation_level="AUTOCOMMIT")
    yield pool
    pool.dispose()


@pytest.fixture(scope="session")
def make_database(administrator, server):
    """Create a database, or copy a template; returns its URL."""
    made = []

    def make(template="template1"):
        name = f"test_{uuid.uuid4().hex}"
        with administrator.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        made.append(name)
        return server.set(database=name)

    yield make
    with administrator.connect() as connection:
        for name in made:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def loaded_template(make_database):
    """The name of a database that holds the sample."""
    url = make_database()
    pool = engine.create(url, "test")
    load.load(pool, load.Plan(ALL), sample)
    pool.dispose()
    return url.database


@pytest.fixture
def database(make_database):
    return make_database()


@pytest.fixture
def loaded_database(make_database, loaded_template):
    """A new database that holds the sample."""
    return make_database(loaded_template)


@pytest.fixture
def pool(database):
    pool = engine.create(database, "test")
    yield pool
    pool.dispose()


@pytest.fixture
def loaded(loaded_database):
    pool = engine.create(loaded_database, "test")
    yield pool
    pool.dispose()


@pytest.fixture(scope="module")
def shared_pool(make_database, loaded_template):
    """An engine of a database with the sample, which the tests of a module share."""
    pool = engine.create(make_database(loaded_template), "test")
    yield pool
    pool.dispose()


def environment(**variables):
    """The environment of a process that finds both projects, with these variables."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}


def python(*arguments, stdout=subprocess.PIPE, **variables):
    """Run Python in the project's folder, with these variables."""
    command = [sys.executable, *arguments]
    output = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    return subprocess.run(command, cwd=ROOT, env=environment(**variables), **output, check=False)


def sample(file):
    """A file of the sample in pieces."""
    body = cloud.sample(file)
    return iter([body[start : start + 65_536] for start in range(0, len(body), 65_536)])


def contents(pool):
    """All rows of all tables, with the transactions that wrote them."""
    with pool.connect() as connection:
        return {
            name: sorted(connection.execute(text(f"SELECT xmin::text, t::text FROM {name} AS t")).all())
            for name in model.metadata.tables
            if connection.scalar(text("SELECT to_regclass(:name)"), {"name": name})
        }


def rejects(pool):
    """The rows of load.reject: (file, line, reason, loaded)."""
    with pool.connect() as connection:
        return connection.execute(text("SELECT * FROM load.reject ORDER BY file, line")).all()


def dated(columns, *rows):
    """A file of these rows, with the two last columns of every file; columns: `A;B`, rows: `1;2`."""
    ending = "3F5AE95E-B87D-4AED-95B4-C3797AFCB74F;2014-09-12 11:15:07.263\r\n"
    text = f"\ufeff{columns};rowguid;ModifiedDate\r\n" + "".join(f"{row};{ending}" for row in rows)
    return text.encode()
