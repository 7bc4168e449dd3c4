"""What one rank of a layout holds: its stages, their parameters, and its share of a sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

from ptm_dist.models import model_spec
from ptm_dist.models.model import LanguageModel, Part
from ptm_dist.models.spec import ModelSpec
from ptm_dist.parallel.shards import balanced_range, chunk_range
from ptm_dist.parallel.stages import stage_parts
from ptm_dist.parallel.tensor import tensor_box
from ptm_dist.parallel.zigzag import chunk_ranges
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import ModelSection, Recompute

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """Where a rank stands in a layout; the first one of each kind holds as much as any other.

    Attributes:
        pipeline: its rank in the pipeline.
        context: among the ranks that share a sequence.
        tensor: among the ranks that share each matrix.
    """

    pipeline: int = 0
    context: int = 0
    tensor: int = 0

    @classmethod
    def of(cls, layout: ResolvedLayout, rank: int) -> Place:
        """That of a rank of the world."""
        rest, tensor = divmod(rank, layout.tensor_parallel)
        context = rest % layout.context_parallel
        return cls(rank // (layout.world_size // layout.pipeline_parallel), context, tensor)


@dataclass(frozen=True)
class StageHoldings:
    """One stage on a rank, before ZeRO splits it.

    Attributes:
        number: of the stage.
        part: its layers.
        groups: parameters by name in the whole model and shape on this rank, by what ZeRO gathers at a time: each
            layer, and last all the rest.
    """

    number: int
    part: Part
    groups: tuple[Shapes, ...]

    def shapes(self) -> Shapes:
        """Of all groups."""
        return {name: shape for group in self.groups for name, shape in group.items()}

    def in_order(self) -> Shapes:
        """Of all groups, as the module names them: embeddings, layers, heads; a tied head without embeddings last."""
        order = {"embeddings": 0 if self.part.first == 0 else 2, "layers": 1}
        shapes = self.shapes()
        return {name: shapes[name] for name in sorted(shapes, key=lambda name: order.get(name.split(".")[0], 2))}

    def sizes(self) -> list[int]:
        """Elements of each group."""
        return [sum(math.prod(shape) for shape in group.values()) for group in self.groups]


def splits_backward(layout: ResolvedLayout, stage: StageHoldings) -> bool:
    """Whether a stage has backward passes in two halves, if the schedule has."""
    each_once = len(stage.groups) > stage.part.end - stage.part.first
    return each_once and layout.recompute is Recompute.NONE and not layout.compile


def stages_of(
    section: ModelSection, layout: ResolvedLayout, rank_of: tuple[int, ...], place: Place
) -> tuple[StageHoldings, ...]:
    """The stages of a rank in order.

    Args:
        section: the model.
        layout: how it is shared.
        rank_of: pipeline rank of each stage.
        place: of the rank.
    """
    return _stages_of(model_spec(section), layout, rank_of, place)


@cache
def _stages_of(
    spec: ModelSpec, layout: ResolvedLayout, rank_of: tuple[int, ...], place: Place
) -> tuple[StageHoldings, ...]:
    shapes = {
        name: tensor_box(name, shape, spec, layout.tensor_parallel, place.tensor)[1]
        for name, shape in _whole_shapes(spec).items()
    }
    return tuple(
        StageHoldings(number, part, _groups(shapes, part, spec))
        for number, part in enumerate(parts_of(spec, layout.num_stages, layout.pipeline_split))
        if rank_of[number] == place.pipeline
    )


@cache
def parts_of(spec: ModelSpec, stages: int, split: tuple[int, ...] | None) -> tuple[Part, ...]:
    """The layers of each stage."""
    return tuple(stage_parts(spec, stages, split=split))


@cache
def _whole_shapes(spec: ModelSpec) -> Shapes:
    with torch.device("meta"):
        model = LanguageModel(spec)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count_parameters(section: ModelSection, part: Part) -> int:
    """Elements of the parameters that a part of a model holds, on all ranks that share its matrices together."""
    spec = model_spec(section)
    return sum(math.prod(shape) for group in _groups(_whole_shapes(spec), part, spec) for shape in group.values())


def _groups(shapes: Shapes, part: Part, spec: ModelSpec) -> tuple[Shapes, ...]:
    """Those of a part, layer by layer; in one if layers share blocks."""
    blocks = sorted({spec.group_of(layer) for layer in range(part.first, part.end)})
    layers = [{name: s for name, s in shapes.items() if name.startswith(f"layers.{block}.")} for block in blocks]
    rest = {name: shape for name, shape in shapes.items() if _stands_in(name, part, spec)}
    if len(blocks) < part.end - part.first:
        return ({name: shape for group in (*layers, rest) for name, shape in group.items()},)
    return (*layers, rest)


def _stands_in(name: str, part: Part, spec: ModelSpec) -> bool:
    """Whether a parameter outside the layers belongs to a part."""
    is_last = part.end == spec.num_layers
    if name.startswith(("head.", "pair_head.")):
        return is_last
    shared = is_last and spec.tie_embeddings and name == "embeddings.token.weight"
    return name.startswith("embeddings.") and (part.first == 0 or shared)


def zero_ranks(layout: ResolvedLayout) -> tuple[int, int]:
    """Between how many ranks ZeRO splits the state, and how many hold the same shard of it.

    Context ranks count as data-parallel ones.
    """
    if layout.zero_stage:
        return layout.shard * layout.context_parallel, layout.replicate
    return layout.shard, layout.replicate * layout.context_parallel


def first_shard(shape: tuple[int, ...], shards: int) -> int:
    """Elements of a parameter on the first ZeRO rank, which has the most."""
    begin, end = chunk_range(shape[0], shards, 0)
    return (end - begin) * math.prod(shape[1:])


def padded(shape: tuple[int, ...], shards: int) -> int:
    """Elements of a parameter as collectives carry it: every rank's shard as large as the first one's."""
    return first_shard(shape, shards) * shards


@dataclass(frozen=True)
class Positions:
    """How many positions of a sample a rank works on.

    Attributes:
        length: of the sample.
        here: of this context rank.
        own: of them, between the matrices, this tensor-parallel rank's.
        sent: as many as the first tensor-parallel rank has, times ranks: what travels between them.
    """

    length: int
    here: int
    own: int
    sent: int


def positions_of(layout: ResolvedLayout, length: int, place: Place) -> Positions:
    """A rank's share of samples of `length` positions."""
    here = length_here(layout, length, place.context)
    if not layout.sequence_parallel:
        return Positions(length, here, here, here)
    begin, end = balanced_range(here, layout.tensor_parallel, place.tensor)
    most = -(-here // layout.tensor_parallel)
    return Positions(length, here, end - begin, most * layout.tensor_parallel)


def length_here(layout: ResolvedLayout, length: int, context_rank: int) -> int:
    """Positions of a sample on a context rank."""
    return sum(map(len, chunk_ranges(length, layout.context_parallel, context_rank)))


def heads_of(spec: ModelSpec, ranks: int, rank: int) -> int:
    """Attention heads of one of several ranks."""
    begin, end = balanced_range(spec.block.num_heads, ranks, rank)
    return end - begin


def recomputed(layout: ResolvedLayout, part: Part) -> Iterator[bool]:
    """Layer by layer of a part, whether it is recomputed in the backward pass."""
    for layer in range(part.first, part.end):
        yield layout.recompute is not Recompute.NONE and layer % layout.recompute_every == 0
