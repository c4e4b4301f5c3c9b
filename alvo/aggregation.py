"""Samples to windows: mean, minimum, maximum and standard deviation, right to the last bit. Pure NumPy, no I/O.

Windows of equal size form a matrix x (n, w), a sample a row and a window a column, and every step is one operation on
the whole matrix. The method, for one window:

1. Split. With sigma a power of two at least n + 2 times the largest magnitude, q = (sigma + x) - sigma is x rounded
   to a multiple of grid = 2**-53 sigma, and r = x - q is exact. All q are multiples of grid and their sum is below
   sigma, so it is exact in any order; the sum of the r, each at most grid, is exact or tiny in error.
   (Rump, Ogita, Oishi: Accurate floating-point summation, part I, 2008, section 3: error-free vector transformation.)
2. Mean. sum(q) is divided on the grid: coarse is a multiple of grid, and fine = (what is left + sum(r)) / n.
   The mean is the unevaluated pair coarse + fine; its sum is the correctly rounded mean. Where the error bound of
   fine cannot exclude another rounding, the window is summed as fractions.
3. Variance. The deviation of a sample from the pair is (q - coarse) + (r - fine), whose terms are exact, so no offset
   of the data costs a digit. Its square is split again, d = a + b with n * a**2 exact: sum(a*a) + sum(b*(a + d)).
   What the mean was shortened by is corrected as in the two-pass formula.
   (Chan, Golub, LeVeque: Algorithms for computing the sample variance, 1983; Higham: Accuracy and Stability of
   Numerical Algorithms, 2002, section 1.9.)
4. Root. The square root is corrected by one Newton step with an exact residual.

Windows whose squares would over- or underflow are scaled by a power of two first.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Timestamps = npt.NDArray[np.datetime64]
Values = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Half the distance from 1.0 to the next double.
UNIT_ROUNDOFF = 2.0**-53
# Binary exponents of magnitudes and deviations whose squares, times any count, are normal doubles.
SAFE_EXPONENT = 400
# A matrix of so many values and its temporaries stay in the processor's cache.
CHUNK_VALUES = 2**15


def aggregate(
    timestamps: Timestamps,
    columns: Mapping[str, Values],
    window_s: int = 600,
    statistics: Sequence[str] = ("mean", "min", "max", "std"),
) -> tuple[Timestamps, dict[str, Values]]:
    """Compute statistics per window [t, t + window_s), aligned to the epoch and labelled at its start.

    timestamps: `datetime64[us]` (n,), UTC, in any order; columns: name to float64 (n,), whose NaN and infinities are
    no samples. Returns window_starts `datetime64[us]` (w,), ascending, of the windows with at least one sample of some
    column, and `{column}_{statistic}` to float64 (w,). NaN stands where there is no value: no sample, or for std (the
    sample standard deviation, n - 1) fewer than two. An infinite std is one beyond the largest double.
    """
    moments = timestamps.astype("datetime64[us]").astype(np.int64)
    if (moments[1:] < moments[:-1]).any():
        order = np.argsort(moments, kind="stable")
        moments, columns = moments[order], {name: values[order] for name, values in columns.items()}
    window_us = window_s * 1_000_000
    windows = moments // window_us
    edges = np.flatnonzero(np.diff(windows, prepend=windows[:1] - 1))

    signals: dict[str, Values] = {}
    occupied = np.zeros(len(edges), dtype=bool)
    for name, values in columns.items():
        found, counts = _samples(values, edges)
        occupied |= counts > 0
        results = _per_window(found, counts)
        signals |= {f"{name}_{statistic}": results[statistic] for statistic in statistics}
    window_starts = (windows[edges] * window_us).astype("datetime64[us]")
    return window_starts[occupied], {name: values[occupied] for name, values in signals.items()}


def _samples(values: Values, edges: Integers) -> tuple[Values, Integers]:
    """Return the finite values and how many of them each window holds."""
    finite = np.isfinite(values)
    if finite.all():
        return values, np.diff(edges, append=len(values))
    return values[finite], np.add.reduceat(finite.astype(np.int64), edges)


def _per_window(values: Values, counts: Integers) -> dict[str, Values]:
    """Compute all statistics of consecutive runs of values; counts (w,) are the lengths of the runs."""
    results = {statistic: np.full(len(counts), np.nan) for statistic in ("mean", "min", "max", "std")}
    starts = np.cumsum(counts) - counts
    for count in np.unique(counts[counts > 0]).tolist():
        same_size = np.flatnonzero(counts == count)
        step = max(1, CHUNK_VALUES // count)
        for first in range(0, len(same_size), step):
            chunk = same_size[first : first + step]
            matrix = values[starts[chunk] + np.arange(count)[:, None]]
            for statistic, result in _statistics(matrix).items():
                results[statistic][chunk] = result
    return results


def _statistics(x: Values) -> dict[str, Values]:
    """Compute the statistics of the columns of x (n, w), all finite."""
    low, high = x.min(axis=0), x.max(axis=0)
    if len(x) == 1:
        return {"mean": low, "min": low, "max": high, "std": np.full(len(low), np.nan)}
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        magnitude = np.frexp(np.maximum(-low, high))[1]
        mean, std = _mean_and_std(x, low, high, magnitude)
        width = np.frexp(high - low)[1]
        awkward = (magnitude > SAFE_EXPONENT) | ((width < -SAFE_EXPONENT) & (low < high))
        if awkward.any():
            mean[awkward], std[awkward] = _scaled(x[:, awkward], magnitude[awkward], mean[awkward])
    std[low == high] = 0.0
    return {"mean": mean, "min": low, "max": high, "std": std}


def _scaled(x: Values, magnitude: Integers, mean: Values) -> tuple[Values, Values]:
    """Recompute windows after scaling each to a magnitude of about one; a small window keeps its own mean."""
    scaled = np.ldexp(x, -magnitude)
    low, high = scaled.min(axis=0), scaled.max(axis=0)
    scaled_mean, std = _mean_and_std(scaled, low, high, np.frexp(np.maximum(-low, high))[1])
    mean = np.where(magnitude > SAFE_EXPONENT, np.ldexp(scaled_mean, magnitude), mean)
    # Bits lost by scaling down, or so near the smallest double that step 2 would round twice.
    lost = (np.ldexp(scaled, magnitude) != x).any(axis=0) | (magnitude < -2 * SAFE_EXPONENT)
    mean[lost] = _exact_means(x[:, lost])
    return mean, np.ldexp(std, magnitude)


def _mean_and_std(x: Values, low: Values, high: Values, magnitude: Integers) -> tuple[Values, Values]:
    """Compute mean and std of the columns of x (n, w), n > 1, all |x| < 2**magnitude; steps 1 to 4 above."""
    n = len(x)
    headroom = (n + 1).bit_length()
    sigma = np.ldexp(1.0, magnitude + headroom)
    grid = sigma * UNIT_ROUNDOFF
    q = x + sigma
    q -= sigma
    r = x - q
    total, rest = q.sum(axis=0), r.sum(axis=0)
    coarse = (sigma + (total + rest) / n) - sigma
    fine = ((total - n * coarse) + rest) / n
    mean = coarse + fine
    error = (n + 4) * 2 * UNIT_ROUNDOFF * grid
    doubtful = np.flatnonzero(coarse + (fine - error) != coarse + (fine + error))
    if doubtful.size:
        # fine is one exact sum, rounded once; its rounding is harmless where it is all of the mean, or well below it.
        safe = (coarse == 0) | (np.abs(mean) > np.ldexp(1.0, magnitude + 2 * headroom - 50))
        exact = safe[doubtful] & _sums_are_exact(x[:, doubtful], magnitude[doubtful], headroom)
        mean[doubtful[~exact]] = _exact_means(x[:, doubtful[~exact]])

    # Short enough that r - short is exact where that matters: deviations not much larger than the grid.
    short = _rounded(fine, grid * 2.0**-40)
    q -= coarse
    r -= short
    d = q + r
    half = (53 - headroom) // 2
    a = _rounded(d, np.ldexp(1.0, np.frexp(np.maximum(high - mean, mean - low))[1] - half))
    q -= a
    q += r
    squares = (a * a).sum(axis=0)
    a += d
    a *= q
    return mean, _root(squares, a.sum(axis=0) - n * (fine - short) ** 2, n - 1)


def _rounded(values: Values, unit: Values) -> Values:
    """Round to multiples of a power of two, for |values| below 2**51 units."""
    shift = unit * (1.5 * 2.0**52)
    return (values + shift) - shift


def _root(squares: Values, rest: Values, divisor: int) -> Values:
    """Return sqrt((squares + rest) / divisor), |rest| well below squares, within little more than half an ulp."""
    total = squares + rest
    left = rest - (total - squares)
    root = np.sqrt(total / divisor)
    # divisor * short**2 is exact.
    half = (53 - divisor.bit_length()) // 2
    short = _rounded(root, np.ldexp(1.0, np.frexp(root)[1] - half))
    tail = root - short
    residual = (total - divisor * short * short) - divisor * short * 2 * tail - divisor * tail * tail + left
    root += residual / (2 * divisor * root)
    return root


def _sums_are_exact(x: Values, magnitude: Integers, headroom: int) -> npt.NDArray[np.bool_]:
    """Tell for which columns sum(r) was exact: all values are multiples of a unit that is not too small for it."""
    size = np.abs(x)
    smallest = np.min(size, axis=0, where=size > 0, initial=np.inf)
    exact: npt.NDArray[np.bool_] = magnitude - np.frexp(smallest)[1] < 52 - 2 * headroom
    return exact


def _exact_means(x: Values) -> Values:
    """Return the correctly rounded means of the columns, computed as fractions: slow, and right for any doubles."""
    from fractions import Fraction

    return np.array([float(sum(map(Fraction, window)) / len(window)) for window in x.T.tolist()])
