"""The picture of a period: a panel per variable, its 10-minute mean in the band from minimum to maximum."""

import io
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from alvo.aggregation import WINDOW_S, Timestamps, Values

LINE, BAND = "#0b4f8a", "#a9cbe8"
WIDTH_INCHES, PANEL_INCHES, DOTS_PER_INCH = 9.0, 1.9, 90
MARGIN_INCHES = {"top": 0.45, "bottom": 0.5}


def picture(
    title: str,
    start: datetime,
    end: datetime,
    window_starts: Timestamps,
    signals: Mapping[str, Values],
    axes: Mapping[str, str],
    form: Literal["png", "svg"] = "png",
    window: timedelta = timedelta(seconds=WINDOW_S),
) -> bytes:
    """Draw the variables of [start, end); a window without a value is left blank, and never bridged.

    start, end: UTC. window_starts: `datetime64[us]` (w,), UTC; signals: {variable}_mean, _min and _max to float64 (w,);
    axes: variable to the label of its axis, such as `power (kW)`; window: its length.
    """
    first, last = (np.datetime64(bound.replace(tzinfo=None), "us") for bound in (start, end))
    edges = np.arange(first, last + np.timedelta64(window), np.timedelta64(window))
    height = MARGIN_INCHES["top"] + MARGIN_INCHES["bottom"] + PANEL_INCHES * len(axes)
    figure = Figure((WIDTH_INCHES, height), dpi=DOTS_PER_INCH)
    # Margins by hand: a layout that Matplotlib finds takes as long again as the drawing.
    figure.subplots_adjust(0.09, MARGIN_INCHES["bottom"] / height, 0.97, 1 - MARGIN_INCHES["top"] / height, hspace=0.15)
    figure.suptitle(title, x=0.01, y=1 - 0.08 / height, ha="left", va="top", fontsize=11)
    panels = figure.subplots(len(axes), sharex=True, squeeze=False)[:, 0]
    for panel, (variable, label) in zip(panels, axes.items(), strict=True):
        low, mean, high = (_gridded(edges, window_starts, signals[f"{variable}_{s}"]) for s in ("min", "mean", "max"))
        panel.stairs(high, edges, baseline=low, fill=True, color=BAND, label="minimum to maximum")
        panel.stairs(mean, edges, baseline=None, color=LINE, linewidth=1.2, label=f"mean of {_duration(window)}")
        panel.set_ylabel(label)
        panel.set_xlim(first, last)
        panel.grid(color="#e6e6e6", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    locator = AutoDateLocator()
    panels[-1].xaxis.set_major_locator(locator)
    panels[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    panels[-1].set_xlabel("UTC")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper right", ncols=2, frameon=False, fontsize=9)
    figure.align_ylabels(panels)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=form)
    return drawn.getvalue()


def _duration(window: timedelta) -> str:
    for name, unit in (("day", timedelta(days=1)), ("hour", timedelta(hours=1))):
        if window % unit == timedelta():
            return f"{window // unit} {name}{'s' * (window > unit)}"
    return f"{window // timedelta(minutes=1)} minutes"


def _gridded(edges: Timestamps, window_starts: Timestamps, values: Values) -> Values:
    """Return the value of each window between the edges, NaN where there is none."""
    grid = np.full(len(edges) - 1, np.nan)
    # Matplotlib's own arithmetic overflows beyond.
    grid[(window_starts - edges[0]) // (edges[1] - edges[0])] = np.clip(values, -1e300, 1e300)
    return grid
