"""The usual connector: rows as dictionaries in one list, which FastAPI makes JSON."""

import os
from datetime import datetime
from typing import Annotated

from fastapi import FastAPI, Query
from sqlalchemy import create_engine, text

app = FastAPI()
engine = create_engine(os.environ["FONTE_DATABASE_URL"])


@app.get("/data")
def data(start_timestamp: datetime, end_timestamp: datetime, columns: Annotated[list[str], Query()]):
    query = (
        f"SELECT timestamp, {', '.join(columns)} FROM data WHERE timestamp >= :start AND timestamp < :end ORDER BY 1"
    )
    with engine.connect() as connection:
        rows = connection.execute(text(query), {"start": start_timestamp, "end": end_timestamp})
        return [dict(row) for row in rows.mappings()]
