"""Synthetic signals, one sample a minute: what seed.py writes where there is no real data.

A value depends on the random seed and its timestamp alone, so days seeded apart equal the same days seeded together.
"""

from datetime import date
from pathlib import Path

import numpy as np

from fonte.arrow import Timestamps, Values

MINUTES_PER_DAY = 1440
# The median power per 0.5 m/s of a real turbine: NOTICE.md names its source. Wind speed in m/s, power in kW.
POWER_CURVE_FILE = Path(__file__).with_name("power_curve.csv")

# The lowest and highest of the plain random values of each variable.
RANGES = {"wind_speed": (0.0, 25.0), "power": (0.0, 1900.0), "ambient_temperature": (-10.0, 40.0)}

# The demo's gap: minutes of a day without power, two hours and three single ones.
GAP_DAY, GAP_MINUTES = date(2024, 5, 28), np.array([*range(540, 660), 197, 822, 1205])

WEIBULL_SHAPE = 2.0
WEIBULL_SCALE_M_S = 8.5
WIND_CORRELATION_MINUTES = 180.0
TEMPERATURE_CORRELATION_MINUTES = 360.0
# exp(-2**14 / 360) < 1e-19: older noise changes no double. The days are those that hold 2**14 minutes.
MEMORY_DOUBLINGS = 14
MEMORY_DAYS = -(-(2**MEMORY_DOUBLINGS) // MINUTES_PER_DAY)


def minutes(start: date, days: int) -> Timestamps:
    """Return the timestamps (1440 * days,) of whole UTC days as datetime64[us]."""
    first = np.datetime64(start, "us")
    return first + np.arange(days * MINUTES_PER_DAY) * np.timedelta64(1, "m")


def uniform(start: date, days: int, random_seed: int) -> dict[str, Values]:
    """Return plain random values, each uniform over its sensor's range; arrays (1440 * days,)."""
    numbers = range(start.toordinal(), start.toordinal() + days)
    generators = [np.random.default_rng([random_seed, number, 0]) for number in numbers]
    draws = np.hstack([rng.uniform(size=(len(RANGES), MINUTES_PER_DAY)) for rng in generators])
    return {name: low + (high - low) * draw for (name, (low, high)), draw in zip(RANGES.items(), draws, strict=True)}


def turbine(start: date, days: int, random_seed: int) -> dict[str, Values]:
    """Return plausible values, rounded to a sensor's resolution, NaN in the gap; arrays (1440 * days,).

    Wind is an autocorrelated Weibull series: half the squared length of a two-dimensional standard normal vector is
    exponentially distributed, and its 1/shape-th power times the scale is Weibull. Power (kW) follows the measured
    curve; above its last point the turbine is cut out and consumes as much as in a calm.
    """
    noise = _noise(start, days, random_seed)
    along, across = (_correlated(white, WIND_CORRELATION_MINUTES) for white in noise[:2])
    wind_speed = np.round(WEIBULL_SCALE_M_S * ((along**2 + across**2) / 2) ** (1 / WEIBULL_SHAPE), 2)

    curve_speed, curve_power = np.loadtxt(POWER_CURVE_FILE, delimiter=",", skiprows=1, unpack=True)
    power = np.round(np.interp(wind_speed, curve_speed, curve_power, right=curve_power[0]), 1)
    gap = GAP_MINUTES + (GAP_DAY - start).days * MINUTES_PER_DAY
    power[gap[(gap >= 0) & (gap < len(power))]] = np.nan

    hour = np.arange(days * MINUTES_PER_DAY) % MINUTES_PER_DAY / 60
    daily_cycle = 24.0 + 5.0 * np.cos((hour - 17.0) * (2 * np.pi / 24))
    temperature = np.round(daily_cycle + 1.5 * _correlated(noise[2], TEMPERATURE_CORRELATION_MINUTES), 2)
    return {"wind_speed": wind_speed, "power": power, "ambient_temperature": temperature}


def _noise(start: date, days: int, random_seed: int) -> Values:
    """Return white noise (3, 1440 * (MEMORY_DAYS + days)): each day has its own generator."""
    numbers = range(start.toordinal() - MEMORY_DAYS, start.toordinal() + days)
    generators = [np.random.default_rng([random_seed, max(number, 0), 1]) for number in numbers]
    return np.hstack([rng.standard_normal((3, MINUTES_PER_DAY)) for rng in generators])


def _correlated(white: Values, correlation_minutes: float) -> Values:
    """Filter white noise into a first-order autoregressive series of unit variance, without the days of its memory.

    Doubling the reach of the filter in each step, y[t] += phi**reach * y[t - reach], replaces a loop over time.
    """
    phi = np.exp(-1 / correlation_minutes)
    series: Values = white * np.sqrt(1 - phi**2)
    for doubling in range(MEMORY_DOUBLINGS):
        reach = 2**doubling
        series[reach:] += phi**reach * series[:-reach].copy()
    return series[MEMORY_DAYS * MINUTES_PER_DAY :]
