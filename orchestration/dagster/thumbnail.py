"""A variable's day as a picture so small that Dagster shows it in place: Markdown of less than 1,000 characters.

Dagster's UI hides longer Markdown behind a click. Pixels are doubled; the colours are those of alvo.plot.
"""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from alvo import plot
from alvo.aggregation import Timestamps, Values

ROWS = 40
SCALE = 2
NOTHING, BAND, LINE = range(3)


def markdown(text: str, windows: Timestamps, window_starts: Timestamps, low: Values, mean: Values, high: Values) -> str:
    """Return the text and below it the picture: a band from minimum to maximum, with the mean in it.

    windows: the starts of all windows of the day; window_starts: of those with a value of some variable. low, mean and
    high belong to window_starts and are NaN where there is no value.
    """
    held = np.isin(windows, window_starts)
    grid = np.full((3, len(windows)), np.nan)
    grid[:, held] = low, mean, high
    return f"{text}\n\n![]({_data_url(_pixels(grid))})"


def _pixels(grid: Values) -> npt.NDArray[np.uint8]:
    """Draw one window per column."""
    # Halved first, because the difference of two large doubles may overflow.
    halves = grid / 2
    least, most = np.nanmin(halves), np.nanmax(halves)
    rows = (ROWS - 1) * (1 - (halves - least) / ((most - least) or 1.0))
    pixels = np.full((ROWS, grid.shape[1]), NOTHING, np.uint8)
    for column in np.flatnonzero(~np.isnan(grid[1])):
        bottom, middle, top = np.rint(rows[:, column]).astype(int)
        pixels[top : bottom + 1, column] = BAND
        pixels[middle, column] = LINE
    return pixels


def _data_url(pixels: npt.NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels).convert("P")
    image.putpalette(b"\xff\xff\xff" + bytes.fromhex(plot.BAND[1:]) + bytes.fromhex(plot.LINE[1:]))
    encoded = io.BytesIO()
    image.resize((pixels.shape[1] * SCALE, ROWS * SCALE)).save(encoded, "webp", lossless=True, quality=100, method=6)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
