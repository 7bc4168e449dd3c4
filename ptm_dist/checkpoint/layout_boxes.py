"""Which boxes the ranks of a layout hold, as arithmetic: no process group and no memory for a model."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

from ptm_dist.models import build_model, model_spec, parameter_shapes
from ptm_dist.parallel.parallelize import StagePlan, plan_stages
from ptm_dist.parallel.shards import chunk_range
from ptm_dist.parallel.tensor import tensor_box
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import ModelSection

Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""First index in each dimension, and shape; a size of 0 where a rank holds nothing of a tensor."""


def boxes_of_layout(section: ModelSection, layout: ResolvedLayout, rank: int) -> dict[str, Box]:
    """What a rank of the native engine holds of every parameter of its stages, by canonical name.

    Args:
        section: of the model.
        layout: of `layout.world_size` ranks.
        rank: one of them.
    """
    return LayoutBoxes(section, layout).of_rank(rank)


class LayoutBoxes:
    """The same for all ranks; arguments as of :func:`boxes_of_layout`."""

    def __init__(self, section: ModelSection, layout: ResolvedLayout) -> None:
        self._spec = model_spec(section)
        self._layout = layout
        self._shapes = parameter_shapes(section)
        plan = plan_stages(section, layout)
        self._names = [_names_of(section, plan, rank) for rank in range(layout.pipeline_parallel)]

    def of_rank(self, rank: int) -> dict[str, Box]:
        """Boxes by canonical name."""
        layout = self._layout
        world = (
            layout.pipeline_parallel,
            layout.replicate,
            layout.shard,
            layout.context_parallel,
            layout.tensor_parallel,
        )
        pipeline, _, shard, context, tensor = (int(place) for place in np.unravel_index(rank, world))
        shards = layout.shard * layout.context_parallel if layout.zero_stage else layout.shard
        index = shard * layout.context_parallel + context if layout.zero_stage else shard
        return {name: self._box(name, tensor, shards, index) for name in self._names[pipeline]}

    def _box(self, name: str, tensor: int, shards: int, shard: int) -> Box:
        offset, shape = tensor_box(name, self._shapes[name], self._spec, self._layout.tensor_parallel, tensor)
        begin, end = chunk_range(shape[0], shards, shard)
        return (offset[0] + begin, *offset[1:]), (end - begin, *shape[1:])


def _names_of(section: ModelSection, plan: StagePlan, rank: int) -> list[str]:
    with torch.device("meta"):
        parts = [build_model(section, plan.parts[stage]) for stage in plan.of_rank(rank)]
    return list(dict.fromkeys(name for part in parts for name in part.parameter_names().values()))
