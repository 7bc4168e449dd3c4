"""The data of a recipe: what its steps read, in which order."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.loader import StepBatch, training_batches, validation_batches
from data_pipeline.order import SampleOrder
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.shards import ShardSet
from ptm_dist.recipe.schema import Recipe

TRAIN = "train"
VALIDATION = "validation"


class RecipeData:
    """Training and validation samples of a recipe, opened once.

    Args:
        recipe: names the shards, the sequence length and the seed of the order.

    Attributes:
        train: training shards.
        validation: validation shards; None if the recipe never validates.
        order: which training sample each counter of the run reads.

    Raises:
        DataError: missing, incomplete or too few shards.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.train = ShardSet.open(recipe.data.path / TRAIN)
        self.samples = CausalSamples(self.train, recipe.data.sequence_length)
        self.order = SampleOrder(len(self.samples), recipe.training.seed, source=TRAIN, shuffle=recipe.data.shuffle)
        self.validation: ShardSet | None = None
        if recipe.evaluation.every:
            self.validation = ShardSet.open(recipe.data.path / VALIDATION)
            self._validation_samples = CausalSamples(self.validation, recipe.data.sequence_length, keep_tail=True)

    def training(self, start_step: int, dp_rank: int, dp_size: int) -> Iterator[StepBatch]:
        """This rank's batches from `start_step` to the end of the run."""
        recipe = self._recipe
        return training_batches(
            self.samples,
            self.order,
            global_batch_size=recipe.training.global_batch_size,
            start_step=start_step,
            stop_step=recipe.training.steps,
            dp_rank=dp_rank,
            dp_size=dp_size,
            num_workers=recipe.data.num_workers,
            prefetch_steps=recipe.data.prefetch_steps,
        )

    def validating(self, dp_rank: int, dp_size: int) -> Iterator[StepBatch]:
        """This rank's part of the validation samples, in batches as large as the training batches."""
        return validation_batches(
            self._validation_samples,
            batch_size=self._recipe.training.global_batch_size,
            dp_rank=dp_rank,
            dp_size=dp_size,
            limit=self._recipe.evaluation.samples,
        )
