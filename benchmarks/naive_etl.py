"""The usual ETL: httpx, pandas, DELETE and to_sql, day after day."""

import os
import sys

import httpx
import pandas
from sqlalchemy import create_engine, text

SIGNALS = [f"{name}_{statistic}" for name in ("wind_speed", "power") for statistic in ("mean", "min", "max", "std")]


def fetch(base_url, start, end):
    parameters = {"start_timestamp": start.isoformat(), "end_timestamp": end.isoformat()}
    answer = httpx.get(f"{base_url}/data", params={**parameters, "columns": ["wind_speed", "power"]}, timeout=600)
    answer.raise_for_status()
    frame = pandas.DataFrame(answer.json())
    frame["timestamp"] = pandas.to_datetime(frame["timestamp"])
    return frame.set_index("timestamp")


def load(engine, statistics, start, end):
    statistics.columns = SIGNALS
    with engine.begin() as connection:
        insert = text("INSERT INTO signal (name) VALUES (:name) ON CONFLICT DO NOTHING")
        connection.execute(insert, [{"name": name} for name in SIGNALS])
        ids = {name: number for number, name in connection.execute(text("SELECT id, name FROM signal"))}
        delete = text("DELETE FROM data WHERE timestamp >= :start AND timestamp < :end")
        connection.execute(delete, {"start": start, "end": end})
        long = statistics.melt(ignore_index=False, var_name="signal_id").dropna().reset_index()
        long["signal_id"] = long["signal_id"].map(ids)
        long.to_sql("data", connection, if_exists="append", index=False)


def main(first, last):
    engine = create_engine(os.environ["ALVO_DATABASE_URL"])
    for start in pandas.date_range(first, last, tz="UTC"):
        end = start + pandas.Timedelta(days=1)
        frame = fetch(os.environ["FONTE_API_URL"], start, end)
        load(engine, frame.resample("10min").agg(["mean", "min", "max", "std"]), start, end)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[-1])
