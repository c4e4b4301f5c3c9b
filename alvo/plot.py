"""The picture of a period: a panel per variable, its 10-minute mean in a band, as on the page."""

import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from alvo.aggregation import STATISTICS, WINDOW_S, Timestamps, Values
from fonte_alvo.command import count

LINE, BAND, EDGE, STD = "#0b4f8a", "#a9cbe8", "#6f9cc4", "#8e24aa"
WIDTH_INCHES, PANEL_INCHES, TOP_INCHES, BOTTOM_INCHES, DOTS_PER_INCH = 10.0, 2.1, 0.95, 0.8, 160
# In longer windows minimum and maximum enclose nearly everything: they are lines, and the band is mean ± std.
LONG = timedelta(hours=1)
# Formats of years, months, days, hours, minutes and seconds, and those where the next larger unit begins.
DATES = ["%Y", "%Y-%m", "%Y-%m-%d", "%H:%M", "%H:%M", "%H:%M:%S"]
FIRST_DATES = [*DATES[:3], "%H:%M\n%Y-%m-%d", *DATES[4:]]


def picture(
    title: str,
    start: datetime,
    end: datetime,
    window_starts: Timestamps,
    signals: Mapping[str, Values],
    axes: Mapping[str, str],
    form: str = "png",
    window: timedelta = timedelta(seconds=WINDOW_S),
) -> bytes:
    """Draw the variables of [start, end) in the order of `axes`; a window without a value is left blank.

    start, end: UTC. window_starts: `datetime64[us]` (w,), UTC; signals: {variable}_{statistic} of STATISTICS to float64
    (w,), NaN where there is none; axes: variable to its label, such as `power (kW)`; form: png or svg; window: the
    length of each window.
    """
    first, last = (np.datetime64(bound.replace(tzinfo=None), "us") for bound in (start, end))
    edges = np.arange(first, last + np.timedelta64(window), np.timedelta64(window))
    height = TOP_INCHES + BOTTOM_INCHES + PANEL_INCHES * len(axes)
    figure = Figure((WIDTH_INCHES, height), dpi=DOTS_PER_INCH)
    # Margins by hand: Matplotlib's automatic layout takes as long as the drawing itself.
    figure.subplots_adjust(0.07, BOTTOM_INCHES / height, 0.95, 1 - TOP_INCHES / height, hspace=0.3)
    figure.suptitle(title, x=0.01, y=1 - 0.08 / height, ha="left", va="top", fontsize=12)
    panels = figure.subplots(len(axes), sharex=True, squeeze=False)[:, 0]
    for panel, (variable, label) in zip(panels, axes.items(), strict=True):
        _draw(panel, edges, window, *(_gridded(edges, window_starts, signals[f"{variable}_{s}"]) for s in STATISTICS))
        # Matplotlib would read text between two $ as a formula.
        panel.set_title(label.replace("_", " ").replace("(degC)", "(°C)").replace("$", r"\$"), loc="left", fontsize=10)
        panel.grid(color="#e6e6e6", linewidth=0.6)
        panel.set(xlim=(first, last), axisbelow=True)
        panel.spines[["top", "right"]].set_visible(False)
    # A matplotlibrc may name another zone.
    locator = AutoDateLocator(tz=UTC)
    formatter = ConciseDateFormatter(locator, tz=UTC, formats=DATES, zero_formats=FIRST_DATES, show_offset=False)
    panels[-1].xaxis.set_major_locator(locator)
    panels[-1].xaxis.set_major_formatter(formatter)
    panels[-1].set_xlabel("UTC")
    named = max((panel.get_legend_handles_labels() for panel in panels), key=lambda handles: len(handles[0]))
    figure.legend(*named, loc="upper left", bbox_to_anchor=(0.0, 1 - 0.3 / height), ncols=4, frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=form)
    return drawn.getvalue()


def _draw(panel: Axes, edges: Timestamps, window: timedelta, *values: Values) -> None:
    mean, low, high, std = values
    spread = "mean ± std" if np.isfinite(std).any() else ""
    panel.stairs(mean, edges, baseline=None, color=LINE, linewidth=1.2, zorder=3, label=f"mean of {_duration(window)}")
    if window > LONG:
        # The band ends at the extremes, as all values do; where std is NaN, there is no band.
        below, above = (np.fmin(np.fmax(mean + each, low), high) + 0 * std for each in (-std, std))
        panel.stairs(above, edges, baseline=below, fill=True, color=BAND, label=spread)
        for bound, label in ((high, "minimum and maximum"), (low, "")):
            panel.stairs(bound, edges, baseline=None, color=EDGE, linewidth=0.6, label=label)
    else:
        panel.stairs(high, edges, baseline=low, fill=True, color=BAND, label="minimum to maximum")
        for each, label in ((-std, spread), (std, "")):
            panel.hlines(mean + each, edges[:-1], edges[1:], color=STD, linewidth=0.9, label=label)
    # Otherwise the axis ends at the lowest value, and half of a line on it is hidden.
    panel.use_sticky_edges = False


def _duration(window: timedelta) -> str:
    units = {"day": timedelta(days=1), "hour": timedelta(hours=1), "minute": timedelta(minutes=1)}
    return next(count(window // unit, name) for name, unit in units.items() if window % unit == timedelta())


def _gridded(edges: Timestamps, window_starts: Timestamps, values: Values) -> Values:
    """Return the value of each window between the edges, NaN where there is none."""
    grid = np.full(len(edges) - 1, np.nan)
    # Larger values overflow in Matplotlib's arithmetic.
    grid[(window_starts - edges[0]) // (edges[1] - edges[0])] = np.clip(values, -1e300, 1e300)
    return grid
