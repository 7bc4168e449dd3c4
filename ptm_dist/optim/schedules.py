"""Learning rate by step: linear warmup, then one of seven shapes."""

from __future__ import annotations

import math

from ptm_dist.errors import RecipeError
from ptm_dist.recipe.schema import ScheduleSection


def learning_rate(schedule: ScheduleSection, peak: float, step: int, total_steps: int) -> float:
    """The learning rate of one update.

    With W warmup steps, D the step at which the decay ends, C cooldown steps, p = power, r = min_ratio and
    ``t = (step - W) / (D - W)`` clipped to [0, 1], the factor on the peak is

    - warmup (step < W): ``(step + 1) / W``, so that no update is lost and update W - 1 has the peak;
    - constant: 1;
    - linear: ``1 - (1 - r) t``;
    - cosine: ``r + (1 - r) (1 + cos(pi t)) / 2`` (Loshchilov & Hutter 2017, arXiv 1608.03983);
    - exponential: ``r ** t``;
    - polynomial: ``r + (1 - r) (1 - t) ** p``;
    - inverse_sqrt: ``sqrt(W / (step + 1))`` with W at least 1, whatever D and r are (Vaswani et al. 2017,
      arXiv 1706.03762, whose step number is ours + 1);
    - wsd: 1 before step D - C, then ``1 - (1 - r) c`` with ``c = (step - (D - C)) / C`` clipped to [0, 1]
      (warmup, stable, decay: Hu et al. 2024, arXiv 2404.06395).

    The original BERT counts its linear decay from step 0, so that the factor falls from 1 to ``1 - W / D`` after
    the warmup; here every decay starts at the peak.

    Args:
        schedule: the recipe's section.
        peak: learning rate at the end of the warmup.
        step: updates done before this one; the first update has step 0.
        total_steps: of the run; the decay ends there unless the schedule says where.

    Raises: RecipeError, at whatever step, for an exponential decay to 0, which no number of steps reaches, and
        for a wsd whose cooldown is missing or longer than what the warmup leaves.
    """
    warmup = schedule.warmup_steps
    end = schedule.decay_steps or total_steps
    _refuse_impossible(schedule, end)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * _decay(schedule, step, end)


def _decay(schedule: ScheduleSection, step: int, end: int) -> float:
    floor = schedule.min_ratio
    t = _part(step, schedule.warmup_steps, end)
    match schedule.kind:
        case "constant":
            factor = 1.0
        case "linear":
            factor = 1.0 - (1.0 - floor) * t
        case "cosine":
            factor = floor + (1.0 - floor) * (1.0 + math.cos(math.pi * t)) / 2.0
        case "exponential":
            factor = math.pow(floor, t)
        case "polynomial":
            factor = floor + (1.0 - floor) * math.pow(1.0 - t, schedule.power)
        case "inverse_sqrt":
            factor = math.sqrt(max(1, schedule.warmup_steps) / (step + 1))
        case "wsd":
            factor = 1.0 - (1.0 - floor) * _part(step, end - (schedule.cooldown_steps or 0), end)
    return factor


def _part(step: int, begin: int, end: int) -> float:
    """How much of the steps from `begin` to `end` is behind, in [0, 1]."""
    return min(1.0, max(0, step - begin) / (end - begin)) if end > begin else 1.0


def _refuse_impossible(schedule: ScheduleSection, end: int) -> None:
    if schedule.kind == "exponential" and schedule.min_ratio == 0.0:
        raise RecipeError("schedule.kind=exponential never reaches schedule.min_ratio=0; use a small one, as 0.01")
    if schedule.kind != "wsd":
        return
    left = end - schedule.warmup_steps
    if schedule.cooldown_steps is None:
        raise RecipeError(
            "schedule.kind=wsd needs schedule.cooldown_steps, the steps of its final decay; try a tenth of the run"
        )
    if schedule.cooldown_steps > left:
        raise RecipeError(
            f"schedule.cooldown_steps={schedule.cooldown_steps} does not fit between the warmup, which ends at step "
            f"{schedule.warmup_steps}, and the end of the decay at step {end}; use at most {max(0, left)}"
        )
