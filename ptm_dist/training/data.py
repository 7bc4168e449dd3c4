"""The data of a recipe: what its steps read, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.loader import StepBatch, training_batches, validation_batches
from data_pipeline.order import SampleOrder
from data_pipeline.samples import Samples
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.shards import ShardSet
from ptm_dist.recipe.phases import Phase, phase_at, phases
from ptm_dist.recipe.schema import Recipe

TRAIN = "train"
VALIDATION = "validation"


@dataclass(frozen=True)
class PhaseData:
    """The training data as one phase of a run reads it.

    Attributes:
        phase: the steps.
        samples: cut at its sequence length.
        order: which sample each counter of the phase reads.
    """

    phase: Phase
    samples: Samples
    order: SampleOrder

    @property
    def epochs(self) -> float:
        """How often the phase reads the data; 1.0 is each sample once."""
        return self.phase.samples_before(self.phase.end_step) / len(self.samples)


class RecipeData:
    """Training and validation samples of a recipe, opened once.

    Args:
        recipe: names the shards, the objective, the sequence lengths and the seed of order and masks.

    Attributes:
        train: training shards.
        validation: validation shards; None if the recipe never validates.
        phases: the training data by phase.

    Raises:
        DataError: missing, incomplete or too few shards, or shards that do not suit the objective.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.train = ShardSet.open(recipe.data.path / TRAIN)
        self.phases = tuple(self._phase_data(phase) for phase in phases(recipe))
        self.validation: ShardSet | None = None
        self._validation_samples: dict[int, Samples] = {}
        if recipe.evaluation.every:
            self.validation = ShardSet.open(recipe.data.path / VALIDATION)
            self._validation_samples = {
                phase.number: self._samples(self.validation, phase, VALIDATION) for phase in phases(recipe)
            }

    def phase_at(self, step: int) -> PhaseData:
        """The phase that the step after `step` steps belongs to."""
        return self.phases[phase_at(self._recipe, step).number]

    def training(self, start_step: int, dp_rank: int, dp_size: int) -> Iterator[StepBatch]:
        """This rank's batches from `start_step` to the end of the run."""
        recipe = self._recipe
        for data in self.phases:
            phase = data.phase
            if start_step >= phase.end_step:
                continue
            yield from training_batches(
                data.samples,
                data.order,
                sizes=phase.sizes,
                start_step=max(start_step - phase.first_step, 0),
                stop_step=phase.end_step - phase.first_step,
                dp_rank=dp_rank,
                dp_size=dp_size,
                num_workers=recipe.data.num_workers,
                prefetch_steps=recipe.data.prefetch_steps,
                first_step=phase.first_step,
            )

    def validating(self, step: int, dp_rank: int, dp_size: int) -> Iterator[StepBatch]:
        """This rank's part of the validation samples of the phase that step `step` ends, in training-sized batches."""
        return validation_batches(
            self.validation_samples(step),
            batch_size=phase_at(self._recipe, step - 1).sizes.final,
            dp_rank=dp_rank,
            dp_size=dp_size,
            limit=self._recipe.evaluation.samples,
        )

    def validation_samples(self, step: int) -> Samples:
        """The validation samples of the phase that step `step` ends."""
        return self._validation_samples[phase_at(self._recipe, step - 1).number]

    def _phase_data(self, phase: Phase) -> PhaseData:
        recipe = self._recipe
        source = TRAIN if phase.number == 0 else f"{TRAIN}/{phase.number}"
        samples = self._samples(self.train, phase, source)
        order = SampleOrder(len(samples), recipe.training.seed, source=source, shuffle=recipe.data.shuffle)
        return PhaseData(phase, samples, order)

    def _samples(self, shards: ShardSet, phase: Phase, source: str) -> Samples:
        objective = self._recipe.objective
        options = ObjectiveOptions(
            kind=objective.kind,
            mask_fraction=objective.mask_fraction,
            max_predictions=phase.max_predictions,
            mask_unit=objective.mask_unit,
            max_ngram=objective.max_ngram,
            mask_share=objective.mask_share,
            random_share=objective.random_share,
            copies=objective.copies,
            short_sequence_probability=objective.short_sequence_probability,
        )
        return build_samples(
            shards,
            options,
            phase.sequence_length,
            seed=self._recipe.training.seed,
            source=source,
            keep_tail=shards is not self.train,
        )
