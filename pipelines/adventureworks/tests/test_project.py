"""The questions, the template, the diagram, the READMEs, and the size of the code."""

import ast
import csv
import io
import os
import re
import sys
import tokenize
from decimal import Decimal
from types import SimpleNamespace

import cfnlint.api
import pytest
import yaml
from sqlalchemy import text

import run
from adventureworks import model, questions
from local import cloud, lambda_service
from tests import diagram
from tests.conftest import ROOT, python


@pytest.fixture(scope="module")
def answers(shared_pool):
    """The answers, read once: {q1: (columns, rows)}."""
    return {name: (columns, rows) for name, _, columns, rows in questions.answers(shared_pool)}


def exact(value):
    """A number as a number, anything else as text."""
    try:
        return Decimal(str(value))
    except ArithmeticError:
        return str(value)


@pytest.mark.parametrize(("name", "count"), [("q1", 332), ("q3", 1359), ("q5", 138)])
def test_the_answers_equal_the_expected_rows_in_order(answers, name, count):
    with (ROOT / f"data/expected/{name}.csv").open(newline="") as file:
        _, *expected = csv.reader(file)
    assert [list(map(exact, row)) for row in answers[name][1]] == [list(map(exact, row)) for row in expected]
    assert len(expected) == count


def details():
    """The loaded details as plain Python reads them."""

    def read(file):
        lines = cloud.sample(file).decode("utf-8-sig").splitlines()
        return list(csv.DictReader(lines, delimiter=";"))

    headers = {row["SalesOrderID"]: row for row in read("Sales.SalesOrderHeader")}
    products = {row["ProductID"]: row for row in read("Production.Product")}
    for row in read("Sales.SalesOrderDetail"):
        if row["SalesOrderID"] in headers:
            yield int(row["OrderQty"]), products[row["ProductID"]], headers[row["SalesOrderID"]]["OrderDate"][:10]


def test_no_piece_is_counted_twice_among_the_best_selling_products(answers):
    sold = {}
    for quantity, product, _ in details():
        key = int(product["DaysToManufacture"]), int(product["ProductID"]), product["Name"]
        sold[key] = sold.get(key, 0) + quantity
    best = []
    for days in sorted({key[0] for key in sold}):
        ranked = sorted((-sold[key], *key) for key in sold if key[0] == days)[:3]
        best += [(days, place, key[2], key[3], -key[0]) for place, key in enumerate(ranked, 1)]
    assert answers["q2"][1] == best


def test_every_piece_is_counted_once_on_its_date(answers):
    sold = {}
    for quantity, product, day in details():
        key = int(product["ProductID"]), product["Name"], day
        sold[key] = sold.get(key, 0) + quantity
    assert [(row[0], row[1], str(row[2]), row[3]) for row in answers["q4"][1]] == [
        (*key, sold[key]) for key in sorted(sold)
    ]


def test_customers_of_the_same_name_count_separately(loaded):
    with loaded.begin() as connection:
        connection.execute(text("UPDATE person.person SET first_name = 'A', middle_name = NULL, last_name = 'B'"))
    counted = {name: rows for name, _, _, rows in questions.answers(loaded)}["q3"]
    assert len(counted) == 1359
    assert {row[1] for row in counted} == {"A B"}


def test_money_is_exact(answers):
    assert {type(row[2]) for row in answers["q5"][1]} == {Decimal}


def test_the_command_prints_all_five_answers_and_writes_them_whole(loaded_database, tmp_path):
    url = loaded_database.render_as_string(hide_password=False)
    options = ["--rows", "2", "--csv", str(tmp_path / "answers")]
    run = python("-m", "adventureworks.questions", *options, ADVENTUREWORKS_DATABASE_URL=url)
    assert (run.returncode, run.stderr) == (0, "")
    assert [line[:2] for line in run.stdout.splitlines() if line.startswith("q")] == ["q1", "q2", "q3", "q4", "q5"]
    assert "    43659           12\n    43661           15\n    332 rows\n" in run.stdout
    counts = {file.stem: len(file.read_text().splitlines()) - 1 for file in (tmp_path / "answers").glob("*.csv")}
    assert counts == {"q1": 332, "q2": 11, "q3": 1359, "q4": 1194, "q5": 138}


@pytest.mark.parametrize(
    ("place", "code", "said"), [("/dev/full", 6, "cannot be written: No space left"), ("", 141, "")]
)
def test_answers_that_cannot_be_printed_have_their_own_code(loaded_database, place, code, said):
    """The disk is full, or the reader of the pipe is gone."""
    url = loaded_database.render_as_string(hide_password=False)
    if place:
        output = os.open(place, os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    run = python("-m", "adventureworks.questions", stdout=output, ADVENTUREWORKS_DATABASE_URL=url)
    os.close(output)
    assert (run.returncode, run.stderr.count("\n")) == (code, bool(said))
    assert said in run.stderr


def test_the_answers_are_written_in_utf_8_whatever_the_locale(loaded_database, tmp_path):
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    url = loaded_database.render_as_string(hide_password=False)
    options = ["--csv", str(tmp_path)]
    run = python("-m", "adventureworks.questions", *options, ADVENTUREWORKS_DATABASE_URL=url, **variables)
    assert (run.returncode, run.stderr) == (0, "")
    assert "é" in (tmp_path / "q3.csv").read_text("utf-8")


def test_a_slow_reader_of_the_answers_keeps_no_transaction_open(loaded_database, loaded, monkeypatch):
    """`| less` may wait for minutes; a transaction that is idle for one is ended."""
    states = text("SELECT state FROM pg_stat_activity WHERE application_name = 'adventureworks.questions'")
    held = []

    def write(_):
        with loaded.connect() as connection:
            held.extend(connection.scalars(states))

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=write))
    assert questions.show(loaded_database, 1, None) == 0
    assert set(held) == {"idle"}


def test_the_questions_without_tables_fail_on_one_line(database):
    url = database.render_as_string(hide_password=False)
    run = python("-m", "adventureworks.questions", ADVENTUREWORKS_DATABASE_URL=url)
    assert (run.returncode, run.stderr.count("\n")) == (4, 1)
    assert 'relation "sales.sales_order_detail" does not exist' in run.stderr


def test_settings_of_the_machine_do_not_reach_the_local_run(monkeypatch):
    for name in ("AWS_PROFILE", "ADVENTUREWORKS_PREFIX", "AIRFLOW__CORE__EXECUTOR", "HTTP_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("NO_PROXY", "kept")
    before = dict(os.environ)
    cloud.forget_settings()
    gone = {name.upper() for name in before.keys() - os.environ.keys()}
    assert gone >= {"AWS_PROFILE", "ADVENTUREWORKS_PREFIX", "AIRFLOW__CORE__EXECUTOR", "HTTP_PROXY", "HTTPS_PROXY"}
    assert {"PATH", "NO_PROXY"} <= os.environ.keys()


def test_the_one_command_repeats_the_function_error_whole():
    said = lambda_service.error("FileError", "Sales.Customer is broken " + "x" * 2000)
    assert run.reason(said, "Airflow's log") == "Sales.Customer is broken " + "x" * 2000
    assert run.reason(None, "Airflow's\n" + "log " * 500).endswith("log log")
    assert run.reason(lambda_service.Answer(b"{}"), "Airflow's\nlog") == "Airflow's log"


def test_the_diagram_shows_the_tables():
    assert (ROOT / "MODEL.md").read_text() == diagram.markdown() + "\n"


def test_the_tables_of_the_database_have_the_keys_that_the_diagram_shows(loaded):
    query = "SELECT conrelid::regclass || ' ' || confrelid::regclass FROM pg_constraint WHERE contype = 'f'"
    with loaded.connect() as connection:
        keys = set(connection.scalars(text(query)))
        declared = {
            f"{table.fullname} {key.referred_table.fullname}"
            for table in model.TABLES.values()
            for key in model.enforced(connection, table)
        }
    assert keys == declared
    assert len(keys) == 4


class _Template(yaml.SafeLoader):
    """Reads CloudFormation's tags as the values that they hold."""


_Template.add_multi_constructor(
    "!", lambda loader, _, node: node.value if isinstance(node, yaml.ScalarNode) else loader.construct_sequence(node)
)
TEMPLATE = yaml.load((ROOT / "template.yaml").read_text(), _Template)


def linted(text):
    """The rules that a template breaks; those that begin with I only inform."""
    return [found.rule.id for found in cfnlint.api.lint_all(text) if not found.rule.id.startswith("I")]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Timeout: 900", "Timeout: 9000"),
        ("GroupDescription:", "Description:"),
        ("!Ref DatabaseSecretArn", "!Ref DatabaseSecrets"),
        ("PubliclyAccessible: false", "PubliclyAccessibly: false"),
    ],
)
def test_cfn_lint_accepts_the_template_and_no_broken_one(right, wrong):
    template = (ROOT / "template.yaml").read_text()
    assert linted(template) == []
    assert linted(template.replace(right, wrong)) != []


def test_the_function_may_do_what_it_needs_and_nothing_else():
    [policy] = TEMPLATE["Resources"]["Role"]["Properties"]["Policies"]
    allowed = {}
    for statement in policy["PolicyDocument"]["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            assert {action.partition(":")[0] for action in actions} == {"ec2"}
        if statement["Effect"] == "Allow":
            allowed |= dict.fromkeys(actions, statement["Resource"])
        else:
            assert statement["Sid"] == "NotFromTheCode"
            assert set(actions) == {action for action in allowed if action.startswith("ec2:")}
    assert {action for action in allowed if not action.startswith(("ec2:", "logs:"))} == {
        "s3:GetObject",
        "s3:ListBucket",
        "secretsmanager:GetSecretValue",
    }
    schemas = {f"{table.schema}/*" for table in model.TABLES.values()}
    assert {resource.rpartition("${Prefix}")[2] for resource in allowed["s3:GetObject"]} == schemas


def test_only_the_function_reaches_a_database_of_the_template():
    made = {name for name, resource in TEMPLATE["Resources"].items() if resource.get("Condition") == "MakesDatabase"}
    assert made == {name for name in TEMPLATE["Resources"] if name.startswith("Database")} - {"DatabaseIngress"}
    database = TEMPLATE["Resources"]["Database"]["Properties"]
    assert database["PubliclyAccessible"] is False
    assert database["StorageEncrypted"] is True
    assert "SecurityGroupIngress" not in TEMPLATE["Resources"]["DatabaseSecurityGroup"]["Properties"]
    ingress = TEMPLATE["Resources"]["DatabaseIngress"]["Properties"]
    assert ingress["SourceSecurityGroupId"] == "FunctionSecurityGroup"
    assert TEMPLATE["Parameters"]["CreateDatabase"]["Default"] == "false"


def test_the_template_names_what_the_code_reads():
    function = TEMPLATE["Resources"]["Load"]["Properties"]
    module, _, name = function["Handler"].rpartition(".")
    assert callable(getattr(sys.modules.get(module) or __import__(module, fromlist=["_"]), name))
    assert function["FunctionName"] == lambda_service.FUNCTION
    read = (ROOT / "adventureworks/settings.py").read_text()
    assert all(name in read for name in function["Environment"]["Variables"])


def test_the_template_reserves_no_concurrency():
    """A new account has none to reserve, and a reserve of one answers 429 to a second load, which should wait."""
    assert "ReservedConcurrentExecutions" not in TEMPLATE["Resources"]["Load"]["Properties"]


@pytest.mark.parametrize("file", sorted(ROOT.glob("*/*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_function_is_long(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name


def test_both_readmes_have_the_same_commands_tables_and_names():
    english, portuguese = ((ROOT / name).read_text() for name in ("README.md", "README.pt-BR.md"))
    for pattern in (r"```(?:sh|text)\n.*?```", r"ADVENTUREWORKS_\w+", r"^#{1,2} ", r"^\|", r"`make [^`]*`"):
        of_each = [re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE) for text in (english, portuguese)]
        assert of_each[0] == of_each[1], pattern


def test_the_pipeline_is_small():
    """Code lines: blank lines, comments and docstrings aside."""
    files = [*ROOT.glob("adventureworks/*.py"), *ROOT.glob("local/*.py"), *ROOT.glob("dags/*.py"), ROOT / "run.py"]
    assert sum(code_lines(file.read_text()) for file in files) <= 1000


def code_lines(source):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    blocks = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented) and ast.get_docstring(node)]
    aside = {number for node in blocks for number in range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in layout]
    return len({number for token in tokens for number in range(token.start[0], token.end[0] + 1)} - aside)
