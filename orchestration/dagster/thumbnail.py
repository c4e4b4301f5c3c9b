"""A variable's day as a picture so small that Dagster shows it in place: Markdown of less than 1,000 characters.

Longer Markdown is behind a click in its UI. A pixel is two; the picture has the colours of alvo.plot.
"""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from alvo import plot
from alvo.aggregation import Timestamps, Values

MOST_CHARACTERS = 999
ROWS = 48
SCALE = 2
NOTHING, BAND, LINE = range(3)


def markdown(text: str, windows: Timestamps, window_starts: Timestamps, low: Values, mean: Values, high: Values) -> str:
    """Return the picture, below its text, with as many columns as there is room for.

    windows: the starts of all windows of the day; the others: of those that have a value, NaN where there is none.
    """
    held = np.isin(windows, window_starts)
    grid = np.full((3, len(windows)), np.nan)
    grid[:, held] = low, mean, high
    for together in range(1, len(windows) + 1):
        drawn = f"{text}\n\n![]({_data_url(_pixels(grid, together))})"
        if len(drawn) <= MOST_CHARACTERS:
            break
    return drawn


def _pixels(grid: Values, together: int) -> npt.NDArray[np.uint8]:
    """Draw so many windows in each column: a band from minimum to maximum, and their mean in it."""
    missing = np.full((3, -grid.shape[1] % together), np.nan)
    low, mean, high = np.append(grid, missing, axis=1).reshape(3, -1, together)
    least, most = np.nanmin(low), np.nanmax(high)
    # Halved first: the difference of two large doubles may be none.
    span = (most / 2 - least / 2) or 1.0
    pixels = np.full((ROWS, len(low)), NOTHING, np.uint8)
    for column in np.flatnonzero(~np.isnan(mean).all(axis=1)):
        ends = np.nanmin(low[column]), np.nanmean(mean[column] / together) * together, np.nanmax(high[column])
        bottom, middle, top = (round((ROWS - 1) * (1 - (end / 2 - least / 2) / span)) for end in ends)
        pixels[top : bottom + 1, column] = BAND
        pixels[middle, column] = LINE
    return pixels


def _data_url(pixels: npt.NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels).convert("P")
    image.putpalette(b"\xff\xff\xff" + bytes.fromhex(plot.BAND[1:]) + bytes.fromhex(plot.LINE[1:]))
    encoded = io.BytesIO()
    image.resize((pixels.shape[1] * SCALE, ROWS * SCALE)).save(encoded, "webp", lossless=True, quality=100, method=6)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
