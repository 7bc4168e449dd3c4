"""From a recipe to orders: which source and which of its samples each counter of a phase reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order import Mixture, SampleOrder, integer_weights
from data_pipeline.samples import ShardSamples
from data_pipeline.shards import ShardSet
from ptm_dist.recipe.phases import Phase, phases
from ptm_dist.recipe.schema import Recipe

_MAX_CELLS = 65_536


def phase_mixture(recipe: Recipe, phase: Phase) -> Mixture | None:
    """Which source each counter of a phase reads; None with a single one."""
    if len(recipe.data.named_sources) == 1:
        return None
    levels = [(0, integer_weights([source.weight for source in recipe.data.sources]))]
    for change in recipe.data.weight_changes:
        if change.from_step > phase.end_step:
            break
        start = phase.samples_before(change.from_step - 1)
        levels = [level for level in levels if level[0] < start]
        levels.append((start, integer_weights(change.weights)))
    return Mixture(levels)


def samples_of_sources(recipe: Recipe, phase: Phase, step: int) -> NDArray[np.int64]:
    """How many samples of each source a phase has read when the run has done `step` steps, [sources], int64."""
    mixture, count = phase_mixture(recipe, phase), phase.samples_before(step)
    return np.array([count]) if mixture is None else mixture.picked(count)


def source_orders(recipe: Recipe, source: int, shards: ShardSet, samples: Sequence[ShardSamples]) -> list[SampleOrder]:
    """The order of one source in each phase; a later phase begins with what earlier ones have not read.

    Args:
        recipe: names the order and the phases.
        source: number of the source.
        shards: its text.
        samples: what each phase cuts it into.
    """
    parts, places = phases(recipe), _cell_places(recipe, shards)
    orders: list[SampleOrder] = []
    first_cell = 0
    for phase, cut in zip(parts, samples, strict=True):
        cells = None if places is None else np.append(cut.samples_before(places), len(cut))
        order = _order(recipe, source, len(cut), cells, first_cell)
        if phase is not parts[-1]:
            read = int(samples_of_sources(recipe, phase, phase.end_step)[source])
            end_cell = order.cell_after(read)
            order = _order(recipe, source, len(cut), cells, first_cell, end_cell)
            first_cell = end_cell
        orders.append(order)
    return orders


def _order(
    recipe: Recipe,
    source: int,
    num_samples: int,
    cells: NDArray[np.int64] | None,
    first_cell: int,
    end_cell: int | None = None,
) -> SampleOrder:
    data = recipe.data
    return SampleOrder(
        num_samples,
        recipe.training.seed,
        data.named_sources[source].name,
        data.shuffle,
        cells=cells,
        block_cells=data.shuffle_shards,
        first_cell=first_cell,
        end_cell=end_cell,
    )


def _cell_places(recipe: Recipe, shards: ShardSet) -> NDArray[np.int64] | None:
    """Position of each cell's first token; None if all is one cell.

    Cells are shards where shards are shuffled, and where phases follow each other, stretches of equal length that
    hold whole samples of every phase, if their lengths divide each other.
    """
    lengths = [phase.sequence_length for phase in phases(recipe)]
    if recipe.data.shuffle == "block":
        return shards.shard_starts
    if len(lengths) == 1:
        return None
    longest = max(lengths)
    size = longest * max(1, -(-shards.num_tokens // (_MAX_CELLS * longest)))
    return np.arange(0, shards.num_tokens, size, dtype=np.int64)
