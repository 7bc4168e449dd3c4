"""Memory of one rank in closed form: weights, gradients, optimizer state and activations of a layout.

What torch's allocator keeps on top, and buffers of collectives, are not included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ptm_dist.models import build_model
from ptm_dist.parallel.tensor import split_dimension
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Precision, Recipe, Recompute

Shapes = Mapping[str, tuple[int, ...]]

_MASTER_BYTES = {Precision.FP32: 4, Precision.BF16: 4, Precision.FP64: 8}
_COMPUTE_BYTES = {Precision.FP32: 4, Precision.BF16: 2, Precision.FP64: 8}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the fullest rank, by part.

    Attributes:
        weights: what the optimizer updates: float32, or float64 at fp64.
        whole_weights: what ZeRO gathers for the computation, in the precision of the step.
        gradients: sharded and whole ones together, at their most.
        optimizer: AdamW's two moments.
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
    """Bytes of each part on the fullest rank; allocates nothing.

    Args:
        recipe: gives model, sequence length and precision.
        layout: how they are shared.
    """
    shapes = parameter_shapes(recipe)
    tensor_local = {name: tensor_shard(name, shape, layout) for name, shape in shapes.items()}
    local = sum(math.prod(zero_shard(shape, layout)) for shape in tensor_local.values())
    master = _MASTER_BYTES[recipe.training.precision]
    return MemoryEstimate(
        weights=local * master,
        whole_weights=_whole_weights(tensor_local, recipe, layout),
        gradients=_gradients(tensor_local, local, recipe, layout),
        optimizer=2 * local * master,
        activations=_activations(recipe, layout),
        logits=_logits(recipe, layout),
    )


def parameter_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Shapes of the whole model by canonical name, tied parameters once."""
    with torch.device("meta"):
        model = build_model(recipe.model)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def tensor_shard(name: str, shape: tuple[int, ...], layout: ResolvedLayout) -> tuple[int, ...]:
    """Shape of the first tensor-parallel rank's part: chunks are cut by ceiling, so the first is the largest."""
    dimension = split_dimension(name)
    if dimension is None:
        return shape
    cut = -(-shape[dimension] // layout.tensor_parallel)
    return (*shape[:dimension], cut, *shape[dimension + 1 :])


def zero_shard(shape: tuple[int, ...], layout: ResolvedLayout) -> tuple[int, ...]:
    """Shape of the first ZeRO rank's rows of a tensor-parallel part; also the largest."""
    return (-(-shape[0] // layout.shard), *shape[1:])


def _uses_fsdp(recipe: Recipe, layout: ResolvedLayout) -> bool:
    """A rank alone with its data, in one precision, trains the plain module."""
    return layout.data_parallel > 1 or recipe.training.precision is Precision.BF16


def _group_sizes(tensor_local: Shapes) -> tuple[int, list[int]]:
    """Elements outside the layers, and of each layer: the groups that are gathered and reduced together."""
    rest = 0
    layers: dict[str, int] = {}
    for name, shape in tensor_local.items():
        section, layer, *_ = name.split(".")
        if section == "layers":
            layers[layer] = layers.get(layer, 0) + math.prod(shape)
        else:
            rest += math.prod(shape)
    return rest, list(layers.values())


def _whole_weights(tensor_local: Shapes, recipe: Recipe, layout: ResolvedLayout) -> int:
    """Copies beside the shards: of all layers at stages 0 to 2, of the one at work and the next at stage 3.

    FSDP2 makes them even where one rank holds all.
    """
    if not _uses_fsdp(recipe, layout):
        return 0
    rest, layers = _group_sizes(tensor_local)
    kept = sum(sorted(layers)[-2:]) if layout.zero_stage == 3 else sum(layers)
    return (rest + kept) * _COMPUTE_BYTES[recipe.training.precision]


def _gradients(tensor_local: Shapes, local: int, recipe: Recipe, layout: ResolvedLayout) -> int:
    """Gradients in the master format, and those of the group at work before they are reduced.

    Stages 0 and 1 accumulate whole gradients over several micro-batches: a group's shard takes its place when the
    last one reduces it. With one micro-batch, and at stages 2 and 3, there are shards only.
    """
    master = _MASTER_BYTES[recipe.training.precision]
    if not _uses_fsdp(recipe, layout):
        return local * master
    rest, layers = _group_sizes(tensor_local)
    at_work = (rest + max(layers)) * _COMPUTE_BYTES[recipe.training.precision]
    micro_batches, _ = layout.micro_batches(recipe.training.global_batch_size)
    keeps_whole = layout.zero_stage <= 1 and micro_batches > 1
    return (rest + sum(layers) if keeps_whole else local) * master + at_work


def _micro_batch_tokens(recipe: Recipe, layout: ResolvedLayout) -> int:
    _, samples = layout.micro_batches(recipe.training.global_batch_size)
    return samples * recipe.data.sequence_length


def _activations(recipe: Recipe, layout: ResolvedLayout) -> int:
    """What autograd stores for the backward pass of one micro-batch, logits apart.

    Per token and block, in numbers of width h (hidden) and f (feed-forward), t tensor-parallel ranks:
    residual stream before each LayerNorm 2h, its outputs 2h, query, key, value 3h/t, mixed values h/t, the
    feed-forward before and after the nonlinearity 2f/t. Sequence parallelism divides the residual stream
    by t too; the gathered inputs of the matrices stay whole. Full recomputation keeps h (h/t) per block and
    one block at work. Token and position ids, LayerNorm's mean and deviation and attention's logsumexp come on top.
    Compare Korthikanti et al. 2022 (arXiv 2205.05198), equation 1, which has dropout masks and materialised scores too.
    """
    model, tensor = recipe.model, layout.tensor_parallel
    hidden = model.hidden_size
    ffn = -(-model.ffn_width // tensor)
    compute = _COMPUTE_BYTES[recipe.training.precision]
    wide = _MASTER_BYTES[recipe.training.precision]
    tokens = _micro_batch_tokens(recipe, layout)
    positions = tokens // tensor if layout.sequence_parallel else tokens
    stream = positions * hidden * compute
    statistics = positions * 2 * wide
    inside = tokens * (compute * (2 * hidden + 4 * hidden // tensor + 2 * ffn) + wide * (model.num_heads // tensor))
    block = 2 * (stream + statistics) + inside
    ends = stream + statistics + tokens * (hidden * compute + 8) + recipe.data.sequence_length * 8
    if layout.recompute is Recompute.FULL:
        return model.num_layers * stream + block + ends
    return model.num_layers * block + ends


def _logits(recipe: Recipe, layout: ResolvedLayout) -> int:
    """Head output in the step's format, a float32 copy where that is narrower, probabilities, their gradient."""
    columns = -(-recipe.model.vocab_size // layout.tensor_parallel)
    tokens = _micro_batch_tokens(recipe, layout)
    compute = _COMPUTE_BYTES[recipe.training.precision]
    wide = max(compute, 4)
    copy = wide if compute < wide else 0
    return tokens * columns * (compute + copy + 2 * wide)
