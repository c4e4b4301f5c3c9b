import json
import time

from brt import capture, stand_in
from tests.conftest import FIRST_MINUTE

STEPS = 40
FAR_DEGREES = 0.1


def test_it_answers_the_real_captures_first():
    fleet = stand_in.Fleet()
    assert [fleet.answer() for _ in range(10)] == stand_in.captures()


def test_it_then_moves_the_buses_plausibly():
    fleet = stand_in.Fleet()
    for _ in range(10):
        last = fleet.answer()
    before = {vehicle["codigo"]: vehicle for vehicle in json.loads(last)["veiculos"]}
    resting = set(before)
    for _ in range(STEPS):
        answer = fleet.answer()
        assert len(capture.read(answer, FIRST_MINUTE).records) == 453
        now = {vehicle["codigo"]: vehicle for vehicle in json.loads(answer)["veiculos"]}
        assert now.keys() == before.keys()
        for code, vehicle in now.items():
            assert vehicle.keys() == before[code].keys()
            if vehicle == before[code]:
                continue
            resting.discard(code)
            assert vehicle["dataHora"] >= before[code]["dataHora"]
            assert abs(vehicle["dataHora"] / 1000 - time.time()) < 60
            assert vehicle["hodometro"] >= before[code]["hodometro"]
            for axis in ("latitude", "longitude"):
                assert abs(vehicle[axis] - before[code][axis]) < FAR_DEGREES
        before = now
    assert 100 < len(resting) < 353
