"""Memory of one rank in closed form: weights, gradients, optimizer state and activations of a layout.

What torch's allocator keeps on top, and buffers of collectives, are not included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ptm_dist.models import model_spec, parameter_shapes
from ptm_dist.models.spec import ModelSpec
from ptm_dist.optim.build import slot_names
from ptm_dist.parallel.tensor import tensor_box
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.phases import Phase, phases
from ptm_dist.recipe.schema import Precision, Recipe
from ptm_dist.training.activations import COMPUTE_BYTES, MASTER_BYTES, ForwardPass
from ptm_dist.training.flops import predictions_per_sample

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the fullest rank, by part.

    Attributes:
        weights: what the optimizer updates: float32, or float64 at fp64.
        whole_weights: what ZeRO gathers for the computation, in the precision of the step.
        gradients: sharded and whole ones together, at their most.
        optimizer: its state: two moments, or one of sgd.
        activations: stored by one micro-batch for its backward pass.
        logits: of one micro-batch: the head's output, its wide copy and the probabilities.
    """

    weights: int
    whole_weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.whole_weights + self.gradients + self.optimizer + self.activations + self.logits


def estimate_memory(recipe: Recipe, layout: ResolvedLayout) -> MemoryEstimate:
    """Bytes of each part on the fullest rank, in the steps that need most; allocates nothing.

    Args:
        recipe: gives model, objective, optimizer, precision, and the batch sizes and lengths of its phases.
        layout: how they are shared.
    """
    groups = _Groups.of(recipe, layout)
    master = MASTER_BYTES[recipe.training.precision]
    estimates = [
        MemoryEstimate(
            weights=groups.local * master,
            whole_weights=_whole_weights(groups, recipe, layout),
            gradients=_gradients(groups, recipe, layout, accumulates=count > 1),
            optimizer=len(slot_names(recipe.optimizer)) * groups.local * master,
            activations=forward.activations(),
            logits=forward.logits(),
        )
        for count, forward in _forward_passes(recipe, layout)
    ]
    return max(estimates, key=lambda estimate: estimate.total)


def tensor_shard(name: str, shape: tuple[int, ...], spec: ModelSpec, layout: ResolvedLayout) -> tuple[int, ...]:
    """Shape of the first tensor-parallel rank's part, the largest."""
    return tensor_box(name, shape, spec, layout.tensor_parallel, 0)[1]


def zero_shard(shape: tuple[int, ...], layout: ResolvedLayout) -> tuple[int, ...]:
    """Shape of the first ZeRO rank's rows of a tensor-parallel part; also the largest."""
    return (-(-shape[0] // layout.shard), *shape[1:])


def _uses_fsdp(recipe: Recipe, layout: ResolvedLayout) -> bool:
    """A rank alone with its data, in one precision, trains the plain module."""
    return layout.data_parallel > 1 or recipe.training.precision in {Precision.BF16, Precision.FP16}


@dataclass(frozen=True)
class _Groups:
    """Elements that a rank holds and gathers.

    Attributes:
        local: of this rank's shards.
        rest: of the group that is whole from the first use to the last: tied weights, shared blocks, all ends.
        layers: of each group that is gathered and reduced by itself.
    """

    local: int
    rest: int
    layers: tuple[int, ...]

    @classmethod
    def of(cls, recipe: Recipe, layout: ResolvedLayout) -> _Groups:
        spec = model_spec(recipe.model)
        whole = parameter_shapes(recipe.model)
        shapes = {name: tensor_shard(name, shape, spec, layout) for name, shape in whole.items()}
        rest = 0
        layers: dict[str, int] = {}
        for name, shape in shapes.items():
            section, layer, *_ = name.split(".")
            if section == "layers" and spec.layer_groups == spec.num_layers:
                layers[layer] = layers.get(layer, 0) + math.prod(shape)
            else:
                rest += math.prod(shape)
        local = sum(math.prod(zero_shard(shape, layout)) for shape in shapes.values())
        return cls(local, rest, tuple(layers.values()))


def _whole_weights(groups: _Groups, recipe: Recipe, layout: ResolvedLayout) -> int:
    """Copies beside the shards: of all layers at stages 0 to 2, of the one at work and the next at stage 3.

    FSDP2 makes them even where one rank holds all.
    """
    if not _uses_fsdp(recipe, layout):
        return 0
    kept = sum(sorted(groups.layers)[-2:]) if layout.zero_stage == 3 else sum(groups.layers)
    return (groups.rest + kept) * COMPUTE_BYTES[recipe.training.precision]


def _gradients(groups: _Groups, recipe: Recipe, layout: ResolvedLayout, *, accumulates: bool) -> int:
    """Gradients in the master format, and those of the group at work before they are reduced.

    Stages 0 and 1 accumulate whole gradients over several micro-batches: a group's shard takes its place when the
    last one reduces it. With one micro-batch, and at stages 2 and 3, there are shards only.
    """
    master = MASTER_BYTES[recipe.training.precision]
    if not _uses_fsdp(recipe, layout):
        return groups.local * master
    at_work = (groups.rest + max(groups.layers, default=0)) * COMPUTE_BYTES[recipe.training.precision]
    keeps_whole = layout.zero_stage <= 1 and accumulates
    return (groups.rest + sum(groups.layers) if keeps_whole else groups.local) * master + at_work


def _forward_passes(recipe: Recipe, layout: ResolvedLayout) -> Iterator[tuple[int, ForwardPass]]:
    """Every kind of micro-batch in a run, and how many of it a step has."""
    for phase in phases(recipe):
        length = phase.sequence_length
        predictions = predictions_per_sample(recipe, length)
        times_shorter = recipe.data.sequence_length // length
        for count, samples in {layout.micro_batches(size, times_shorter) for size in _batch_sizes(phase)}:
            yield count, ForwardPass(recipe, layout, samples, length, predictions)


def _batch_sizes(phase: Phase) -> list[int]:
    """Those of a ramp too: a smaller batch may be cut into larger micro-batches."""
    sizes = phase.sizes
    if sizes.start is None or sizes.increment is None:
        return [sizes.final]
    return [*range(sizes.start, sizes.final, sizes.increment), sizes.final]
