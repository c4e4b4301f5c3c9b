"""The content of compose.yaml; test_stack.py starts it."""

import re

from support.compose import EXAMPLE, SERVICES
from support.project import ROOT

STAYING = [name for name, service in SERVICES.items() if service["restart"] == "unless-stopped"]


def test_the_file_has_no_password():
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            secrets = re.findall(r"//\w+:(.*)@", value)
            secrets += [value] * variable.endswith(("PASSWORD", "TOKEN"))
            assert all(re.fullmatch(r"\$\{\w+(:[-?][^}]*)?\}", secret) for secret in secrets), (name, variable)
            assert "//" not in value or secrets or variable == "FONTE_API_URL"


def test_every_port_is_on_loopback():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_service_is_confined():
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus", "pids_limit", "logging", "networks"} <= set(service), name


def test_a_service_either_stays_with_a_health_check_or_runs_once():
    for name, service in SERVICES.items():
        assert (name in STAYING) == ("healthcheck" in service), name
        assert name in STAYING or service["restart"] == "no", name
    waits = {(name, condition["condition"]) for service in SERVICES.values() for name, condition in _waits(service)}
    assert waits == {
        (name, "service_healthy" if name in STAYING else "service_completed_successfully") for name, _ in waits
    }


def _waits(service):
    return service.get("depends_on", {}).items()


def test_the_example_has_a_working_value_for_every_variable():
    named = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text()))
    of_commands = {"FONTE_API_URL", "FONTE_DATABASE_URL", "ALVO_DATABASE_URL"}
    assert set(EXAMPLE) == named | of_commands
    assert {name for name, value in EXAMPLE.items() if not value} == {"DAGSTER_START_DATE"} | {
        f"{side}_{name}" for side in ("FONTE", "ALVO") for name in ("ADMIN_TOKEN", "ALLOWED_ORIGINS", "ALLOWED_HOSTS")
    }
    assert all(re.fullmatch("[a-z0-9-]+", value) for name, value in EXAMPLE.items() if name.endswith("PASSWORD"))
