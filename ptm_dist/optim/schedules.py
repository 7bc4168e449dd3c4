"""Learning rate by step: linear warmup, then one of four shapes."""

from __future__ import annotations

import math

from ptm_dist.errors import RecipeError
from ptm_dist.recipe.schema import ScheduleSection


def learning_rate(schedule: ScheduleSection, peak: float, step: int, total_steps: int) -> float:
    """The learning rate of one update.

    With W warmup steps, D the step at which the decay ends, r = min_ratio and
    ``t = (step - W) / (D - W)`` clipped to [0, 1], the factor on the peak is

    - warmup (step < W): ``(step + 1) / W``, so that no update is lost and update W - 1 has the peak;
    - constant: 1;
    - linear: ``1 - (1 - r) t``;
    - cosine: ``r + (1 - r) (1 + cos(pi t)) / 2`` (Loshchilov & Hutter 2017, arXiv 1608.03983);
    - exponential: ``r ** t``.

    Args:
        schedule: the recipe's section.
        peak: learning rate at the end of the warmup.
        step: updates done before this one; the first update has step 0.
        total_steps: of the run; the decay ends there unless the schedule says where.

    Raises: RecipeError for an exponential decay to 0, which no number of steps reaches.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * _decay(schedule, _decayed_part(schedule, step, total_steps))


def _decayed_part(schedule: ScheduleSection, step: int, total_steps: int) -> float:
    end = schedule.decay_steps or total_steps
    length = end - schedule.warmup_steps
    return min(1.0, (step - schedule.warmup_steps) / length) if length > 0 else 1.0


def _decay(schedule: ScheduleSection, t: float) -> float:
    floor = schedule.min_ratio
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - floor) * t
        case "cosine":
            return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * t)) / 2.0
        case "exponential":
            if floor == 0.0:
                raise RecipeError(
                    "schedule.kind=exponential never reaches schedule.min_ratio=0; use a small one, as 0.01"
                )
            return math.pow(floor, t)
