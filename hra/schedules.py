"""Learning-rate shapes: a function of the step (from 0) and the number of steps, times
the peak learning rate.
"""

import math
from collections.abc import Callable

from hra.checks import check_number

Schedule = Callable[[int, int], float]


def constant(step: int, steps: int) -> float:
    """1 throughout."""
    return 1.0


def cosine(warmup: float = 0.1, floor: float = 0.0) -> Schedule:
    """Linear warm-up over the fraction `warmup` of the steps, then half a cosine down
    to `floor` times the peak.
    """
    check_number("warmup", warmup, 0.0, 1.0, closed_low=True)
    check_number("floor", floor, 0.0, 1.0, closed_low=True)

    def multiplier(step: int, steps: int) -> float:
        w = round(warmup * steps)
        if step < w:
            return (step + 1) / w
        t = (step - w) / max(1, steps - w)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t))

    return multiplier
