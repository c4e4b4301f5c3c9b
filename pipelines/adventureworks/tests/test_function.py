"""The function in AWS's runtime, invoked through Lambda's API: its results and errors."""

import json
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
from sqlalchemy import text

from adventureworks import dialect, handler, load, model, settings, stage
from fonte_alvo import engine
from local import cloud, lambda_service
from tests.conftest import ALL, EXPECTED, contents, python, rejects


class Context:
    """Lambda's context, with two minutes left."""

    def get_remaining_time_in_millis(self):
        return 120_000


def handle(event):
    return handler.lambda_handler(event, Context())


@pytest.fixture(scope="module")
def running(make_database):
    """S3 with the sample, and the function with an empty database: (cloud, engine)."""
    database = make_database()
    with cloud.running(database.render_as_string(hide_password=False)) as running:
        cloud.fill(running.s3_url)
        pool = engine.create(database, "test")
        yield running, pool
        pool.dispose()


def invoked(running, event):
    """Invoke the function; returns its answer, and the type of its error or None."""
    client = cloud.client("lambda", running.lambda_url)
    answer = client.invoke(FunctionName=lambda_service.FUNCTION, Payload=json.dumps(event))
    body = json.loads(answer["Payload"].read())
    return body, body["errorType"] if answer.get("FunctionError") else None


def test_the_function_loads_the_sample_twice_with_the_same_counts(running):
    running, pool = running
    expected = {file: dict(zip(handler.COUNTS, counts, strict=True)) for file, counts in EXPECTED.items()}
    for _ in range(2):
        assert invoked(running, {}) == ({"mode": "replace", "files": expected}, None)
        assert len(rejects(pool)) == 54


def test_an_event_may_name_some_of_the_files(running):
    body, error = invoked(running[0], {"mode": "upsert", "files": ["Sales.Customer", "Person.Person"]})
    assert (list(body["files"]), error) == (["Person.Person", "Sales.Customer"], None)


KEYS = "some of files, mode, allow_shrink, dialect"
FILES = f"a list of some of {', '.join(ALL)}, or null for all"
DIALECT = "some of delimiter, header, null, decimal"
EVENTS = [
    ({"mode": "append"}, "mode is 'append': expected replace or upsert"),
    ({"files": []}, f"files is []: expected {FILES}"),
    ({"files": "Sales.Customer"}, f"files is 'Sales.Customer': expected {FILES}"),
    ({"files": ["Sales.Customers"]}, f"files is ['Sales.Customers']: expected {FILES}"),
    ({"files": [["Sales.Customer"]]}, f"files is [['Sales.Customer']]: expected {FILES}"),
    ({"bucket": "another"}, f"the event is {{'bucket': 'another'}}: expected an object with {KEYS}"),
    ([], f"the event is []: expected an object with {KEYS}"),
    (None, f"the event is None: expected an object with {KEYS}"),
    (5, f"the event is 5: expected an object with {KEYS}"),
    ({"allow_shrink": "yes"}, "allow_shrink is 'yes': expected true or false"),
    ({"dialect": ","}, f"dialect is ',': expected an object with {DIALECT}"),
    ({"dialect": {"quote": "'"}}, f"dialect is {{'quote': \"'\"}}: expected an object with {DIALECT}"),
    ({"dialect": {"delimiter": ":"}}, 'delimiter is \':\': expected ";" or "," or "\\t" or "|"'),
    ({"dialect": {"header": 1}}, "header is 1: expected true or false"),
]


@pytest.mark.parametrize(("event", "message"), EVENTS)
def test_a_wrong_event_is_an_error_that_names_the_right_values(running, event, message):
    body, error = invoked(running[0], event)
    assert (body["errorMessage"], error) == (message, "EventError")


def test_a_missing_object_is_named_and_nothing_is_loaded(running):
    running, pool = running
    s3 = cloud.client("s3", running.s3_url)
    before = contents(pool)
    key = "sales/Sales.SalesOrderHeader.csv"
    s3.delete_object(Bucket=cloud.BUCKET, Key=key)
    try:
        body, error = invoked(running, {})
    finally:
        s3.put_object(Bucket=cloud.BUCKET, Key=key, Body=cloud.sample("Sales.SalesOrderHeader"))
    assert error == "FileError"
    assert "Sales.SalesOrderHeader cannot be read from s3://adventureworks/sales/" in body["errorMessage"]
    assert "NoSuchKey" in body["errorMessage"]
    assert contents(pool) == before


def test_a_killed_function_is_an_error_and_the_next_event_starts_a_new_one(running):
    running, pool = running
    invoked(running, {"files": ["Person.Person"]})
    before = contents(pool)
    with pool.connect() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(hashtext('adventureworks.load'))"))
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(invoked(running, {})))
        waiting.start()
        blocked = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while not holder.scalar(blocked):
            pass
        running.sandbox.process.kill()
        waiting.join()
    [(body, error)] = answers
    assert error == "Runtime.ExitError"
    assert body["errorMessage"].endswith("Runtime exited with -9")
    assert contents(pool) == before
    assert invoked(running, {"files": ["Person.Person"]})[1] is None


def test_a_statement_that_takes_too_long_is_an_error_with_its_remedy(make_database):
    database = make_database()
    pool = engine.create(database, "test")
    with pool.connect() as holder, cloud.running(database.render_as_string(hide_password=False), timeout_s=8) as slow:
        cloud.fill(slow.s3_url)
        holder.execute(text("SELECT pg_advisory_xact_lock(hashtext('adventureworks.load'))"))
        body, error = invoked(slow, {})
        # The statement's limit is the rest of the function's time, but at least a second.
        assert error == "DatabaseError"
        assert body["errorMessage"] == (
            "the database failed: the load took longer than 1 s, the time that the function's timeout leaves it: "
            "raise the function's timeout, or name fewer files in the event; nothing was written"
        )
    pool.dispose()


def test_the_function_names_its_time_out_when_statements_take_too_long_together(beside_s3, monkeypatch, pool):
    """Each is below the limit, so that only the cut of the connection ends them."""
    monkeypatch.setattr(Context, "get_remaining_time_in_millis", lambda _: 1000 * handler.MARGIN_S)
    monkeypatch.setattr(engine, "GRACE_S", 0.2)
    monkeypatch.setattr(load, "_record", lambda connection, *_: stage.run(connection, "SELECT pg_sleep(0.7)"))
    with pytest.raises(engine.DatabaseError) as failure:
        handle({})
    assert str(failure.value) == (
        "the database failed: the load took longer than 1 s, the time that the function's timeout leaves it: raise "
        "the function's timeout, or name fewer files in the event; nothing was written"
    )
    assert contents(pool) == {}


def test_a_cancelled_statement_does_not_blame_the_time_out(beside_s3, pool):
    """An administrator may cancel it."""
    cancel = text("SELECT pg_cancel_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with pool.connect() as holder, ThreadPoolExecutor() as executor:
        holder.execute(text("SELECT pg_advisory_xact_lock(hashtext('adventureworks.load'))"))
        loading = executor.submit(handle, {})
        while not holder.scalar(cancel):
            pass
        with pytest.raises(engine.DatabaseError) as failure:
            loading.result()
    assert str(failure.value) == ("the database failed: canceling statement due to user request; nothing was written")


def test_a_lock_that_others_hold_is_an_error_with_its_remedy(beside_s3, monkeypatch, pool):
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.2)
    with pool.connect() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(hashtext('adventureworks.load'))"))
        with pytest.raises(engine.DatabaseError) as failure:
            handle({})
    assert str(failure.value) == (
        "the database failed: another transaction held a lock for more than 0.2 s (lock timeout): invoke the function "
        "again when it has ended, or find it in pg_stat_activity and end it; nothing was written"
    )


def put(running, file, body):
    key = handler.key(settings.Source(cloud.BUCKET, ""), file)
    cloud.client("s3", running.s3_url).put_object(Bucket=cloud.BUCKET, Key=key, Body=body)


@pytest.fixture
def customers(running):
    """Put another file of customers into S3; restores the sample's after the test."""
    yield lambda body: put(running[0], "Sales.Customer", body)
    put(running[0], "Sales.Customer", cloud.sample("Sales.Customer"))


def test_the_log_has_a_line_for_each_file_with_its_version_counts_and_reasons(beside_s3, customers, capfd):
    body = cloud.sample("Sales.Customer").replace(b":07.263\r", b":7.263\r", 5)
    customers(body)
    handle({"files": ["Person.Person", "Sales.Customer"]})
    person, customer = map(json.loads, capfd.readouterr().out.splitlines())
    assert (person["file"], person["rows"], person["rejected"], person["reasons"]) == ("Person.Person", 2057, 0, [])
    assert (customer["rows"], customer["loaded"], customer["rejected"]) == (19_820, 19_815, 5)
    assert customer["reasons"][0].startswith("line 2: ModifiedDate '2014-09-12 11:15:7.263' is no time")
    assert len(customer["reasons"]) == 3
    assert customer["bytes"] == len(body)
    assert customer["etag"]


def test_too_many_rejects_fail_the_function_with_the_counts_in_its_log(beside_s3, monkeypatch, customers, capfd, pool):
    customers(cloud.sample("Sales.Customer").replace(b":07.263\r", b":7.263\r", 1_000))
    with pytest.raises(dialect.FileError, match="Sales.Customer has 1,000 rows of 19,820 that cannot be loaded"):
        handle({"files": ["Sales.Customer"]})
    assert json.loads(capfd.readouterr().out)["rejected"] == 1_000
    assert contents(pool) == {}
    monkeypatch.setenv("ADVENTUREWORKS_REJECT_LIMIT_PERCENT", "6")
    assert handle({"files": ["Sales.Customer"]})["files"]["Sales.Customer"]["rejected"] == 1_000


def test_the_event_or_a_setting_may_allow_a_table_to_shrink(beside_s3, monkeypatch, customers):
    lines = cloud.sample("Sales.Customer").splitlines(keepends=True)
    event = {"files": ["Sales.Customer"]}
    handle(event)
    customers(b"".join(lines[:15_001]))
    with pytest.raises(dialect.FileError, match="lacks 4,820 rows of 19,820"):
        handle(event)
    handle(event | {"allow_shrink": True})
    customers(b"".join(lines[:10_001]))
    monkeypatch.setenv("ADVENTUREWORKS_SHRINK_LIMIT_PERCENT", "40")
    assert handle(event)["files"]["Sales.Customer"]["rows"] == 10_000


def test_the_event_may_name_the_dialect(beside_s3, customers):
    _, rows = cloud.sample("Sales.Customer").split(b"\r\n", 1)
    customers(rows.replace(b";", b"|"))
    event = {"files": ["Sales.Customer"], "dialect": {"delimiter": "|", "header": False, "null": "NULL"}}
    assert handle(event)["files"]["Sales.Customer"]["loaded"] == 19_820
    with pytest.raises(dialect.FileError, match="line 1 does not name its columns"):
        handle(event | {"dialect": {"delimiter": ","}})


def test_an_object_that_changes_before_its_second_reading_fails_the_load(beside_s3, monkeypatch, customers, pool):
    """A file that is not plain is read twice, in one version."""
    customers(cloud.sample("Sales.Customer").replace(b":07.263\r", b":7.263\r", 1))
    read_plainly = dialect.Rows._plain_text

    def changed(self, piece):
        customers(cloud.sample("Sales.Customer"))
        read_plainly(self, piece)

    monkeypatch.setattr(dialect.Rows, "_plain_text", changed)
    with pytest.raises(dialect.FileError, match="PreconditionFailed.*nothing was written"):
        handle({"files": ["Sales.Customer"]})
    assert contents(pool) == {}


def test_no_error_of_the_database_repeats_values_of_rows(beside_s3, customers, database):
    """Neither COPY's context nor the details of a constraint, here one that the model does not have."""
    event = {"files": ["Sales.Customer"]}
    secret = b"S3CR3T"
    customers(cloud.sample("Sales.Customer").replace(b"AW00000001", secret + b";;").replace(b"AW00000002", secret))
    with pytest.raises(dialect.FileError, match="line 2: extra data after last expected column") as failure:
        handle(event)
    assert "S3CR3T" not in str(failure.value)
    customers(cloud.sample("Sales.Customer"))
    handle(event)
    pool = engine.create(database, "test")
    with pool.begin() as connection:
        connection.execute(text("ALTER TABLE sales.customer ADD CONSTRAINT mine CHECK (account_number NOT LIKE 'S3%')"))
    pool.dispose()
    customers(cloud.sample("Sales.Customer").replace(b"AW00000001", secret))
    with pytest.raises(engine.DatabaseError) as failure:
        handle(event)
    assert str(failure.value) == "the database failed: CheckViolation; nothing was written"


def test_an_object_with_a_wrong_checksum_is_an_error(in_this_process, monkeypatch, pool):
    body = cloud.sample("Person.Person")
    head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nETag: "x"\r\nx-amz-checksum-crc32: AAAAAA==\r\n\r\n'
    with answering(head.encode(), body) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(dialect.FileError, match="Person.Person cannot be read from s3://.*checksum"):
            handle({})
    assert contents(pool) == {}


@pytest.fixture
def in_this_process(database, monkeypatch):
    """The function's settings in this process, with an empty database and no S3 yet."""
    monkeypatch.setenv("ADVENTUREWORKS_DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.setenv("ADVENTUREWORKS_BUCKET", cloud.BUCKET)
    monkeypatch.setenv("AWS_REGION", cloud.REGION)
    monkeypatch.setenv("AWS_DEFAULT_REGION", cloud.REGION)
    for name, value in cloud.KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def beside_s3(in_this_process, monkeypatch, running):
    """The function's settings in this process, with an empty database and the S3 that holds the sample."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", running[0].s3_url)


@contextmanager
def answering(*pieces):
    """A server that answers each request with these bytes, then closes; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    for piece in pieces:
                        connection.sendall(piece)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_an_object_that_breaks_off_at_the_end_of_a_line_is_an_error(in_this_process, monkeypatch, pool):
    body = cloud.sample("Person.Person")
    half = body[: body.index(b"\n", len(body) // 2) + 1]
    head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nETag: "x"\r\n\r\n'.encode()
    with answering(head, half) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(dialect.FileError, match="Person.Person cannot be read from s3://adventureworks/person"):
            handle({})
    assert contents(pool) == {}


def test_a_missing_bucket_is_named(in_this_process, monkeypatch, running, pool):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running[0].s3_url)
    monkeypatch.setenv("ADVENTUREWORKS_BUCKET", "vanished")
    with pytest.raises(dialect.FileError, match=r"s3://vanished/person/.*NoSuchBucket.*nothing was written"):
        handle({})
    assert contents(pool) == {}


def test_an_unreachable_database_is_reported_on_one_line_without_the_password(in_this_process, monkeypatch):
    monkeypatch.setenv("ADVENTUREWORKS_DATABASE_URL", "postgresql://user:s3cr3t@127.0.0.1:1/d")
    with pytest.raises(engine.DatabaseError, match="the database failed: .*nothing was written") as failure:
        handle({})
    assert "s3cr3t" not in str(failure.value)
    assert "\n" not in str(failure.value)


def test_the_url_of_the_database_may_be_in_a_secret(beside_s3, monkeypatch, running, database):
    running, _ = running
    secret = cloud.client("secretsmanager", running.s3_url)
    arn = secret.create_secret(Name="of-the-test", SecretString=os.environ["ADVENTUREWORKS_DATABASE_URL"])["ARN"]
    monkeypatch.delenv("ADVENTUREWORKS_DATABASE_URL")
    monkeypatch.setenv("ADVENTUREWORKS_DATABASE_SECRET", arn)
    assert settings.database_url().set(query={}) == database.set(query={})
    result = handle({"files": ["Person.Person"]})
    assert result["files"]["Person.Person"]["loaded"] == 2057


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ADVENTUREWORKS_BUCKET", "", "ADVENTUREWORKS_BUCKET is not set"),
        ("ADVENTUREWORKS_DATABASE_URL", "", "neither ADVENTUREWORKS_DATABASE_SECRET nor ADVENTUREWORKS_DATABASE_URL"),
        (
            "ADVENTUREWORKS_DATABASE_URL",
            "mysql://u:s3cr3t@h/d",
            "ADVENTUREWORKS_DATABASE_URL is not a URL of PostgreSQL",
        ),
        ("ADVENTUREWORKS_DATABASE_SECRET", "absent", "the secret absent cannot be read as text"),
        (
            "ADVENTUREWORKS_SHRINK_LIMIT_PERCENT",
            "101",
            "SHRINK_LIMIT_PERCENT is '101': expected a number from 0 to 100",
        ),
        (
            "ADVENTUREWORKS_REJECT_LIMIT_PERCENT",
            "nan",
            "REJECT_LIMIT_PERCENT is 'nan': expected a number from 0 to 100",
        ),
        ("ADVENTUREWORKS_REJECT_LIMIT_PERCENT", "five", "REJECT_LIMIT_PERCENT is 'five'"),
    ],
)
def test_an_unusable_setting_is_named(beside_s3, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(settings.SettingsError, match=message) as failure:
        handle({})
    assert "s3cr3t" not in str(failure.value)


def test_the_function_imports_only_what_its_package_holds():
    code = "import adventureworks.handler, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    loaded = {name for name in run.stdout.split() if not name.startswith("_")} - set(sys.stdlib_module_names)
    libraries = {"boto3", "botocore", "psycopg2", "sqlalchemy"}
    theirs = {
        "certifi",
        "cython_runtime",
        "dateutil",
        "jmespath",
        "s3transfer",
        "six",
        "typing_extensions",
        "urllib3",
        "greenlet",
    }
    assert loaded - theirs == {"adventureworks", "fonte_alvo", *libraries}


def test_the_function_needs_no_more_memory_for_a_file_twenty_times_as_large(running):
    running, _ = running
    s3 = cloud.client("s3", running.s3_url)

    def resident_bytes_after(times):
        header, *rows = cloud.sample("Sales.SpecialOfferProduct").splitlines(keepends=True)
        # Each copy has new numbers of offers.
        copies = [b"%d" % copy + row for copy in range(1, times + 1) for row in rows]
        body = b"".join([header, *copies])
        s3.put_object(Bucket=cloud.BUCKET, Key="sales/Sales.SpecialOfferProduct.csv", Body=body)
        running.sandbox.stop()
        result, error = invoked(running, {"files": ["Sales.SpecialOfferProduct"], "mode": "upsert"})
        assert (error, result["files"]["Sales.SpecialOfferProduct"]["rows"]) == (None, 538 * times)
        return psutil.Process(running.sandbox.process.pid).memory_info().rss

    invoked(running, {})
    assert resident_bytes_after(400) < 1.1 * resident_bytes_after(20)
    put(running, "Sales.SpecialOfferProduct", cloud.sample("Sales.SpecialOfferProduct"))
    assert invoked(running, {"files": ["Sales.SpecialOfferProduct"], "allow_shrink": True})[1] is None


def test_every_table_has_its_object():
    keys = {handler.key(settings.Source("bucket", "in/"), file) for file in model.TABLES}
    assert len(keys) == 6
    assert "in/sales/Sales.Customer.csv" in keys
