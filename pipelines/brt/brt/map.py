"""The picture of the buses' last positions, coloured by age.

Ages end at the newest signal, not now: old captures are drawn as they were then.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

# The youngest last, so that it is drawn over the others.
AGES = (
    (math.inf, "older: out of service, the API repeats the last signal", "#c9c9c9"),
    (86_400.0, "up to a day", "#8c6bb1"),
    (3_600.0, "up to an hour", "#f0a030"),
    (300.0, "up to 5 minutes", "#0b7a3b"),
)
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 10.0, 5.0, 100
# In Rio, a degree of latitude is this many times as long as one of longitude.
DEGREES_RATIO = 1 / math.cos(math.radians(22.9))


def picture(buses: Sequence[Any]) -> bytes:
    """Draw buses, rows of posicao_onibus, as a PNG; the title counts those outside the city."""
    newest = max((bus.time for bus in buses if not bus.clock_ahead), default=None)
    inside = [(bus, (newest - bus.time).total_seconds() if newest else 0) for bus in buses if not bus.outside_city]
    figure = Figure((WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    youngest = [bound for bound, _, _ in AGES[1:]] + [-math.inf]
    for (oldest, label, colour), next_oldest in zip(AGES, youngest, strict=True):
        group = [bus for bus, age_s in inside if next_oldest < age_s <= oldest]
        places = [bus.longitude for bus in group], [bus.latitude for bus in group]
        axes.scatter(*places, s=16, color=colour, label=f"{label} ({len(group)})", edgecolors="white", linewidths=0.4)
    axes.set_aspect(DEGREES_RATIO)
    axes.set_xlabel("longitude (degrees)")
    axes.set_ylabel("latitude (degrees)")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    outside = f", {len(buses) - len(inside)} more outside the city" if len(inside) < len(buses) else ""
    axes.set_title(f"BRT Rio: last positions of {len(inside)} buses, by age{outside}", loc="left", fontsize=11)
    handles, labels = axes.get_legend_handles_labels()
    title = f"age at the newest signal, {newest:%Y-%m-%d %H:%M} UTC" if newest else "no time is known"
    axes.legend(handles[::-1], labels[::-1], title=title, frameon=False, loc="best", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()
