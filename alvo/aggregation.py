"""Mean, minimum, maximum and standard deviation of windows, right to the last bit. Pure NumPy, no I/O.

Windows of n samples each form a matrix x (n, w) with a window per column; every step is one operation on the whole
matrix. The method, for one window:

1. Split. `unit` is a power of two chosen so that q, each x rounded to a multiple of unit, has few digits left once the
   mean is subtracted, and so that q and r = x - q are exact. Adding and subtracting 1.5 * 2**52 units does the
   rounding. All q are multiples of unit below 2**53 / n units: their sum is exact in any order. Every r is at most half
   a unit: the sum of r is exact, or its error is far below the last digit of the mean.
   (Rump, Ogita, Oishi: Accurate floating-point summation, part I, 2008, section 3: error-free extraction.)
2. Mean. `coarse` is the mean of q, rounded to a multiple of unit; `fine` is the rest of both sums, divided by n.
   The pair coarse + fine is the mean to about 100 bits; its rounded sum is the mean that is returned.
3. Variance. With d = q - coarse, n * d**2 is below 2**53 units**2, so sum(d * d) is exact. The sums of 2 * d * r and
   r * r, smaller by 2**24, complete the squares of d + r, the deviations from coarse. Subtracting fine * sum(d + r)
   corrects for coarse not being the mean, as in the corrected two-pass algorithm. No offset of the data costs a digit,
   because nothing is squared before the mean is subtracted.
   (Chan, Golub, LeVeque: Algorithms for computing the sample variance, 1983; Higham: Accuracy and Stability of
   Numerical Algorithms, 2002, section 1.9.)
4. Root. One Newton step with an exact residual corrects the square root of the rounded quotient.

Every step has an error bound. A window whose bound is too large (1e300, 1, -1e300, say, or values near 1e-170) is
computed again with fractions, exactly and slowly.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Timestamps = npt.NDArray[np.datetime64]
Values = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

WINDOW_S = 600
STATISTICS = ("mean", "min", "max", "std")
ALL_STATISTICS = (*STATISTICS, "count")
# Half the distance from 1.0 to the next double.
UNIT_ROUNDOFF = 2.0**-53
# Adding and subtracting this many units rounds to a multiple of the unit.
ROUNDING_UNITS = 1.5 * 2.0**52
# Deviations of fewer units than this have too few digits in q.
NARROW_UNITS = 2.0**8
# The exponent bits of a double. With all other bits zero, it is the largest power of two not above the magnitude.
EXPONENT_BITS = np.int64(0x7FF0_0000_0000_0000)
# All bits of a double but the last 35. The square of a double with these bits alone is exact, even times an integer up
# to 2**17.
LEADING_BITS = np.int64(-1 << 35)
# With a unit between these bounds, squares neither overflow nor lose digits.
SMALLEST_UNIT, LARGEST_UNIT = 2.0**-450, 2.0**350
# A matrix of this many values and its temporaries fit into a core's cache.
CHUNK_VALUES = 2**16


def aggregate(
    timestamps: Timestamps,
    columns: Mapping[str, Values],
    window_s: int = WINDOW_S,
    statistics: Sequence[str] = STATISTICS,
) -> tuple[Timestamps, dict[str, Values]]:
    """Compute statistics per window [t, t + window_s), aligned to the epoch and labelled at its start.

    timestamps: `datetime64[us]` (n,), UTC, in any order; columns: name to float64 (n,), whose NaN and infinities are
    no samples; statistics: some of ALL_STATISTICS. Returns window_starts `datetime64[us]` (w,), ascending, of the
    windows with at least one sample of some column, and `{column}_{statistic}` to float64 (w,). A statistic is NaN
    without a sample, and std (the sample standard deviation, n - 1) also with one sample. An infinite std is one beyond
    the largest double.
    """
    moments = np.asarray(timestamps, "datetime64[us]").view(np.int64)
    if (moments[1:] < moments[:-1]).any():
        order = np.argsort(moments)
        moments, columns = moments[order], {name: values[order] for name, values in columns.items()}
    window_starts, sizes = _windows(moments, window_s * 1_000_000)

    found = [_samples(values, sizes) for values in columns.values()]
    counts = np.array([sizes for _, sizes in found])
    results = _per_window([values for values, _ in found], counts)
    occupied = counts.any(axis=0)
    if not occupied.all():
        window_starts, results = window_starts[occupied], results[:, :, occupied]
    return window_starts.view("datetime64[us]"), {
        f"{name}_{statistic}": results[ALL_STATISTICS.index(statistic), column]
        for column, name in enumerate(columns)
        for statistic in statistics
    }


def _windows(moments: Integers, window_us: int) -> tuple[Integers, Integers]:
    """Return the starts of the windows that hold rows, and the number of rows in each; moments (n,) ascend."""
    if len(moments) == 0:
        return moments, moments
    first = moments[0] // window_us * window_us
    size = int(np.searchsorted(moments, first + window_us))
    if len(moments) % size == 0:
        # Rows ascend: if the first and the last row of a run are in a window, so are all between them.
        starts = np.arange(first, first + len(moments) // size * window_us, window_us)
        if (moments[::size] >= starts).all() and (moments[size - 1 :: size] < starts + window_us).all():
            return starts, np.full(len(starts), size)
    windows = moments // window_us
    edges = np.concatenate([[0], np.flatnonzero(windows[1:] != windows[:-1]) + 1, [len(moments)]])
    return windows[edges[:-1]] * window_us, edges[1:] - edges[:-1]


def _samples(values: Values, sizes: Integers) -> tuple[Values, Integers]:
    """Return the finite values, and their number in each window."""
    finite = np.isfinite(values)
    if finite.all():
        return values, sizes
    return values[finite], np.add.reduceat(finite, np.cumsum(sizes) - sizes)


def _per_window(columns: Sequence[Values], counts: Integers) -> Values:
    """Compute all statistics (5, columns, w) of consecutive runs of values; counts are the runs' lengths."""
    results = np.full((len(ALL_STATISTICS), *counts.shape), np.nan)
    np.copyto(results[-1], counts, where=counts > 0)
    flat = results.reshape(len(results), counts.size)
    for place, matrix in _matrices(columns, counts):
        target = results if matrix.ndim == 3 else flat
        for number, computed in enumerate(_statistics(matrix.reshape(len(matrix), matrix[0].size))):
            target[number][place] = computed.reshape(matrix.shape[1:])
    return results


def _matrices(columns: Sequence[Values], counts: Integers) -> Iterator[tuple[Any, Values]]:
    """Yield matrices with a run of n values in each column, and the index of their results.

    For a matrix (n, columns, w) it indexes the results (columns, w), for a matrix (n, w) the flattened results.
    """
    size = int(counts.flat[0]) if counts.size else 0
    if size and (counts == size).all():
        step = max(1, CHUNK_VALUES // (size * len(columns)))
        for first in range(0, counts.shape[1], step):
            windows = slice(first, min(first + step, counts.shape[1]))
            matrix = np.empty((size, len(columns), windows.stop - first))
            for column, values in enumerate(columns):
                matrix[:, column] = values[first * size : windows.stop * size].reshape(matrix.shape[2], size).T
            yield (slice(None), windows), matrix
        return
    values, sizes = np.concatenate(columns), counts.ravel()
    starts = np.cumsum(sizes) - sizes
    for size in (np.flatnonzero(np.bincount(sizes)[1:]) + 1).tolist():
        same = np.flatnonzero(sizes == size)
        step = max(1, CHUNK_VALUES // size)
        for chunk in np.split(same, range(step, len(same), step)):
            yield chunk, _gathered(values, starts[chunk], size)


def _gathered(values: Values, starts: Integers, size: int) -> Values:
    """Return a matrix (size, w) whose columns are the runs at starts; its longer side is contiguous in memory."""
    if size > len(starts):
        return values.take(starts[:, None] + np.arange(size)).T
    matrix = np.empty((size, len(starts)))
    for number, row in enumerate(matrix):
        # No index is out of bounds; mode="clip" saves NumPy a copy.
        values[number:].take(starts, out=row, mode="clip")
    return matrix


def _statistics(x: Values) -> tuple[Values, Values, Values, Values]:
    """Return mean, min, max and std of the columns of x (n, w), all finite."""
    low, high = np.minimum.reduce(x), np.maximum.reduce(x)
    if len(x) == 1:
        return low, low, high, np.full_like(low, np.nan)
    with np.errstate(all="ignore"):
        mean, std, doubtful = _mean_and_std(x, low, high)
    constant = low == high
    for window in np.flatnonzero(doubtful & ~constant).tolist():
        mean[window], std[window] = _exact(x[:, window].tolist())
    np.copyto(mean, low, where=constant)
    np.copyto(std, 0.0, where=constant)
    return mean, low, high, std


def _mean_and_std(x: Values, low: Values, high: Values) -> tuple[Values, Values, Booleans]:
    """Compute mean and std of the columns of x (n, w), n > 1, and which are doubtful; steps 1 to 4."""
    size = len(x)
    headroom = size.bit_length()
    digits = (53 - headroom) // 2
    width = high - low
    # Where the second bound is the larger, the lowest value is about as far from zero as the highest.
    unit = np.maximum(_power_of_two(width) * 2.0 ** (1 - digits), _power_of_two(high) * 2.0 ** (headroom - 52))
    shift = unit * ROUNDING_UNITS

    q = x + shift
    q -= shift
    r = x - q
    total, rest = np.add.reduce(q), np.add.reduce(r)
    coarse = total * (1 / size) + shift
    coarse -= shift
    left = (total - size * coarse) + rest
    fine = left / size
    mean = coarse + fine
    error = unit * ((size + 4) * UNIT_ROUNDOFF)
    far = unit * 2.0 ** (headroom + 4)
    doubtful = coarse + (fine - error) != coarse + (fine + error)
    doubtful &= np.maximum(low, -high) <= far
    if doubtful.any():
        doubtful[doubtful] = ~_is_rounded_once(x[:, doubtful], mean[doubtful], far[doubtful])

    q -= coarse
    mixed = _sum_of_products(q, r)
    rest = mixed + mixed + _sum_of_products(r, r) - fine * left
    std = _root(_sum_of_products(q, q), rest, size - 1)

    # An offset that leaves the deviations too few digits is so large that subtracting it is exact.
    narrow = width < unit * NARROW_UNITS
    if narrow.any():
        std[narrow] = _mean_and_std(x[:, narrow] - low[narrow], np.zeros_like(width[narrow]), width[narrow])[1]
    doubtful |= (unit <= SMALLEST_UNIT) | (unit >= LARGEST_UNIT)
    return mean, std, doubtful


def _sum_of_products(a: Values, b: Values) -> Values:
    sums: Values = np.einsum("ij,ij->j", a, b)
    return sums


def _power_of_two(values: Values) -> Values:
    """Return the largest power of two not above each magnitude; 0 for 0 and for subnormal values."""
    return (values.view(np.int64) & EXPONENT_BITS).view(np.float64)


def _is_rounded_once(x: Values, mean: Values, far: Values) -> Booleans:
    """Tell for which columns of x (n, w) both sums are exact and the mean is rounded only once.

    That holds if the mean and all values except zeros are far from zero: they share a last digit, the sums can hold
    it, and the quotient's error is too small to make or break a tie. (Where all values are on one side of zero, and the
    nearest is far from it, this holds without a look at each.)
    """
    magnitude = np.abs(x)
    smallest = np.min(magnitude, axis=0, where=magnitude > 0, initial=np.inf)
    far_enough: Booleans = np.minimum(smallest, np.abs(mean)) > far
    return far_enough


def _root(squares: Values, rest: Values, divisor: int) -> Values:
    """Return sqrt((squares + rest) / divisor) within little more than half an ulp; |rest| is well below squares."""
    total = squares + rest
    left = rest - (total - squares)
    root = np.sqrt(total * (1 / divisor))
    short = (root.view(np.int64) & LEADING_BITS).view(np.float64)
    scaled_root, scaled_short = divisor * root, divisor * short
    # total - divisor * root**2
    residual = total - scaled_short * short
    residual -= (root - short) * (scaled_root + scaled_short)
    residual += left
    scaled_root += scaled_root
    residual /= scaled_root
    root += residual
    return root


def _exact(window: list[float]) -> tuple[float, float]:
    """Return mean and std of a window, computed with fractions and rounded once: slow, and right for any doubles."""
    import statistics

    try:
        return statistics.mean(window), statistics.stdev(window)
    except OverflowError:
        return statistics.mean(window), np.inf
