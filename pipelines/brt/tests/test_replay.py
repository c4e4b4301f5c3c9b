"""A replay of all kinds of answers: dbt's views equal the rows that plain Python computes."""

import csv
import json
import logging
import random

import pytest
from sqlalchemy import text

from brt import capture, load, pipeline, stand_in
from tests.conftest import FIRST_MINUTE, counts, vehicle

# Values of optional fields in unusual forms; the API may send None too.
WRONG = {
    "direcao": ["NE", [1], {"graus": 86}, True, "1e999"],
    "velocidade": ["rápido", {"km": 1.50}, False],
    "hodometro": ["", None, "12,5", [0.10]],
    "trajeto": [["a", 1], {"b": None}, True],
    "placa": [{"uf": "RJ"}, [], 5, 0.5],
    "linha": [22, None, ["22"]],
}
MINUTES = range(10)
BAD_MINUTE, NEW_FIELD_MINUTE = 4, 7


def answers(seed):
    """Ten real answers with and without ignicao, some with wrong types or a new field, and one with only bad lines."""
    chance = random.Random(seed)
    for minute in MINUTES:
        vehicles = json.loads(stand_in.captures()[minute])["veiculos"]
        for each in vehicles:
            if minute % 2:
                each |= {"ignicao": chance.choice([0, 1, "1"])} if chance.random() < 0.8 else {}
            if chance.random() < 0.1:
                name = chance.choice(list(WRONG))
                each[name] = chance.choice(WRONG[name])
            if minute == NEW_FIELD_MINUTE:
                each |= {"capacidadePeVeiculo": 90, "capacidadeSentadoVeiculo": "muitos", "novo": {"á": [1.50, None]}}
            if minute == BAD_MINUTE:
                each |= chance.choice([{"latitude": "north"}, {"longitude": 200}, {"dataHora": None}, {"codigo": [1]}])
        yield {"veiculos": vehicles}


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def expected(answer):
    """The signals of an answer: {(codigo, dataHora): (number fields, text fields, extra)}."""
    found = {}
    for given in answer["veiculos"]:
        if not (is_number(given["latitude"]) and is_number(given["dataHora"]) and abs(given["longitude"]) <= 180):
            continue
        if not isinstance(given["codigo"], str):
            continue
        extra = {name: value for name, value in given.items() if name not in capture.FIELDS}
        numbers, texts = {}, {}
        for name in ("latitude", "longitude", "velocidade", "hodometro", "direcao"):
            numbers[name] = float(given[name]) if is_number(given[name]) else None
            if not is_number(given[name]) and given[name] is not None and given[name] not in ("", " "):
                extra[name] = given[name]
        for name in ("placa", "linha", "sentido", "trajeto"):
            texts[name] = str(given[name]) if isinstance(given[name], str) or is_number(given[name]) else ""
            if isinstance(given[name], bool | list | dict):
                extra[name] = given[name]
        found[given["codigo"], given["dataHora"]] = (numbers, texts, extra)
    return found


def held(pool, columns, view, key):
    with pool.connect() as connection:
        return {tuple(row[:key]): tuple(row[key:]) for row in connection.execute(text(f"SELECT {columns} FROM {view}"))}


def shown(numbers, texts, extra):
    """A signal as the view stg_posicao has it."""
    capacity = extra.get("capacidadePeVeiculo")
    return (
        *(numbers[name] for name in ("latitude", "longitude", "velocidade", "hodometro", "direcao")),
        texts["placa"] or None,
        texts["linha"] if texts["linha"] not in ("", "0") else None,
        texts["sentido"] or None,
        texts["trajeto"] or None,
        {0: False, 1: True, "1": True}.get(extra.get("ignicao")),
        capacity,
        None,
        extra,
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_a_replay_of_all_kinds_of_answers_gives_the_computed_rows(api, pool, caplog, seed):
    caplog.set_level(logging.WARNING, "brt")
    given = list(answers(seed))
    api.answers(*(json.dumps(answer).encode() for answer in given))
    for _ in MINUTES:
        pipeline.capture_once()
    report = pipeline.load_new()
    signals = {key: value for answer in given for key, value in expected(answer).items()}
    assert (report.signals, report.rejected) == (9 * 453, 453)
    pipeline.run_dbt("build")

    columns = "latitude, longitude, speed_kmh, odometer_km, heading_deg, plate, line, direction, route, ignition"
    columns = f"id, time_ms, {columns}, standing_capacity, seated_capacity, extra"
    assert held(pool, columns, "stg_posicao", 2) == {key: shown(*value) for key, value in signals.items()}
    latest = {}
    for (code, moment), (numbers, texts, extra) in sorted(signals.items(), key=lambda each: each[0][1]):
        row = shown(numbers, texts, extra)
        latest[code,] = (moment, *row[:3], *row[6:10])
    columns = (
        "id, round(extract(epoch FROM time) * 1000)::bigint, latitude, longitude, speed_kmh, line, direction, route"
    )
    assert held(pool, f"{columns}, ignition", "posicao_onibus", 1) == latest

    # Each fault is reported once, although answers with and without a field alternate.
    assert pipeline.load_new().loaded == 0
    said = [record.getMessage() for record in caplog.records]
    for fault in ("field 'ignicao'", "field 'capacidadePeVeiculo'", "field 'novo'", "of direcao", "of trajeto"):
        assert len([each for each in said if fault in each]) == 1, said
    assert len(said) == 3
    with pytest.raises(load.RejectedError, match="453 of 4,530 lines of brt_.*csv; the others are loaded"):
        pipeline.refuse_faulty(report)


def test_unknown_fields_and_items_are_kept_unchanged(folder, pool):
    unknown = {
        "ignicao": 1,
        "novo": [1.50, {"a": "á\n"}, None],
        "captured_at": "x",
        "extra": True,
        "longo": "x" * 200_000,
    }
    body = json.dumps({"veiculos": [vehicle(**unknown), vehicle(codigo="2"), "odd", None], "versão": 2}).encode()
    found = capture.read(body, FIRST_MINUTE)
    capture.append(folder, found, 60)
    assert load.load(pool, folder) == load.Report(
        1, 0, 2, 2, faulty=("2 of 4 lines of " + capture.files(folder)[0].name,)
    )
    assert held(pool, "codigo, extra", "brt_raw", 1) == {
        ("901008",): (unknown | {"answer": {"versão": 2}},),
        ("2",): ({},),
    }
    assert [json.loads(next(csv.reader([content]))[-1]) for (content,) in held(pool, "content", "brt_reject", 1)] == [
        {"item": "odd"},
        {"item": None},
    ]
    assert sorted(found.differences) == [
        "some items are not vehicles",
        "the answer has the unknown field 'versão'",
        *(f"the vehicles have the unknown field {name!r}" for name in sorted(unknown)),
    ]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("[1.50, -0.0]", "[1.50, 0.0]"),
        ('{"a": 12345678901234567890123}', '{"a": 12345678901234567890123}'),
        ("[1e40, -1E-5]", "[1" + "0" * 40 + ", -0.00001]"),
        ("[1e999999]", '["1e999999"]'),
        ("[" + "1" * 400 + "]", f'["{"1" * 400}"]'),
        ("[NaN, -Infinity]", '["NaN", "-Infinity"]'),
        ('["a\\u0000b\\ud800"]', '["a b "]'),
        ('{"\\u0000": true}', '{" ": true}'),
        ("[" * 100 + "]" * 100, "[" * 100 + "]" * 100),
    ],
)
@pytest.mark.parametrize("field", ["novo", "direcao", "trajeto"])
def test_any_value_of_an_optional_or_unknown_field_is_kept(folder, pool, field, sent, kept):
    side = json.dumps([vehicle() | {field: "?"}]).replace('"?"', sent)
    capture.append(folder, capture.read(side.encode(), FIRST_MINUTE), 60)
    assert counts(load.load(pool, folder)) == (1, 0, 1, 0)
    assert held(pool, f"codigo, (extra -> '{field}')::text", "brt_raw", 1) == {("901008",): (kept,)}


def test_each_change_of_the_format_is_reported_once(api, pool, caplog):
    caplog.set_level(logging.WARNING, "brt")
    without = vehicle()
    del without["placa"]
    for each in (vehicle(), vehicle(novo=1), vehicle(), vehicle(novo=2), without, vehicle(), without):
        api.answers(json.dumps([each]).encode())
        pipeline.capture_once()
    assert [record.getMessage() for record in caplog.records] == [
        "the API's format has changed: the vehicles have the unknown field 'novo'; all of it is kept",
        "the API's format has changed: no vehicle has the field 'placa'; all of it is kept",
    ]
