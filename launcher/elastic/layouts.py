"""The layout for the processes that there are: what the recipe asks for, as far as it goes.

Ranks that share a layer or a sequence stay as many, since memory and speed were planned for them; copies of the data
parallelism go. The global batch stays: the copies that are left take more micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from ptm_dist.errors import LayoutError
from ptm_dist.recipe.layout import divisors, model_parallel_size, processes, resolve_layout
from ptm_dist.recipe.layout_checks import fit_problems
from ptm_dist.recipe.nearest import nearest_layouts
from ptm_dist.recipe.schema import LayoutSection, Recipe
from ptm_dist.training.memory import estimate_memory

_GIB = float(1 << 30)
_NEAREST = 12
"""Layouts to try for a number of processes: the nearest ones may all need more memory than there is."""


@dataclass(frozen=True)
class Fit:
    """A recipe at a layout that works, and how many processes it takes."""

    recipe: Recipe
    world_size: int

    @property
    def layout(self) -> str:
        """In words."""
        return resolve_layout(self.recipe.layout, self.world_size).describe()


def fit(recipe: Recipe, available: int, device_memory: int | None = None) -> Fit:
    """The recipe at the layout that makes most of the processes there are.

    Args:
        recipe: as the user wrote it: its layout is for the whole world.
        available: processes that could run.
        device_memory: bytes of each one's device; layouts whose estimate is more are passed over. None: unknown.

    Raises: LayoutError if no layout works on so many processes or fewer.
    """
    size = model_parallel_size(recipe.layout)
    for world_size in range(available - available % size, 0, -size):
        found = _with_layout(recipe, _fewer_copies(recipe.layout, world_size // size), world_size, device_memory)
        if found is not None:
            return found
    for world_size in range(available, 0, -1):
        for layout in nearest_layouts(recipe, world_size, count=_NEAREST):
            found = _with_layout(recipe, layout, world_size, device_memory)
            if found is not None:
                return found
    limit = f" within {device_memory / _GIB:.1f} GiB each" if device_memory is not None else ""
    raise LayoutError(
        f"no layout of {recipe.name} works on {processes(available)}{limit}; bring more, or lower layout."
        "micro_batch_size, or set layout.recompute=full"
    )


def _fewer_copies(layout: LayoutSection, data_parallel: int) -> LayoutSection:
    """The same layout with other data parallelism: copies of ZeRO's shards as many as go, up to those asked for."""
    replicate = max(number for number in divisors(data_parallel) if number <= layout.data_parallel_replicate)
    return layout.model_copy(update={"data_parallel": "auto", "data_parallel_replicate": replicate})


def _with_layout(recipe: Recipe, layout: LayoutSection, world_size: int, device_memory: int | None) -> Fit | None:
    if any(fit_problems(recipe, layout, world_size)):
        return None
    resolved = resolve_layout(layout, world_size)
    if device_memory is not None and estimate_memory(recipe, resolved).total > device_memory:
        return None
    return Fit(recipe.model_copy(update={"layout": layout}).written_at(recipe.places), world_size)
