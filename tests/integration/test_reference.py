"""docs/reference.md: each request of the Dagster reference solution has the one that the table names beside it."""

import re
import threading
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import text
from support.project import ROOT, alvo_api, connector_over, seeded
from support.two_days import fill

TOKEN = "token-of-the-tests"
ROW = re.compile(r"^\| `GET (/\w+/\w+/\w+\S*)` \| `(\w+ \S+)` \((\w+)\) \|", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/reference.md").read_text())
DAY = timedelta(days=1)


class Reference:
    """Answers as the reference solution does, whose ends are inclusive, from what the tables hold."""

    def __init__(self, pools):
        self.pools = pools

    def read(self, side, query):
        with self.pools[side].connect() as connection:
            return [row._asdict() for row in connection.execute(text(query))]

    def source_data_read(self, asked):
        rows = self.read("Fonte", "SELECT * FROM data ORDER BY timestamp")
        if "start_date" in asked:
            start, end = (moment(asked[name]) for name in ("start_date", "end_date"))
            rows = [row for row in rows if start <= row["timestamp"] <= end]
        names = asked.get_list("variables") or ["wind_speed", "power", "ambient_temperature"]
        return [{"timestamp": row["timestamp"], **{name: row[name] for name in names}} for row in rows]

    def source_data_randomize(self, asked):
        start = moment(asked["start_date"])
        last = moment(asked["end_date"]) if "end_date" in asked else start + int(asked["period"]) * DAY
        step = timedelta(minutes=int(asked["minutes"]))
        return (last + timedelta(hours=23, minutes=59, seconds=59) - start) // step + 1

    def source_data_reset(self, _):
        return self.read("Fonte", "SELECT count(*) FROM data")[0]["count"]

    def target_signal_read(self, asked):
        names = [row["name"] for row in self.read("Alvo", "SELECT name FROM signal ORDER BY name")]
        return [{"name": name} for name in names if asked.get("name", name) == name]

    def target_data_read(self, asked):
        query = "SELECT timestamp, name AS signal, value FROM data JOIN signal ON id = signal_id ORDER BY 1, 2"
        return [
            row
            for row in self.read("Alvo", query)
            if asked.get("name", row["signal"]) == row["signal"]
            and ("timestamp" not in asked or moment(asked["timestamp"]) == row["timestamp"])
        ]

    def target_data_reset(self, _):
        return self.read("Alvo", "SELECT count(*) FROM data")[0]["count"]

    def target_signal_reset(self, _):
        with self.pools["Alvo"].begin() as connection:
            connection.execute(text("DELETE FROM data WHERE signal_id = 1"))
        return 1


def moment(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_the_table_has_every_route_of_the_reference():
    assert len(ROWS) == 12
    routes = {there.split("?")[0].strip("/").replace("/", "_") for there, _, _ in ROWS}
    assert routes == {name for name in vars(Reference) if name.startswith(("source", "target"))}


@pytest.mark.parametrize(("there", "here", "side"), ROWS, ids=[there for there, _, _ in ROWS])
def test_each_request_of_the_reference_has_its_equal_here(
    there, here, side, make_database, alvo, alvo_pool, make_pool, monkeypatch
):
    fonte = seeded(make_database(), 1)
    fill(alvo_pool)
    for name, url in (("FONTE", fonte), ("ALVO", alvo)):
        monkeypatch.setenv(f"{name}_ADMIN_DATABASE_URL", url.render_as_string(hide_password=False))
        monkeypatch.setenv(f"{name}_ADMIN_TOKEN", TOKEN)
    reference = Reference({"Fonte": make_pool(fonte), "Alvo": alvo_pool})
    route, asked = there.split("?")[0].strip("/").replace("/", "_"), httpx.URL(there).params
    expected = getattr(reference, route)(asked)
    method, target = here.split(" ")
    served = connector_over(fonte) if side == "Fonte" else alvo_api(alvo)
    with served as base_url, httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        answer = client.request(method, base_url + target).raise_for_status().json()
        if isinstance(answer, dict):
            assert answer["rows"] == expected > 0
            if "randomize" in target:
                rows = client.get(f"{base_url}/data?start_timestamp=2024-07-01").json()
                assert len(rows) == expected
                assert rows[0]["timestamp"] == "2024-07-15T00:00:00Z"
                step = moment(rows[1]["timestamp"][:-1]) - moment(rows[0]["timestamp"][:-1])
                assert step == timedelta(minutes=int(asked["minutes"]))
            return
    for row in answer:
        row |= {"timestamp": moment(row["timestamp"].removesuffix("Z"))} if "timestamp" in row else {}
    assert answer == expected != []


def test_a_signal_with_values_stays_and_a_load_that_needs_it_waits_for_its_deletion(alvo, alvo_pool, monkeypatch):
    fill(alvo_pool)
    monkeypatch.setenv("ALVO_ADMIN_DATABASE_URL", alvo.render_as_string(hide_password=False))
    monkeypatch.setenv("ALVO_ADMIN_TOKEN", TOKEN)
    with alvo_api(alvo) as base_url:
        admin = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.delete(f"{base_url}/signals", headers=admin).json() == {"rows": 0}
        assert httpx.delete(f"{base_url}/signals").status_code == 401
        with alvo_pool.begin() as connection:
            connection.execute(text("DELETE FROM data"))
            # As a load in progress holds it, until its end.
            connection.execute(text("SELECT pg_advisory_xact_lock_shared(hashtext('alvo.signal'), 0)"))
            waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")

            answers = []
            delete = threading.Thread(
                target=lambda: answers.append(httpx.delete(f"{base_url}/signals", headers=admin).json())
            )
            delete.start()
            while not connection.scalar(waiting):
                pass
            assert len(httpx.get(f"{base_url}/signals").json()) == 2
        delete.join()
        assert answers == [{"rows": 2}]
        assert httpx.get(f"{base_url}/signals").json() == []
