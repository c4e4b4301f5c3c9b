"""Reads a period of Alvo back, in the form in which alvo.aggregation gives it."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
from sqlalchemy import Engine, text

Timestamps = npt.NDArray[np.datetime64]
Values = npt.NDArray[np.float64]

_VALUES = text("""
    SELECT name, (extract(epoch FROM timestamp) * 1000000)::bigint, value FROM data JOIN signal ON id = signal_id
    WHERE name = ANY(:names) AND timestamp >= :start AND timestamp < :end
""")


def period(
    engine: Engine, start: datetime, end: datetime, names: Sequence[str]
) -> tuple[Timestamps, dict[str, Values], int]:
    """Return what Alvo holds of these signals in [start, end), and how many of these values are not finite.

    The first two are window starts `datetime64[us]` (w,), UTC, ascending, and name to float64 (w,), NaN where there is
    no value. Raises SQLAlchemyError.
    """
    with engine.connect() as connection:
        rows = connection.execute(_VALUES, {"names": list(names), "start": start, "end": end}).all()
    moments = np.array([moment for _, moment, _ in rows], dtype="datetime64[us]")
    window_starts, positions = np.unique(moments, return_inverse=True)
    signals = {name: np.full(len(window_starts), np.nan) for name in names}
    for (name, _, value), position in zip(rows, positions, strict=True):
        signals[name][position] = value
    return window_starts, signals, int((~np.isfinite([value for _, _, value in rows])).sum())
