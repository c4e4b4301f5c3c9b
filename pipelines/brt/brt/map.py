"""The picture of where the buses are, coloured by how old that is."""

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

# The youngest last: it is drawn over the others.
AGES = (
    (math.inf, "older", "#c9c9c9"),
    (86_400.0, "up to a day", "#8c6bb1"),
    (3_600.0, "up to an hour", "#f0a030"),
    (300.0, "up to 5 minutes", "#0b7a3b"),
)
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 10.0, 5.0, 100
# A degree of longitude is that much shorter than one of latitude, in Rio.
DEGREES_RATIO = 1 / math.cos(math.radians(22.9))


def picture(buses: Sequence[Any]) -> bytes:
    """Draw buses, each (latitude, longitude, age in s, outside the city?), as a PNG; those outside are counted."""
    inside = [bus for bus in buses if not bus[3]]
    figure = Figure((WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    youngest = [bound for bound, _, _ in AGES[1:]] + [-math.inf]
    for (oldest, label, colour), next_oldest in zip(AGES, youngest, strict=True):
        group = [bus for bus in inside if next_oldest < bus[2] <= oldest]
        places = [bus[1] for bus in group], [bus[0] for bus in group]
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
    axes.legend(handles[::-1], labels[::-1], title="age of the position", frameon=False, loc="best", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()
