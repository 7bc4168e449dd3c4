"""Whether every step of a run is in its curve once, with the samples that its recipe gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.report.history import StepRow
from launcher.report.timeline import End, Timeline
from ptm_dist.recipe.phases import Phase, phases
from ptm_dist.recipe.schema import Recipe


@dataclass
class Curve:
    """The steps of the run as it stands.

    Attributes:
        first_step: the first one that it should have.
        last_step: the last one that it has.
        samples: that it has consumed, by its last row.
        missing: first and last step of each gap.
        doubled: first and last step of each part that it has twice.
        wrong: steps after which the samples are not those of the recipe; None: the recipe cannot be read.
        samples_lost: of the missing steps; None without the recipe.
        samples_repeated: of the doubled steps; None without the recipe.
    """

    first_step: int
    last_step: int
    samples: int = 0
    missing: list[tuple[int, int]] = field(default_factory=list)
    doubled: list[tuple[int, int]] = field(default_factory=list)
    wrong: list[int] | None = None
    samples_lost: int | None = None
    samples_repeated: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, double or wrong, as far as it could be checked."""
        return not (self.missing or self.doubled or self.wrong)


def check_curve(rows: Sequence[StepRow], timeline: Timeline, recipe: Recipe | None) -> Curve:
    """Follow the training rows of a run.

    Args:
        rows: all that are in the run, in the order of the file.
        timeline: says where it began, and whether it must have reached its end.
        recipe: of the run, if it can be read.
    """
    training = [row for row in rows if row.is_training]
    start = next((life.start_step for life in timeline.lives if life.start_step is not None), 0)
    curve = Curve(start + 1, start)
    for row in training:
        if row.first_step > curve.last_step + 1:
            curve.missing.append((curve.last_step + 1, row.first_step - 1))
        if row.first_step <= curve.last_step:
            curve.doubled.append((row.first_step, min(row.step, curve.last_step)))
        curve.last_step = max(curve.last_step, row.step)
        curve.samples = max(curve.samples, int(row.row.get("samples", 0)))
    end = timeline.lives[-1]
    if end.end in (End.FINISHED, End.STOPPED, End.MADE_WAY) and curve.last_step < end.reached:
        curve.missing.append((curve.last_step + 1, end.reached))
    if recipe is not None:
        plan = phases(recipe)
        curve.wrong = [row.step for row in training if row.row.get("samples") != _samples_before(plan, row.step)]
        curve.samples_lost = _samples(plan, curve.missing)
        curve.samples_repeated = _samples(plan, curve.doubled)
    return curve


def _samples_before(plan: Sequence[Phase], step: int) -> int:
    return sum(phase.samples_before(step) for phase in plan)


def _samples(plan: Sequence[Phase], spans: Sequence[tuple[int, int]]) -> int:
    return sum(_samples_before(plan, last) - _samples_before(plan, first - 1) for first, last in spans)
