"""What a run has read up to a step, as arithmetic over its recipe: equal for recipes that may go on from each other."""

from __future__ import annotations

from typing import Any

from data_pipeline.order import integer_weights
from ptm_dist.recipe.phases import phases
from ptm_dist.recipe.schema import Recipe


def read_until(recipe: Recipe, step: int) -> dict[str, Any]:
    """What decides which samples the first `step` steps read; later phases, weights and batch sizes play no part."""
    data = recipe.data
    parts = [phase for phase in phases(recipe) if phase.first_step < step]
    # All samples that a phase takes from its last epoch are shuffled together, so that its planned end matters.
    last = phases(recipe)[-1].number
    ends = [phase.end_step if data.shuffle == "global" and phase.number != last else None for phase in parts]
    return {
        "seed": recipe.training.seed,
        "shuffle": (data.shuffle, data.shuffle_shards if data.shuffle == "block" else None),
        "sources": [source.name for source in data.named_sources],
        "phases": [
            (phase.first_step, phase.sequence_length, phase.samples_before(step), end)
            for phase, end in zip(parts, ends, strict=True)
        ],
        "weights": _weights_until(recipe, step),
    }


def _weights_until(recipe: Recipe, step: int) -> list[tuple[int, tuple[int, ...]]]:
    sources = recipe.data.named_sources
    levels = [(1, integer_weights([source.weight for source in sources]))]
    changes = [change for change in recipe.data.weight_changes if change.from_step <= step]
    levels += [(change.from_step, integer_weights(change.weights)) for change in changes]
    return [level for level, before in zip(levels, [(0, ()), *levels], strict=False) if level[1] != before[1]]
