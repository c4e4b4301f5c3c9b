"""The picture of a day: what is drawn, and what is left blank."""

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from alvo import plot

START = datetime(2024, 5, 20, tzinfo=UTC)
DAY = timedelta(days=1)


def drawn(held, form="svg", axes=None):
    """Draw a day of which these windows hold values."""
    window_starts = np.datetime64("2024-05-20", "us") + np.flatnonzero(held) * np.timedelta64(10, "m")
    value = np.arange(float(len(window_starts)))
    signals = {f"power_{name}": value + offset for name, offset in (("min", -1), ("mean", 0), ("max", 1))}
    return plot.picture("a day", START, START + DAY, window_starts, signals, axes or {"power": "power (kW)"}, form)


def line_pieces(svg):
    """How many separate pieces the line of the mean has."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: {plot.LINE}[^>]*stroke-linejoin: miter', svg.decode())
    return sum(path.count("M ") for path in paths)


@pytest.mark.parametrize(
    ("gaps", "pieces"),
    [([], 1), ([(60, 70)], 2), ([(0, 10), (134, 144)], 1), ([(10, 20), (21, 30)], 3), ([(0, 144)], 0)],
)
def test_a_gap_is_left_blank_and_a_single_window_is_seen(gaps, pieces):
    held = np.ones(144, dtype=bool)
    for first, last in gaps:
        held[first:last] = False
    assert line_pieces(drawn(held)) == pieces


def test_each_variable_has_a_panel_with_its_unit_and_time_is_utc():
    import matplotlib

    held = np.ones(144, dtype=bool)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        svg = drawn(held).decode()
    for words in ("a day", "power (kW)", "UTC", "mean of 10 minutes", "minimum to maximum"):
        assert f">{words}<" in svg


def test_a_day_is_a_small_png():
    png = drawn(np.ones(144, dtype=bool), "png")
    assert png.startswith(b"\x89PNG")
    assert len(png) < 60_000
