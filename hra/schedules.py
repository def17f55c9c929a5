"""Learning-rate shapes: a function of the step (from 0) and the number of steps, times
the peak learning rate.
"""

import math
from collections.abc import Callable

from hra.checks import check_count, check_number

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


def jagged_cosine(
    every: int, warmup: int = 0, rewarm: int = 100, floor: float = 0.1
) -> Schedule:
    """A cosine that falls to zero at each restart and climbs back onto itself.

    Restarts every `every` steps; `warmup` steps at the start, `rewarm` after each
    restart, both linear from 0. It is continuous where a re-warm ends (Lialin et al.,
    2023, arXiv:2307.05695, as released). For a method with restarts of its own, give
    that method rewarm=0: the two would multiply.

    Raises TypeError or ValueError for counts below 1 (0 for the warm-ups), a floor
    outside [0, 1), rewarm > every.
    """
    check_count("every", every)
    check_count("warmup", warmup, low=0)
    check_count("rewarm", rewarm, low=0)
    check_number("floor", floor, 0.0, 1.0, closed_low=True)
    if rewarm > every:
        raise ValueError(f"rewarm={rewarm} is longer than every={every}.")

    def multiplier(step: int, steps: int) -> float:
        def fall(t: int) -> float:
            share = (t - warmup) / max(1, steps - warmup)
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))

        since = step % every
        if step < warmup:
            return step / warmup
        if step >= every and since < rewarm:
            return since / rewarm * fall(step - since + rewarm)
        return fall(step)

    return multiplier
