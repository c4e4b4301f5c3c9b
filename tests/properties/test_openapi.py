"""Both APIs answer every request of schemathesis as their OpenAPI descriptions say."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
import schemathesis
from hypothesis import settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.project import alvo_api as serve_alvo
from support.project import connector_over, seeded
from support.two_days import fill

from alvo.api import app as alvo_app
from fonte.connector import MOST_DAYS, app
from fonte_alvo import engine

TOKEN = "schemathesis-asks"
EXAMPLES = settings().max_examples // 2
CONFIG = schemathesis.Config.from_dict(
    {"headers": {"Authorization": f"Bearer {TOKEN}"}, "generation": {"max-examples": EXAMPLES, "database": "none"}}
)
api = schemathesis.openapi.from_dict(app.openapi(), config=CONFIG)
alvo_api = schemathesis.openapi.from_dict(alvo_app.openapi(), config=CONFIG)


@pytest.fixture(scope="module")
def served(make_database):
    """A connector over one day that only this module uses; requests may change its data."""
    database = seeded(make_database(), 1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FONTE_ADMIN_DATABASE_URL", database.render_as_string(hide_password=False))
        environment.setenv("FONTE_ADMIN_TOKEN", TOKEN)
        with connector_over(database) as base_url:
            yield base_url


@pytest.fixture(scope="module")
def served_alvo(make_database, served):
    """Alvo's API over two days that only this module uses, and over the connector; requests may change its data."""
    database = make_database()
    pool = engine.create(database, "test")
    fill(pool)
    pool.dispose()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ALVO_ADMIN_DATABASE_URL", database.render_as_string(hide_password=False))
        environment.setenv("ALVO_ADMIN_TOKEN", TOKEN)
        environment.setenv("FONTE_API_URL", served)
        with serve_alvo(database) as base_url:
            yield base_url


def inapplicable_checks(case):
    """Return the checks that fail where JSON Schema cannot say it: signals, days of no calendar, lengths of periods."""
    if "signals" in case.query:
        return [positive_data_acceptance]
    bounds = [case.query[name] for name in ("start_timestamp", "end_timestamp") if name in case.query]
    try:
        moments = [datetime.fromisoformat(bound) for bound in bounds]
        moments = [moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC) for moment in moments]
    except (TypeError, ValueError, OverflowError):
        return [positive_data_acceptance] if all(map(is_shaped_like_a_timestamp, bounds)) else []
    fits = moments == sorted(set(moments))
    if case.path == "/data/randomize" and moments:
        fits = fits and len(moments) == 2 and moments[1] - moments[0] <= timedelta(days=MOST_DAYS)
    return [] if fits else [positive_data_acceptance]


def is_shaped_like_a_timestamp(bound):
    """Tell whether a bound is a timestamp once its year and day are replaced."""
    try:
        return bool(datetime.fromisoformat(f"2000{bound[4:8]}01{bound[10:]}"))
    except (TypeError, ValueError):
        return False


@api.parametrize()
def test_every_answer_is_as_described(case, served):
    case.call_and_validate(base_url=served, excluded_checks=inapplicable_checks(case))


@alvo_api.parametrize()
def test_every_answer_of_alvo_is_as_described(case, served_alvo):
    case.call_and_validate(base_url=served_alvo, excluded_checks=inapplicable_checks(case))


def test_every_answer_along_the_links_is_as_described(served):
    class Machine(api.as_state_machine()):
        def get_call_kwargs(self, case):  # noqa: ARG002
            return {"base_url": served}

        def validate_response(self, response, case, **options):  # noqa: ARG002
            case.validate_response(response, excluded_checks=inapplicable_checks(case))

    Machine.run(settings=settings(max_examples=EXAMPLES // 5, stateful_step_count=6, deadline=None))


@pytest.mark.parametrize("query", ["x=1", "X%0A%00%C3%A9=1&format=json", "=1"])
def test_every_route_refuses_a_parameter_that_it_does_not_describe(served, query):
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            answer = httpx.request(method, f"{served}{path}?{query}", headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == 422, path
            assert "422" in operation["responses"]
            names = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"]
            assert f": no such parameter, expected {', '.join(names) or 'none'}" in answer.json()["detail"]
            assert answer.json()["detail"].isprintable()


def test_every_route_refuses_a_repeated_parameter_unless_it_is_a_list(served):
    twice = 0
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", []):
                if parameter["in"] != "query" or parameter["schema"].get("type") == "array":
                    continue
                sent = [(parameter["name"], "2024-05-20"), (parameter["name"], "2024-05-21")]
                answer = httpx.request(
                    method, f"{served}{path}", params=sent, headers={"Authorization": f"Bearer {TOKEN}"}
                )
                assert answer.status_code == 422, path
                expected = f"{parameter['name']}=['2024-05-20', '2024-05-21']: expected it once"
                assert answer.json()["detail"] == expected
                twice += 1
    assert twice >= 3
