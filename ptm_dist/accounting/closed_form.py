"""Collectives of one rank in one step by formula, for the native engine: calls and bytes by what they are for.

Each is counted as :class:`ptm_dist.accounting.watch.Traffic` counts it; collectives of one rank alone do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from ptm_dist.accounting.holdings import (
    Place,
    Shapes,
    StageHoldings,
    first_shard,
    parts_of,
    recomputed,
    splits_backward,
    stages_of,
    zero_ranks,
)
from ptm_dist.accounting.layer_traffic import Messages
from ptm_dist.accounting.watch import Collective, Traffic
from ptm_dist.accounting.zero_traffic import ZeroTraffic
from ptm_dist.optim.decay import is_decayed
from ptm_dist.parallel.actions import Kind
from ptm_dist.parallel.parallelize import StagePlan
from ptm_dist.parallel.schedules import Schedule, schedule_of
from ptm_dist.parallel.tensor import split_dimension
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.phases import phases
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.activations import MASTER_BYTES
from ptm_dist.training.flops import predictions_per_sample


class Purpose(StrEnum):
    """What a collective is for."""

    TENSOR = "tensor parallel"
    CONTEXT = "context parallel"
    PIPELINE = "pipeline"
    ZERO = "data parallel"
    SHARED = "shared weights"
    NUMBERS = "losses and norms"


def step_traffic(recipe: Recipe, layout: ResolvedLayout, place: Place) -> dict[Purpose, Traffic]:
    """Exchanges of one rank in one step with the full batch of the last phase.

    Args:
        recipe: of the run.
        layout: how it is shared.
        place: of the rank.
    """
    step = StepPlan(recipe, layout, place)
    traffic = {
        Purpose.TENSOR: step.between_matrices(),
        Purpose.CONTEXT: step.between_positions(),
        Purpose.PIPELINE: step.between_stages(),
        Purpose.ZERO: ZeroTraffic(layout, recipe.training.precision, step.schedule, step.splits).of(step.stages),
        Purpose.SHARED: step.of_shared_weights(),
        Purpose.NUMBERS: step.of_numbers(),
    }
    return {purpose: found for purpose, found in traffic.items() if found.calls}


@dataclass(frozen=True)
class StepPlan:
    """A step as one rank goes through it.

    Attributes:
        recipe: of the run.
        layout: how it is shared.
        place: of the rank.
    """

    recipe: Recipe
    layout: ResolvedLayout
    place: Place

    @cached_property
    def schedule(self) -> Schedule:
        """Of the pipeline; one rank in one stage without."""
        return schedule_of(self.layout, self.micro_batches)

    @cached_property
    def stages(self) -> tuple[StageHoldings, ...]:
        """Of this rank."""
        return stages_of(self.recipe.model, self.layout, self.schedule.rank_of, self.place)

    @property
    def micro_batches(self) -> int:
        """Of the step, on each rank."""
        return self._sizes[0]

    def splits(self, stage: StageHoldings) -> bool:
        """Whether a stage has backward passes in two halves, if the schedule has."""
        return splits_backward(self.layout, stage)

    def between_matrices(self) -> Traffic:
        """Sums and gathered positions of tensor parallelism, in all micro-batches."""
        total = Traffic()
        if self.layout.tensor_parallel > 1:
            for stage in self.stages:
                for again in recomputed(self.layout, stage.part):
                    total.include(self._messages.block(again=again), self.micro_batches)
                if stage.part.first == 0:
                    total.include(self._messages.embeddings(), self.micro_batches)
                if stage.part.end == self._messages.spec.num_layers:
                    total.include(self._messages.heads(), self.micro_batches)
            total.include(self._messages.sums_of_partial(self._gradient_bytes(self._partial())))
        return total

    def between_positions(self) -> Traffic:
        """Keys and values of context parallelism, in all micro-batches."""
        total = Traffic()
        if self.layout.context_parallel > 1:
            for stage in self.stages:
                for again in recomputed(self.layout, stage.part):
                    total.include(self._messages.attention(self.place, again=again), self.micro_batches)
        return total

    def between_stages(self) -> Traffic:
        """Hidden states and their gradients."""
        total, rank = Traffic(), self.place.pipeline
        for other in range(self.schedule.ranks):
            for kind in (Kind.FORWARD, Kind.BACKWARD):
                sent = len(self.schedule.messages(rank, other, kind))
                received = len(self.schedule.messages(other, rank, kind))
                total.add(Collective.SEND, self._messages.hidden_bytes, sent)
                total.add(Collective.RECEIVE, self._messages.hidden_bytes, received)
        return total

    def of_shared_weights(self) -> Traffic:
        """Gradients of what several pipeline ranks hold."""
        total, spec = Traffic(), self._messages.spec
        parts = parts_of(spec, self.layout.num_stages, self.layout.pipeline_split)
        plan = StagePlan(parts, self.schedule.rank_of)
        by_ranks: dict[tuple[int, ...], list[str]] = {}
        for prefix, ranks in plan.holders(spec).items():
            if len(ranks) > 1 and self.place.pipeline in ranks:
                by_ranks.setdefault(ranks, []).append(prefix)
        for prefixes in by_ranks.values():
            shapes = {name: shape for name, shape in self._shapes.items() if name.startswith(tuple(prefixes))}
            total.add(Collective.ALL_REDUCE, self._gradient_bytes(shapes))
        return total

    def of_numbers(self) -> Traffic:
        """Counts of targets and sums of losses, in float64; squares of norms."""
        layout, total = self.layout, Traffic()
        wide = MASTER_BYTES[self.recipe.training.precision]
        shards, _ = zero_ranks(layout)
        pipeline, others = layout.pipeline_parallel, layout.data_parallel * layout.context_parallel
        total.add(Collective.ALL_REDUCE, 2 * 8, int(layout.data_parallel > 1))
        total.add(Collective.ALL_REDUCE, 4 * 8, int(pipeline * others > 1))
        total.add(Collective.ALL_REDUCE, 2 * wide, int(layout.tensor_parallel > 1) + int(shards > 1))
        total.add(Collective.ALL_REDUCE, wide, int(pipeline > 1))
        if self.recipe.optimizer.kind == "lamb":
            norms = sum(3 if name.endswith("qkv.weight") else 1 for name in self._shapes if is_decayed(name))
            total.add(Collective.ALL_REDUCE, 2 * norms * wide, int(layout.tensor_parallel > 1) + int(shards > 1))
        return total

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        last = phases(self.recipe)[-1]
        return self.layout.micro_batches(last.sizes.final, self.recipe.data.sequence_length // last.sequence_length)

    @cached_property
    def _messages(self) -> Messages:
        length = phases(self.recipe)[-1].sequence_length
        predictions = predictions_per_sample(self.recipe, length)
        return Messages(self.recipe, self.layout, self.place, self._sizes[1], length, predictions)

    @cached_property
    def _shapes(self) -> Shapes:
        """Of this rank's parameters, those of several stages once."""
        return {name: shape for stage in self.stages for name, shape in stage.shapes().items()}

    def _partial(self) -> Shapes:
        """Parameters whose gradients cover this rank's range of positions only."""
        causal = self._messages.spec.block.causal
        return {
            name: shape
            for name, shape in self._shapes.items()
            if self.layout.sequence_parallel
            and split_dimension(name) is None
            and (causal or not name.startswith(("head.", "pair_head.")))
        }

    def _gradient_bytes(self, shapes: Shapes) -> int:
        shards, _ = zero_ranks(self.layout)
        return (
            sum(first_shard(shape, shards) for shape in shapes.values()) * MASTER_BYTES[self.recipe.training.precision]
        )
