"""The load: the tables take all rows of the files or none."""

import re

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from adventureworks import dialect, load, model, stage
from adventureworks.settings import Limits, limits
from fonte_alvo import embedded, engine
from local import cloud
from tests.conftest import ALL, EXPECTED, contents, dated, rejects, sample

# In a file of a few rows, each row is a large share.
ANY = Limits(1, 1)


def counts(report):
    return report.rows, report.loaded, report.rejected, report.flagged


def test_the_sample_is_loaded_and_every_row_that_breaks_a_key_is_reported(loaded):
    reported = rejects(loaded)
    assert [(file, loaded) for file, _, _, loaded in reported] == [("Sales.SalesOrderDetail", False)] * 41 + [
        ("Sales.SalesOrderHeader", True)
    ] * 13
    assert reported[0] == (
        "Sales.SalesOrderDetail", 5677, "sales_order_id 45225 is not in sales.sales_order_header", False
    )  # fmt: skip
    assert reported[41] == (
        "Sales.SalesOrderHeader", 23, "customer_id 29489 has no name: person_id 301 is not in person.person", True
    )  # fmt: skip
    lines = cloud.sample("Sales.SalesOrderHeader").decode().splitlines()
    assert lines[23 - 1].split(";")[10] == "29489"


@pytest.mark.parametrize("mode", ["replace", "upsert"])
def test_a_second_run_gives_the_same_counts_and_touches_no_row(loaded, mode):
    before = contents(loaded)
    reports = load.load(loaded, load.Plan(ALL, mode), sample)
    assert {file: counts(report) for file, report in reports.items()} == EXPECTED
    after = contents(loaded)
    # The rejects of a file are written again.
    assert [row[1] for row in before.pop("load.reject")] == [row[1] for row in after.pop("load.reject")]
    assert after == before


def test_money_dates_flags_and_codes_are_loaded_correctly(loaded):
    with loaded.connect() as connection:
        row = connection.execute(text("SELECT * FROM sales.sales_order_header WHERE sales_order_id = 43659")).one()
        assert f"{row.sub_total} {row.total_due} {row.order_date} {row.online_order_flag} {row.comment}" == (
            "20565.6206 23153.2339 2011-05-31 00:00:00 False None"
        )
        product = connection.execute(text("SELECT * FROM production.product WHERE product_id = 317")).one()
        assert (product.name, product.product_line, product.weight) == ("LL Crankarm", None, None)
        assert product.__getattr__("class") == "L"
        total = "SELECT line_total FROM sales.sales_order_detail WHERE sales_order_detail_id = 2"
        assert str(connection.scalar(text(total))) == "6074.982000"
        weight = text("SELECT count(*), max(weight) FROM production.product WHERE weight_unit_measure_code = 'G'")
        assert [str(value) for value in connection.execute(weight).one()] == ["29", "1050.00"]


OFFER = "SpecialOfferID;ProductID"
PRODUCT = ";".join(column.info["name"] for column in model.TABLES["Production.Product"].columns[:-2])
CUSTOMER = "CustomerID;PersonID;StoreID;TerritoryID;AccountNumber"
ORDER = ";".join(column.info["name"] for column in model.TABLES["Sales.SalesOrderHeader"].columns[:-2])
DETAIL = ";".join(column.info["name"] for column in model.TABLES["Sales.SalesOrderDetail"].columns[:-2])
DAY = "2011-05-31 00:00:00.000"


def product(number, name="x"):
    return f"{number};{name};X-{number};0;0;NULL;1;1;0,00;0,00;NULL;NULL;NULL;NULL;0;NULL;NULL;NULL;NULL;NULL;" + (
        "2008-04-30 00:00:00.000;NULL;NULL"
    )


def order(number, customer):
    return f"{number};1;{DAY};{DAY};NULL;1;0;SO{number};NULL;NULL;{customer};NULL;NULL;1;1;1;NULL;NULL;NULL;" + (
        "0,00;0,00;0,00;0,00;NULL"
    )


FORMATS = {
    "Production.Product": (PRODUCT, product),
    "Sales.SpecialOfferProduct": (OFFER, "{};{}".format),
    "Sales.Customer": (CUSTOMER, "{};NULL;1;{};A".format),
    "Sales.SalesOrderHeader": (ORDER, order),
    "Sales.SalesOrderDetail": (DETAIL, "{0};{1};NULL;1;{3};{2};0,00;0,00;0.000000".format),
}
# The tested columns, key first; the width of the key; the places of the parents' keys.
HELD = {
    "Production.Product": ("product_id, name", 1, {}),
    "Sales.SpecialOfferProduct": ("special_offer_id, product_id", 2, {"Production.Product": slice(1, 2)}),
    "Sales.Customer": ("customer_id, territory_id", 1, {}),
    "Sales.SalesOrderHeader": ("sales_order_id, customer_id", 1, {"Sales.Customer": slice(1, 2)}),
    "Sales.SalesOrderDetail": (
        "sales_order_id, sales_order_detail_id, special_offer_id, product_id",
        2,
        {"Sales.SalesOrderHeader": slice(0, 1), "Sales.SpecialOfferProduct": slice(2, 4)},
    ),
}
few = st.integers(1, 2)
rows_of = {file: st.tuples(few, few) for file in HELD} | {
    "Production.Product": st.tuples(few, st.sampled_from("xyz")),
    "Sales.SalesOrderDetail": st.tuples(few, few, few, few),
}
# A row may be clean, have an unreadable date, or an unreadable key.
dirt = st.sampled_from(["", "", "", "date", "key"])
files_of_rows = st.fixed_dictionaries(
    {}, optional={file: st.lists(st.tuples(rows, dirt), min_size=1, max_size=4) for file, rows in rows_of.items()}
).filter(bool)


def body_of(file, rows):
    """The file of these rows, with their dirt."""
    columns, text = FORMATS[file]
    body = dated(columns, *(text(*(("?", *row[1:]) if dirt == "key" else row)) for row, dirt in rows))
    header, *lines = body.splitlines(keepends=True)
    dirty = [
        line.replace(b":07.263", b":7") if dirt == "date" else line for line, (_, dirt) in zip(lines, rows, strict=True)
    ]
    return b"".join([header, *dirty])


def after(held, files, mode):
    """The rows after a load, {file: {key: row}}, in plain Python; None if a file has no row to load."""
    now = {}
    for file, (_, width, parents) in HELD.items():
        rows = files.get(file, [])
        good = [
            row
            for row, dirt in rows
            if not dirt
            and all(row[place] in (now[parent] if parent in now else held[parent]) for parent, place in parents.items())
        ]
        if file in files and not good:
            return None
        old = held[file]
        if file in files and mode == "replace" and "key" not in {dirt for _, dirt in rows}:
            unreadable = {row[:width] for row, dirt in rows if dirt}
            old = {key: row for key, row in old.items() if key in unreadable}
        # The first row of a key counts.
        now[file] = old | {row[:width]: row for row in reversed(good)}
    for file in reversed(HELD):
        for parent, place in HELD[file][2].items():
            needed = {row[place] for row in now[file].values()}
            now[parent] = {key: row for key, row in held[parent].items() if key in needed} | now[parent]
    return now


@settings(max_examples=60)
@given(loads=st.lists(st.tuples(files_of_rows, st.sampled_from(["replace", "upsert"])), min_size=2, max_size=4))
@example(
    loads=[
        ({"Sales.Customer": [((1, 1), "")], "Sales.SalesOrderHeader": [((1, 1), "")]}, "replace"),
        ({"Sales.Customer": [((2, 1), "")], "Sales.SalesOrderHeader": [((1, 2), "")]}, "replace"),
    ]
)
@example(
    loads=[
        ({"Sales.Customer": [((1, 1), ""), ((2, 1), "")], "Sales.SalesOrderHeader": [((1, 1), "")]}, "replace"),
        ({"Sales.Customer": [((1, 2), "date"), ((2, 1), "")], "Sales.SalesOrderHeader": [((1, 1), "")]}, "replace"),
        ({"Sales.Customer": [((1, 2), "key"), ((2, 1), "")], "Sales.SalesOrderHeader": [((1, 2), "")]}, "replace"),
    ]
)
def test_the_tables_hold_the_rows_that_plain_python_computes(empty_pool, loads):
    """Keys that are absent, repeated, moved to another parent, gone and unreadable; in both modes, with any files."""
    with empty_pool.begin() as connection:
        names = ", ".join(model.TABLES[file].fullname for file in HELD)
        connection.execute(text(f"TRUNCATE {names}, load.reject CASCADE"))
    held = {file: {} for file in HELD}
    for files, mode in loads:
        bodies = {file: body_of(file, rows) for file, rows in files.items()}
        plan = load.Plan(list(files), mode, limits=ANY)
        if now := after(held, files, mode):
            held = now
            reports = load.load(empty_pool, plan, lambda file, bodies=bodies: [bodies[file]])
            assert all(report.rows == report.loaded + report.rejected for report in reports.values())
        else:
            with pytest.raises(dialect.FileError, match="that cannot be loaded"):
                load.load(empty_pool, plan, lambda file, bodies=bodies: [bodies[file]])
        with empty_pool.connect() as connection:
            for file, (columns, _, _) in HELD.items():
                there = connection.execute(text(f"SELECT {columns} FROM {model.TABLES[file].fullname}"))
                assert sorted(map(tuple, there)) == sorted(held[file].values())


@pytest.fixture(scope="module")
def empty_pool(make_database):
    pool = engine.create(make_database(), "test")
    with pool.begin() as connection:
        model.complete(connection, model.create_absent(connection))
    yield pool
    pool.dispose()


@pytest.mark.parametrize("mode", ["replace", "upsert"])
def test_a_file_without_a_loadable_row_empties_no_table(loaded, mode):
    before = contents(loaded)

    def without_hours(file):
        body = cloud.sample(file)
        return [body.replace(b" 00:00:00.000", b"") if file == "Sales.SalesOrderHeader" else body]

    expected = (
        "Sales.SalesOrderHeader has 1,566 rows of 1,566 that cannot be loaded; the limit is 5 %; nothing was written: "
        "correct the file; line 2: OrderDate '2011-05-31' is no time: expected YYYY-MM-DD HH:MM:SS.mmm; line 3: "
    )
    with pytest.raises(dialect.FileError) as failure:
        load.load(loaded, load.Plan(ALL, mode), without_hours)
    assert str(failure.value).startswith(expected)
    assert contents(loaded) == before


@pytest.mark.parametrize(("percent", "rows"), [("29", 100), ("57", 100), ("12.3", 1000)])
def test_a_share_of_rows_that_equals_its_limit_is_accepted(pool, monkeypatch, percent, rows):
    """29 / 100 * 100 is less than 29 in binary numbers."""
    monkeypatch.setenv("ADVENTUREWORKS_REJECT_LIMIT_PERCENT", percent)
    monkeypatch.setenv("ADVENTUREWORKS_SHRINK_LIMIT_PERCENT", percent)
    plan = load.Plan(["Sales.Customer"], limits=limits())
    share = round(float(percent) * rows / 100)
    all_rows = [f"{number};NULL;1;1;A" for number in range(1, rows + 1)]
    bad = [f"x;NULL;1;1;{number}" for number in range(share)]
    report = load.load(pool, plan, lambda _: [dated(CUSTOMER, *all_rows[share:], *bad)])["Sales.Customer"]
    assert report.rejected == share
    load.load(pool, plan, lambda _: [dated(CUSTOMER, *all_rows)])
    report = load.load(pool, plan, lambda _: [dated(CUSTOMER, *all_rows[share:])])["Sales.Customer"]
    assert report.removed == share


def test_percent_signs_and_colons_have_no_special_meaning_in_sql(pool):
    with pool.connect() as connection:
        assert stage.run(connection, "SELECT '50% %s :x'").scalar() == "50% %s :x"


def test_each_row_that_breaks_a_type_a_check_or_a_key_is_rejected_with_its_line_and_the_rest_is_loaded(pool):
    rows = [product(1), product("x"), product(2).replace("0,00", "-1,00", 1), product(1, "again"), product(3)]
    report = load.load(pool, load.Plan(["Production.Product"], limits=ANY), lambda _: [dated(PRODUCT, *rows)])
    assert counts(report["Production.Product"]) == (5, 2, 3, 0)
    assert [(line, reason) for _, line, reason, _ in rejects(pool)] == [
        (3, "ProductID 'x' is no whole number from -2,147,483,648 to 2,147,483,647"),
        (4, "breaks product_prices_not_negative: standard_cost >= 0 AND list_price >= 0"),
        (5, "repeats the key of line 2"),
    ]


def test_a_row_that_breaks_a_check_of_the_table_does_not_end_the_load(pool):
    """The check stops COPY into the new table; the file is then staged, and only this row is rejected."""
    load.load(
        pool, load.Plan(["Sales.Customer"], limits=ANY), lambda _: [dated(CUSTOMER, "1;NULL;1;1;A", "2;NULL;NULL;1;A")]
    )
    assert rejects(pool) == [
        ("Sales.Customer", 3, "breaks customer_is_somebody: person_id IS NOT NULL OR store_id IS NOT NULL", False)
    ]


@pytest.mark.parametrize("is_new", [True, False])
def test_rows_without_a_parent_are_rejected_with_their_lines(pool, is_new):
    """COPY fills a new table in the order of the file, whatever the lengths of its rows."""
    if not is_new:
        with pool.begin() as connection:
            model.complete(connection, model.create_absent(connection))
    header, *rows = cloud.sample("Sales.SalesOrderHeader").decode("utf-8-sig").splitlines()
    written, expected = [header], {}
    for line, row in enumerate(rows, 2):
        fields = row.split(";")
        fields[header.split(";").index("Comment")] = "x" * (line * 37 % 128)
        if line % 7 == 0:
            fields[10] = str(900_000 + line)
            expected[line] = f"customer_id {fields[10]} is not in sales.customer"
        written.append(";".join(fields))
    body = "\r\n".join([*written, ""]).encode()
    files = ["Sales.Customer", "Sales.SalesOrderHeader"]
    reports = load.load(
        pool, load.Plan(files, limits=ANY), lambda file: [body] if file == "Sales.SalesOrderHeader" else sample(file)
    )
    assert {report.is_direct for report in reports.values()} == {is_new}
    assert {line: reason for _, line, reason, loaded in rejects(pool) if not loaded} == expected
    with pool.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sales.sales_order_header")) == len(rows) - len(expected)


def test_a_row_whose_parent_was_rejected_is_rejected_too(pool):
    bodies = {
        "Production.Product": dated(
            PRODUCT, product(1), product(2).replace("0,00", "zero", 1), product(3).replace("0,00", "-1,00", 1)
        ),
        "Sales.SpecialOfferProduct": dated(OFFER, "1;1", "1;2", "1;3"),
    }
    load.load(pool, load.Plan(list(bodies), limits=ANY), lambda file: [bodies[file]])
    assert [(file, line) for file, line, _, _ in rejects(pool)] == [
        ("Production.Product", 3),
        ("Production.Product", 4),
        ("Sales.SpecialOfferProduct", 3),
        ("Sales.SpecialOfferProduct", 4),
    ]


def test_a_new_tables_row_does_not_keep_a_parent_that_its_file_no_longer_holds(pool):
    customers = dated(CUSTOMER, "1;NULL;1;1;A", "2;NULL;1;1;A")
    load.load(pool, load.Plan(["Sales.Customer"], limits=ANY), lambda _: [customers])
    bodies = {
        "Sales.Customer": dated(CUSTOMER, "1;NULL;1;1;A"),
        "Sales.SalesOrderHeader": dated(ORDER, order(1, 1), order(2, 2)),
    }
    with pool.begin() as connection:
        connection.execute(text("DROP TABLE sales.sales_order_detail, sales.sales_order_header"))
    load.load(pool, load.Plan(list(bodies), limits=ANY), lambda file: [bodies[file]])
    with pool.connect() as connection:
        assert connection.execute(text("SELECT customer_id FROM sales.customer")).all() == [(1,)]
    assert [line for file, line, _, loaded in rejects(pool) if not loaded] == [3]


def test_replace_removes_rows_that_a_file_no_longer_holds_and_upsert_keeps_them(loaded):
    def shorter(file):
        body = cloud.sample(file)
        return [body[: body.rindex(b"\n", 0, -1) + 1]]

    def held(mode):
        load.load(loaded, load.Plan(["Sales.SalesOrderDetail"], mode), shorter if mode else sample)
        with loaded.connect() as connection:
            return connection.scalar(text("SELECT count(*), max(sales_order_id) FROM sales.sales_order_detail"))

    # The last line of the details is one of those without a header.
    assert held("upsert") == held("replace") == 5675
    header, *rows = cloud.sample("Sales.SalesOrderDetail").splitlines(keepends=True)
    load.load(loaded, load.Plan(["Sales.SalesOrderDetail"], "upsert"), lambda _: [header, *rows[1:]])
    with loaded.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sales.sales_order_detail")) == 5675
    load.load(loaded, load.Plan(["Sales.SalesOrderDetail"]), lambda _: [header, *rows[1:]])
    with loaded.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sales.sales_order_detail")) == 5674


def test_rows_that_a_table_outside_the_event_needs_are_not_removed(loaded):
    """They stay unchanged, whether the file lacks them or has them unreadable."""
    before = contents(loaded)
    load.load(loaded, load.Plan(["Production.Product"], limits=ANY), lambda _: [dated(PRODUCT, product(1))])
    with loaded.connect() as connection:
        kept = set(connection.scalars(text("SELECT product_id FROM production.product")))
        assert kept == set(connection.scalars(text("SELECT product_id FROM sales.special_offer_product"))) | {1}
    body = cloud.sample("Sales.SalesOrderHeader").replace(b"2011-05-31 00:00:00.000", b"2011-05-31", 1)
    report = load.load(loaded, load.Plan(["Sales.SalesOrderHeader"]), lambda _: [body])["Sales.SalesOrderHeader"]
    assert counts(report) == (1566, 1565, 1, 13)
    assert contents(loaded)["sales.sales_order_header"] == before["sales.sales_order_header"]


NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "+1",
    "1_000",
    "99999999999",
    "32768",
    "1,5",
    "1.5",
    "1,23456",
    "-0,0001",
    "NaN",
    "inf",
    "1e3",
    "\u0661",
]
MOMENTS = ["0001-01-01", "9999-12-31", "0000-01-01", "2011-02-29", "2011-13-01"]
TEXTS = [
    "",
    "NULL",
    '"NULL"',
    "\\N",
    "\\.",
    "\\",
    "\t",
    '"a\r\nb"',
    '"',
    '""',
    "L ",
    " 1",
    "\x7f\u2028\ufeff",
    "\0",
    ";",
]
NASTY = (
    st.sampled_from(NUMBERS)
    | st.sampled_from(MOMENTS).map("{} 23:59:59.999".format)
    | st.sampled_from([*TEXTS, "92C4279F-1207-48A3-8448-4636514EB7E2", "{92C4279F-1207-48A3-8448-4636514EB7E2}"])
    | st.text(st.characters(blacklist_categories=["Cs"]), max_size=10)
)


@settings(max_examples=60)
@given(data=st.data(), file=st.sampled_from(ALL))
def test_a_bad_value_in_any_column_rejects_only_its_row_or_the_file_is_refused(shared_pool, data, file):
    """Each row but the first has a bad value in a field; every rejected row is reported."""
    header, clean, *rows = cloud.sample(file).decode("utf-8-sig").split("\r\n")[:60]
    dirty = []
    for row, dirt in zip(rows, data.draw(st.lists(NASTY, min_size=50, max_size=50)), strict=False):
        fields = row.split(";")
        fields[data.draw(st.integers(0, len(fields) - 1))] = dirt
        dirty.append(";".join(fields))
    body = "\r\n".join([header, clean, *dirty, ""]).encode()
    try:
        plan = load.Plan([file], "upsert", dialect={"null": "NULL"}, limits=ANY)
        report = load.load(shared_pool, plan, lambda _: [body])[file]
    except dialect.FileError as error:
        assert re.match(file + " (line|cannot be read: line|ends within a quoted)", str(error))
        return
    assert report.rows == report.loaded + report.rejected
    with shared_pool.connect() as connection:
        query = "SELECT count(*) FILTER (WHERE NOT loaded), min(line) FROM load.reject WHERE file = :file"
        rejected, first = connection.execute(text(query), {"file": file}).one()
    assert rejected == report.rejected
    assert first is None or first > 2


def test_a_connection_lost_during_the_load_leaves_the_old_rows(loaded, administrator):
    before = contents(loaded)
    kill = text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :name")

    def killing(file):
        header, *pieces = sample(file)
        yield header
        if file == "Sales.SalesOrderDetail":
            with administrator.connect() as connection:
                assert connection.scalar(kill, {"name": loaded.url.database}) > 0
        yield from pieces

    with pytest.raises(engine.DatabaseError) as failure, engine.failures("the database", "look"):
        load.load(loaded, load.Plan(ALL), killing)
    # psycopg2 sometimes loses the server's last words, and reports the socket instead.
    assert re.fullmatch("the database failed: .*(terminat|invalid socket).*; look", str(failure.value))
    assert contents(loaded) == before


def test_a_load_waits_for_another_one_until_its_time_limit(loaded, loaded_database):
    with loaded.connect() as other:
        other.execute(text("SELECT pg_advisory_lock(hashtext('adventureworks.load'))"))
        other.execute(text("COMMIT"))
        short = engine.create(loaded_database, "test", time_limit_s=0.3)
        with pytest.raises(engine.DatabaseError, match="timeout"), engine.failures("the database", "look"):
            load.load(short, load.Plan(["Sales.SpecialOfferProduct"]), sample)
        short.dispose()


def test_a_server_killed_during_the_load_has_the_old_rows_after_its_restart(tmp_path):
    folder = tmp_path / "embedded"
    pool = engine.create(embedded.url("postgres", folder), "test")
    load.load(pool, load.Plan(ALL), sample)
    before = contents(pool)

    def killing(file):
        header, *pieces = sample(file)
        yield header
        if file == "Sales.SalesOrderDetail":
            postmaster = psutil.Process(int((folder / "data/postmaster.pid").read_text().split("\n")[0]))
            guard = postmaster.parent()
            for process in [postmaster, *postmaster.children()]:
                process.kill()
            # While the guard lives, it reports a running server.
            guard.wait()
        yield from pieces

    with pytest.raises(engine.DatabaseError) as failure, engine.failures("the database", "look"):
        load.load(pool, load.Plan(ALL, "upsert"), killing)
    assert "\n" not in str(failure.value)
    again = engine.create(embedded.url("postgres", folder), "test")
    assert contents(again) == before
    again.dispose()
