"""The picture of a period: a panel per variable, its 10-minute mean in the band from minimum to maximum."""

import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from html import escape
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

WINDOW = np.timedelta64(10, "m")
LINE, BAND = "#0b4f8a", "#a9cbe8"
WIDTH_INCHES, PANEL_INCHES, DOTS_PER_INCH = 9.0, 1.9, 90
MARGIN_INCHES = {"top": 0.45, "bottom": 0.5}


def picture(
    title: str,
    start: datetime,
    end: datetime,
    window_starts: npt.NDArray[np.datetime64],
    signals: Mapping[str, npt.NDArray[np.float64]],
    axes: Mapping[str, str],
    form: Literal["png", "svg"] = "png",
) -> bytes:
    """Draw the variables of [start, end); a window without a value is left blank, and never bridged.

    start, end: UTC. window_starts: `datetime64[us]` (w,), UTC; signals: {variable}_mean, _min and _max to float64 (w,);
    axes: variable to the label of its axis, such as `power (kW)`.
    """
    first, last = (np.datetime64(bound.replace(tzinfo=None), "us") for bound in (start, end))
    edges = np.arange(first, last + WINDOW, WINDOW)
    height = MARGIN_INCHES["top"] + MARGIN_INCHES["bottom"] + PANEL_INCHES * len(axes)
    figure = Figure((WIDTH_INCHES, height), dpi=DOTS_PER_INCH)
    # Margins by hand: a layout that Matplotlib finds takes as long again as the drawing.
    figure.subplots_adjust(0.09, MARGIN_INCHES["bottom"] / height, 0.97, 1 - MARGIN_INCHES["top"] / height, hspace=0.15)
    figure.suptitle(title, x=0.01, y=1 - 0.08 / height, ha="left", va="top", fontsize=11)
    panels = figure.subplots(len(axes), sharex=True, squeeze=False)[:, 0]
    for panel, (variable, label) in zip(panels, axes.items(), strict=True):
        low, mean, high = (_gridded(edges, window_starts, signals[f"{variable}_{s}"]) for s in ("min", "mean", "max"))
        panel.stairs(high, edges, baseline=low, fill=True, color=BAND, label="minimum to maximum")
        panel.stairs(mean, edges, baseline=None, color=LINE, linewidth=1.2, label="mean of 10 minutes")
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


def page(
    title: str,
    start: datetime,
    end: datetime,
    window_starts: npt.NDArray[np.datetime64],
    signals: Mapping[str, npt.NDArray[np.float64]],
    axes: Mapping[str, str],
) -> bytes:
    """Draw the same as a page of HTML that needs no other file: the title, the picture, and its numbers as a table."""
    drawn = picture("", start, end, window_starts, signals, axes, "svg")
    svg = drawn[drawn.index(b"<svg") :].decode().replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    windows = round((end - start) / WINDOW.item())
    rows = "".join(_row(label, windows, *_numbers(signals, variable)) for variable, label in axes.items())
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 1em auto; padding: 0 1em }}
svg {{ width: 100%; height: auto }} th, td {{ text-align: right; padding: 2px 1em 2px 0 }}
th:first-child {{ text-align: left }}</style>
<h1>{escape(title)}</h1>
{svg}
<table><tr><th>variable<th>mean<th>minimum<th>maximum<th>windows of 10 minutes</tr>{rows}</table>
</html>
""".encode()


def _numbers(signals: Mapping[str, npt.NDArray[np.float64]], variable: str) -> Iterator[tuple[int, str]]:
    """Yield the number of finite values of the mean, the minimum and the maximum, and what they come to."""
    for statistic, summary in (("mean", np.mean), ("min", np.min), ("max", np.max)):
        values = signals[f"{variable}_{statistic}"]
        finite = values[np.isfinite(values)]
        yield len(finite), f"{summary(finite):.4g}" if len(finite) else "none"


def _row(label: str, windows: int, *numbers: tuple[int, str]) -> str:
    cells = "".join(f"<td>{told}" for _, told in numbers)
    return f"<tr><th>{escape(label)}{cells}<td>{numbers[0][0]:,} of {windows:,}</tr>"


def _gridded(
    edges: npt.NDArray[np.datetime64], window_starts: npt.NDArray[np.datetime64], values: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the value of each window between the edges, NaN where there is none."""
    grid = np.full(len(edges) - 1, np.nan)
    grid[(window_starts - edges[0]) // WINDOW] = values
    return grid
