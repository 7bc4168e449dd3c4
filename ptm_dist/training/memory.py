"""Memory of one rank in closed form: weights, gradients, optimizer state and activations of a layout.

Peaks of live tensors are met within 5% from below; small models, where gradients of one group at work weigh much,
stay up to 30% under it. What torch's allocator keeps on top, what kernels use inside, and the buffers of collectives
are not included.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ptm_dist.accounting.holdings import (
    Place,
    StageHoldings,
    first_shard,
    splits_backward,
    stages_of,
    zero_ranks,
)
from ptm_dist.optim.build import slot_names
from ptm_dist.parallel.actions import Kind
from ptm_dist.parallel.schedules import Schedule, schedule_of
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.phases import Phase, phases
from ptm_dist.recipe.schema import Precision, Recipe
from ptm_dist.training.activations import COMPUTE_BYTES, MASTER_BYTES, ForwardPass
from ptm_dist.training.flops import predictions_per_sample


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, by part.

    Attributes:
        weights: what the optimizer updates: float32, or float64 at fp64.
        whole_weights: what computes, in the precision of the step, where it is not the former: gathered by ZeRO, or
            kept.
        gradients: sharded and whole ones together, at their most.
        optimizer: its state: two moments, or one of sgd.
        activations: stored for backward passes, by all micro-batches of a pipeline that are in flight.
        logits: of one micro-batch in head and loss: logits, their gradients, or in chunks that of the head's matrix;
            and what others in flight keep of these.
        working: gradients of activations within one layer.
        messages: hidden states and their gradients on their way between stages.
        host: what is offloaded; in host memory, and in none of the others.
    """

    weights: int
    whole_weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int
    messages: int
    host: int

    @property
    def total(self) -> int:
        """All parts together, those in host memory apart."""
        state = self.weights + self.whole_weights + self.gradients + self.optimizer
        return state + self.activations + self.logits + self.working + self.messages


def estimate_memory(recipe: Recipe, layout: ResolvedLayout) -> MemoryEstimate:
    """Bytes of each part on the fullest rank, in the steps that need most; allocates nothing.

    Args:
        recipe: gives model, objective, optimizer, precision, and the batch sizes and lengths of its phases.
        layout: how they are shared.
    """
    ranks = range(layout.pipeline_parallel)
    return max((rank_memory(recipe, layout, rank) for rank in ranks), key=lambda estimate: estimate.total)


def rank_memory(recipe: Recipe, layout: ResolvedLayout, pipeline_rank: int) -> MemoryEstimate:
    """:func:`estimate_memory` of the fullest of those ranks that have one place in the pipeline."""
    kinds = _kinds_of_steps(recipe, layout)
    estimates = [_Rank(recipe, layout, pipeline_rank, *kind).estimate() for kind in kinds]
    return max(estimates, key=lambda estimate: estimate.total)


@dataclass(frozen=True)
class _Rank:
    """A pipeline rank in a step.

    Attributes:
        recipe: gives the model.
        layout: how it is shared.
        number: of the pipeline rank.
        micro_batches: of the step.
        samples: of each.
        length: of a sample.
    """

    recipe: Recipe
    layout: ResolvedLayout
    number: int
    micro_batches: int
    samples: int
    length: int

    def estimate(self) -> MemoryEstimate:
        """All parts."""
        weights, gradients = self._local * self._master, self._gradients()
        optimizer = len(slot_names(self.recipe.optimizer)) * self._updated * self._master
        host = 0
        if self.layout.offload != "none":
            host, optimizer = optimizer, 0
        if self.layout.offload == "parameters":
            host += weights + self._local * self._master
            weights, gradients = 0, self._gradients_at_work()
        passes = self._passes.values()
        host += self._in_flight({n: p.on_host() for n, p in self._passes.items()})
        return MemoryEstimate(
            weights=weights,
            whole_weights=self._whole_weights(),
            gradients=gradients,
            optimizer=optimizer,
            activations=self._in_flight({n: p.stored() for n, p in self._passes.items()})
            + max(p.at_work() for p in passes),
            logits=self._logits(),
            working=max(each.working() for each in passes),
            messages=self._messages(),
            host=host,
        )

    @cached_property
    def _schedule(self) -> Schedule:
        return schedule_of(self.layout, self.micro_batches)

    @cached_property
    def _stages(self) -> tuple[StageHoldings, ...]:
        return stages_of(self.recipe.model, self.layout, self._schedule.rank_of, Place(pipeline=self.number))

    @cached_property
    def _passes(self) -> dict[int, ForwardPass]:
        predictions = predictions_per_sample(self.recipe, self.length)
        return {
            stage.number: ForwardPass(self.recipe, self.layout, self.samples, self.length, predictions, stage.part)
            for stage in self._stages
        }

    @property
    def _master(self) -> int:
        return MASTER_BYTES[self.recipe.training.precision]

    @property
    def _compute(self) -> int:
        return COMPUTE_BYTES[self.recipe.training.precision]

    @cached_property
    def _local(self) -> int:
        """Elements of this rank's shards, those of several stages as often."""
        shards, _ = zero_ranks(self.layout)
        return sum(first_shard(shape, shards) for stage in self._stages for shape in stage.shapes().values())

    @cached_property
    def _updated(self) -> int:
        """Elements that the optimizer updates: what several stages of the rank hold is one parameter to it."""
        shards, _ = zero_ranks(self.layout)
        shapes = {name: shape for stage in self._stages for name, shape in stage.shapes().items()}
        return sum(first_shard(shape, shards) for shape in shapes.values())

    @property
    def _is_mixed(self) -> bool:
        return self.recipe.training.precision in {Precision.BF16, Precision.FP16}

    @property
    def _uses_fsdp(self) -> bool:
        """Where ranks share the state, or it lies in host memory."""
        return zero_ranks(self.layout)[0] > 1 or self.layout.offload == "parameters"

    def _whole_weights(self) -> int:
        """Copies beside the shards: of all layers at stages 1 and 2, of the one at work and the next at stage 3.

        Where state is not shared there are those of another type, in the memory of the gradients if there is one
        micro-batch. Backward passes in halves keep a stage whole.
        """
        if not self._uses_fsdp:
            return self._local * self._compute * (self._is_mixed and self.micro_batches > 1)
        sizes = {stage.number: stage.sizes() for stage in self._stages}
        if self.layout.zero_stage < 3:
            return sum(map(sum, sizes.values())) * self._compute
        most = 0
        for stage in self._stages:
            *layers, rest = sizes[stage.number]
            halves = self._schedule.splits_backward and splits_backward(self.layout, stage)
            most = max(most, rest + sum(layers if halves else sorted(layers)[-2:]))
        return most * self._compute

    def _gradients(self) -> int:
        """Gradients in the master format, and those of the group at work before they are reduced.

        Where state is not shared, a parameter's gradient is added to its sum as soon as it is there. Stage 1
        accumulates whole gradients over several micro-batches: a group's shard takes its place when the last one
        reduces it. With one micro-batch, and at stages 2 and 3, there are shards only.
        """
        if not self._uses_fsdp:
            beside = self._is_mixed or zero_ranks(self.layout)[1] > 1
            return self._local * self._master + self._largest_parameter() * self._compute * beside
        keeps_whole = self.layout.zero_stage == 1 and self.micro_batches > 1
        kept = sum(sum(stage.sizes()) for stage in self._stages) if keeps_whole else self._local
        return kept * self._master + self._gradients_at_work()

    def _largest_parameter(self) -> int:
        return max(math.prod(shape) for stage in self._stages for shape in stage.shapes().values())

    def _gradients_at_work(self) -> int:
        groups = [stage.sizes() for stage in self._stages]
        return max(rest + max(layers, default=0) for *layers, rest in groups) * self._compute

    def _logits(self) -> int:
        """One micro-batch at work, the others waiting."""
        kept = {number: each.scored() for number, each in self._passes.items()}
        return self._in_flight(kept) - max(kept.values()) + max(each.logits() for each in self._passes.values())

    def _in_flight(self, stored: dict[int, int]) -> int:
        """The most bytes stored at a time, given those of one micro-batch by stage."""
        held, most = 0, 0
        for kind, stage, _ in self._schedule.actions[self.number]:
            if kind is Kind.FORWARD:
                held += stored[stage]
                most = max(most, held)
            elif kind is not Kind.INPUT:
                held -= stored[stage]
        return most

    def _messages(self) -> int:
        """What a rank sent stays with it to the end of the step; of what comes, one of each kind is ahead."""
        if self.layout.pipeline_parallel == 1:
            return 0
        sent = Counter(
            kind
            for other in range(self._schedule.ranks)
            for kind in (Kind.FORWARD, Kind.BACKWARD)
            for _ in self._schedule.messages(self.number, other, kind)
        )
        return (sent.total() + 2) * next(iter(self._passes.values())).message()


def _kinds_of_steps(recipe: Recipe, layout: ResolvedLayout) -> Iterator[tuple[int, int, int]]:
    """The kinds of steps that need most: micro-batches, samples of each, length of a sample.

    More micro-batches of one size never need less, so that of a ramp's many steps the longest of each size is enough.
    """
    for phase in phases(recipe):
        length = phase.sequence_length
        times_shorter = recipe.data.sequence_length // length
        kinds = {layout.micro_batches(size, times_shorter) for size in _batch_sizes(phase)}
        for samples in {samples for _, samples in kinds}:
            yield max(count for count, each in kinds if each == samples), samples, length


def _batch_sizes(phase: Phase) -> list[int]:
    """Those of a ramp too: a smaller batch may be cut into larger micro-batches."""
    sizes = phase.sizes
    if sizes.start is None or sizes.increment is None:
        return [sizes.final]
    return [*range(sizes.start, sizes.final, sizes.increment), sizes.final]
