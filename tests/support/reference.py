"""The exact reference: statistics of a window in plain fractions, slow and simple."""

import math
from fractions import Fraction


def mean(window: list[float]) -> Fraction:
    return sum(map(Fraction, window), Fraction()) / len(window)


def std(window: list[float]) -> Fraction:
    """Return the sample standard deviation, correct to well over 200 bits."""
    center = mean(window)
    variance = sum(((Fraction(value) - center) ** 2 for value in window), Fraction()) / (len(window) - 1)
    if variance == 0:
        return Fraction()
    bits = max(0, 400 - variance.numerator.bit_length() + variance.denominator.bit_length())
    return Fraction(math.isqrt((variance.numerator << 2 * bits) // variance.denominator), 1 << bits)


def as_double(exact: Fraction) -> float:
    """Return the double nearest to an exact value, infinity beyond the largest."""
    try:
        return float(exact)
    except OverflowError:
        return math.inf


def error_ulp(computed: float, exact: Fraction) -> float:
    """Return the error of a computed double in units of the exact value's last place."""
    nearest = as_double(exact)
    if not (math.isfinite(nearest) and math.isfinite(computed)):
        return 0.0 if computed == nearest else math.inf
    return as_double(abs(Fraction(computed) - exact) / Fraction(math.ulp(nearest)))
