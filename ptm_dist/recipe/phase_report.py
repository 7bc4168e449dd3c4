"""What a phase of a run would be, in numbers: steps, samples, work, and the data it needs."""

from __future__ import annotations

from dataclasses import dataclass

from ptm_dist.recipe.phases import Phase
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.flops import TokenFlops, flops_per_token, predictions_per_sample


@dataclass(frozen=True)
class PhaseReport:
    """A part of a run whose samples have one length.

    Attributes:
        first_step: of the run.
        end_step: the step after its last.
        sequence_length: tokens of a sample.
        predictions: the most tokens to predict in a sample.
        first_batch_size: samples of its first step.
        batch_size: samples of a step after the ramp.
        samples: read in all its steps.
        tokens: read in all its steps, padding included.
        flops_per_token: of training, recomputation excluded.
    """

    first_step: int
    end_step: int
    sequence_length: int
    predictions: int
    first_batch_size: int
    batch_size: int
    samples: int
    tokens: int
    flops_per_token: TokenFlops


def phase_report(recipe: Recipe, phase: Phase) -> PhaseReport:
    """A phase of the recipe in numbers; reads no data."""
    samples = phase.samples_before(phase.end_step)
    length = phase.sequence_length
    return PhaseReport(
        first_step=phase.first_step,
        end_step=phase.end_step,
        sequence_length=length,
        predictions=predictions_per_sample(recipe, length),
        first_batch_size=phase.sizes.size(0),
        batch_size=phase.sizes.final,
        samples=samples,
        tokens=samples * length,
        flops_per_token=flops_per_token(recipe, length),
    )
