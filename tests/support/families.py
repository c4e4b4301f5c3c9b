"""Families of windows for which public tools are wrong, each a Hypothesis strategy of one window's values."""

import math

from hypothesis import strategies as st

SIZES = st.integers(2, 12)


def _windows(values):
    return SIZES.flatmap(lambda size: st.lists(values, min_size=size, max_size=size))


def _shifted(offset, low, high):
    return _windows(st.floats(low, high).map(lambda value: offset + value))


def ordinary():
    return _windows(st.floats(0, 40))


def sensor_resolution():
    return _windows(st.integers(-4000, 4000).map(lambda hundredths: hundredths / 100))


def offset_1e9():
    return _shifted(1e9, -3, 3)


def offset_1e15():
    return _shifted(1e15, 0, 8)


def alternating_1e16_around_small():
    return _windows(st.one_of(st.sampled_from([1e16, -1e16]), st.floats(-1, 1)))


def wild():
    return _windows(st.floats(allow_nan=False, allow_infinity=False))


def cancelling():
    halves = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6)
    residue = st.floats(-1e-12, 1e-12)
    return st.tuples(halves, residue).map(lambda case: case[0] + [-value for value in case[0]] + [case[1]])


def constant():
    value = st.one_of(st.just(0.1), st.floats(allow_nan=False, allow_infinity=False))
    return st.tuples(value, SIZES).map(lambda case: [case[0]] * case[1])


def neighbours_one_ulp_apart():
    base = st.floats(1e-300, 1e300)
    return base.flatmap(lambda value: _windows(st.sampled_from([value, math.nextafter(value, math.inf)])))


@st.composite
def near_ties(draw):
    """With one value, zero or far smaller than the rest, taken as zero, the mean lies halfway between two doubles.

    k - 1 integers of 53 bits add up to k * (mean + 1/2) for an integer mean and an even k.
    """
    size = 2 * draw(st.integers(1, 6))
    mean = draw(st.integers(2**52, 5 * 2**50))
    spread = draw(st.sampled_from([0, 1, 2**20, 2**50]))
    steps = draw(st.lists(st.integers(-spread, spread), min_size=size - 2, max_size=size - 2))
    total = size * mean + size // 2
    integers = [total // (size - 1) + step for step in steps]
    integers.append(total - sum(integers))
    tiny = draw(st.sampled_from([0, 5e-324, 2.0**-80, 2.0**-30, 0.5, 1.0, 3.0, 2.0**26 + 2.0**-26, 2.0**30 + 2.0**-22]))
    sign, exponent = draw(st.sampled_from([1, -1])), draw(st.integers(-60, 0))
    values = [*map(float, integers), tiny * draw(st.sampled_from([1, -1]))]
    return draw(st.permutations([math.ldexp(sign * value, exponent) for value in values]))


def around_1e_170():
    return _windows(st.floats(-1, 1).map(lambda value: value * 1e-170))


def subnormal():
    return _windows(st.integers(-50, 50).map(lambda units: units * math.ulp(0.0)))


def nearly_subnormal():
    return _windows(st.floats(-1e-306, 1e-306))


def huge_of_one_sign():
    return _windows(st.floats(1.2e308, 1.7e308))


def huge_of_both_signs():
    return _windows(st.one_of(st.floats(1.2e308, 1.79e308), st.floats(-1.79e308, -1.2e308), st.floats(-1e-300, 1)))


def near_the_largest_double_and_tiny():
    return st.just([1e300, 1.0, -1e300])


ALL = [
    ordinary,
    sensor_resolution,
    offset_1e9,
    offset_1e15,
    alternating_1e16_around_small,
    wild,
    cancelling,
    constant,
    neighbours_one_ulp_apart,
    near_ties,
    around_1e_170,
    subnormal,
    nearly_subnormal,
    huge_of_one_sign,
    huge_of_both_signs,
    near_the_largest_double_and_tiny,
]
