"""Write windows.jsonl: windows of every family with their exact results. Run: python -m tests.vectors.make"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from support import reference

FILE = Path(__file__).with_name("windows.jsonl")
WINDOWS_PER_FAMILY = 6
SMALLEST = 5e-324

Family = Callable[[random.Random], list[float]]
FAMILIES: dict[str, Family] = {
    "ordinary": lambda r: [r.uniform(0, 40) for _ in range(10)],
    "sensor resolution": lambda r: [r.randint(-4000, 4000) / 100 for _ in range(10)],
    "one sample": lambda r: [r.uniform(-1e6, 1e6)],
    "two samples": lambda r: [r.uniform(-1e6, 1e6) for _ in range(2)],
    "offset 1e9": lambda r: [1e9 + r.uniform(-3, 3) for _ in range(10)],
    "offset 1e15": lambda r: [1e15 + r.uniform(0, 8) for _ in range(10)],
    "alternating 1e16 around small values": lambda r: [1e16, r.random(), -1e16, r.random()] * 2 + [r.random()],
    "wild exponents and signs": lambda r: [r.uniform(-2, 2) * 2.0 ** r.randint(-300, 300) for _ in range(10)],
    "sums that cancel": lambda r: [s * v for v in [r.random() for _ in range(5)] for s in (1, -1)] + [1e-13],
    "all equal": lambda r: [r.choice([0.1, r.uniform(-1e3, 1e3)])] * 10,
    "neighbours": lambda r: [1 + r.randint(0, 1) * 2.0**-52 for _ in range(10)],
    "around 1e-170": lambda r: [r.uniform(-1e-170, 1e-170) for _ in range(10)],
    "subnormal": lambda r: [r.randint(-50, 50) * SMALLEST for _ in range(10)],
    "around 1.5e308, one sign": lambda r: [r.uniform(1.2e308, 1.7e308) for _ in range(10)],
    "around 1.5e308, both signs": lambda r: [r.choice([-1, 1]) * r.uniform(1.2e308, 1.7e308) for _ in range(10)],
    "huge and tiny": lambda r: [1e300 * r.random(), r.random(), -1e300 * r.random()],
}  # fmt: skip


def lines() -> str:
    """Return the text of the file."""
    made = []
    for family, draw in FAMILIES.items():
        generator = random.Random(family)
        for _ in range(WINDOWS_PER_FAMILY):
            window = draw(generator)
            results = {"mean": reference.as_double(reference.mean(window)), "min": min(window), "max": max(window)}
            if len(window) > 1:
                results["std"] = reference.as_double(reference.std(window))
            vector = {"family": family, "window": [value.hex() for value in window]}
            made.append(json.dumps(vector | {name: value.hex() for name, value in results.items()}))
    return "\n".join(made) + "\n"


if __name__ == "__main__":
    FILE.write_text(lines())
