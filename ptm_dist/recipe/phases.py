"""Which batch size and sequence length a step has, and what was read before it: arithmetic over the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.ramp import BatchSizes
from ptm_dist.recipe.schema import BatchRampSection, Recipe


@dataclass(frozen=True)
class Phase:
    """Steps that read samples of one length.

    Attributes:
        number: of the phase, from 0; each has an order of its own over the training data.
        first_step: of the run.
        end_step: the step after its last.
        sequence_length: tokens of a sample.
        sizes: batch size by step of the phase.
        max_predictions: most masked tokens of a sample; None: no limit.
    """

    number: int
    first_step: int
    end_step: int
    sequence_length: int
    sizes: BatchSizes
    max_predictions: int | None

    def samples_before(self, step: int) -> int:
        """Samples that the phase has read when the run has done `step` steps."""
        return self.sizes.first_sample(min(max(step, self.first_step), self.end_step) - self.first_step)


def phases(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases of a run in order; the last one has the recipe's own values."""
    training = recipe.training
    found: list[Phase] = []
    for section in training.phases:
        size = section.global_batch_size or training.global_batch_size
        predictions = section.max_predictions or recipe.objective.max_predictions
        _append(found, section.until_step, section.sequence_length, size, predictions, training.batch_ramp)
    own = (recipe.data.sequence_length, training.global_batch_size, recipe.objective.max_predictions)
    _append(found, training.steps, *own, training.batch_ramp)
    return tuple(found)


def phase_at(recipe: Recipe, step: int) -> Phase:
    """The phase that the step after `step` steps belongs to; after the end of the run, its last."""
    *earlier, last = phases(recipe)
    return next((phase for phase in earlier if step < phase.end_step), last)


def samples_before(recipe: Recipe, step: int) -> int:
    """Samples that a run has read when it has done `step` steps."""
    return sum(phase.samples_before(step) for phase in phases(recipe))


def tokens_before(recipe: Recipe, step: int) -> int:
    """Tokens, padding included, that a run has read when it has done `step` steps."""
    return sum(phase.samples_before(step) * phase.sequence_length for phase in phases(recipe))


def _append(
    found: list[Phase],
    end_step: int,
    sequence_length: int,
    batch_size: int,
    max_predictions: int | None,
    ramp: BatchRampSection | None,
) -> None:
    first_step = found[-1].end_step if found else 0
    sizes = BatchSizes(batch_size)
    if ramp is not None and not found:
        sizes = BatchSizes(batch_size, ramp.start, ramp.increment, ramp.samples)
    found.append(Phase(len(found), first_step, end_step, sequence_length, sizes, max_predictions))
