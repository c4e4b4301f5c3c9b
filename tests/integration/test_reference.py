"""docs/reference.md: each request of the Dagster reference solution equals the request beside it in the table."""

import re
import threading
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import text
from support.project import ADMIN, ROOT, alvo_api, connector_over, seeded, set_admin, wait_until
from support.two_days import fill

ROW = re.compile(r"^\| `GET (/\w+/\w+/\w+\S*)` \| `(\w+ \S+)` \((\w+)\) \|", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/reference.md").read_text())
DAY = timedelta(days=1)


class Reference:
    """Answers as the reference solution does, with inclusive ends, from the rows of the tables."""

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
def test_each_request_of_the_reference_equals_the_one_in_the_table(
    there, here, side, make_database, alvo, alvo_pool, make_pool, monkeypatch
):
    fonte = seeded(make_database(), 1)
    fill(alvo_pool)
    set_admin(monkeypatch, "Fonte", fonte)
    set_admin(monkeypatch, "Alvo", alvo)
    reference = Reference({"Fonte": make_pool(fonte), "Alvo": alvo_pool})
    route, asked = there.split("?")[0].strip("/").replace("/", "_"), httpx.URL(there).params
    expected = getattr(reference, route)(asked)
    method, target = here.split(" ")
    served = connector_over(fonte) if side == "Fonte" else alvo_api(alvo)
    with served as base_url, httpx.Client(headers=ADMIN) as client:
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


def test_a_signal_with_values_stays_and_a_deletion_waits_for_a_running_load(alvo, alvo_pool, monkeypatch):
    fill(alvo_pool)
    set_admin(monkeypatch, "Alvo", alvo)
    with alvo_api(alvo) as base_url:
        assert httpx.delete(f"{base_url}/signals", headers=ADMIN).json() == {"rows": 0}
        assert httpx.delete(f"{base_url}/signals").status_code == 401
        with alvo_pool.begin() as connection:
            connection.execute(text("DELETE FROM data"))
            # A load holds this lock until it ends.
            connection.execute(text("SELECT pg_advisory_xact_lock_shared(hashtext('alvo.signal'), 0)"))
            waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")

            answers = []
            delete = threading.Thread(
                target=lambda: answers.append(httpx.delete(f"{base_url}/signals", headers=ADMIN).json())
            )
            delete.start()
            wait_until(lambda: connection.scalar(waiting))
            assert len(httpx.get(f"{base_url}/signals").json()) == 2
        delete.join()
        assert answers == [{"rows": 2}]
        assert httpx.get(f"{base_url}/signals").json() == []
