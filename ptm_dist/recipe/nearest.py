"""Layouts that work, nearest to one that does not."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any

from ptm_dist.recipe.layout import divisors, model_parallel_size, processes
from ptm_dist.recipe.layout_checks import fit_problems, shown
from ptm_dist.recipe.schema import LayoutSection, PipelineSchedule, Recipe, Recompute

Distance = tuple[bool, int, float, tuple[bool, ...]]
"""Whether tensor-parallel ranks would have no attention head; changed keys; how far sizes are from those wanted (sum of
logarithms of ratios); and what decides between equals: which sizes have changed."""

_SIZES = ("data_parallel", "context_parallel", "pipeline_parallel", "tensor_parallel")
_BELONG_TOGETHER = (
    ("zero_stage", "data_parallel_replicate", "offload", "offload_activations", "compile"),
    (
        "pipeline_schedule",
        "pipeline_stages_per_rank",
        "pipeline_split",
        "pipeline_schedule_file",
        "micro_batch_size",
    ),
    ("recompute", "recompute_every"),
    ("sequence_parallel",),
    ("context_method",),
)
"""All other keys, grouped so that a value is right or wrong beside those of its own group."""


def nearest_layouts(recipe: Recipe, world_size: int, count: int = 1) -> list[LayoutSection]:
    """The layouts that can compute a recipe, nearest to its own first.

    A layout is nearer if it changes fewer keys, or as many and its sizes by smaller ratios. Those with more
    tensor-parallel ranks than attention heads come last.

    Args:
        recipe: whose layout does not work, or does.
        world_size: processes of the run; stays as it is.
        count: how many layouts are wanted.

    Returns: as many or fewer, none where only the layout may change and none works. Of each way to multiply sizes to
        the number of processes there is one at most.
    """
    return _Search(recipe, world_size).nearest(count)


def suggestion(recipe: Recipe, world_size: int) -> str:
    """One line: the nearest layout as overrides for the command line, or that there is none."""
    nearest = nearest_layouts(recipe, world_size)
    if not nearest:
        return f"no layout works on {processes(world_size)} as long as the rest of the recipe stays as it is"
    values = {key: getattr(nearest[0], key) for key in _changed(recipe.layout, nearest[0])}
    changes = " ".join(f"layout.{key}={shown(value)}" for key, value in values.items())
    data = world_size // model_parallel_size(nearest[0])
    return f"nearest layout that works on {processes(world_size)}: {changes} (data_parallel {data})"


@dataclass(frozen=True)
class _Search:
    recipe: Recipe
    world_size: int

    @property
    def _wanted(self) -> LayoutSection:
        return self.recipe.layout

    def nearest(self, count: int) -> list[LayoutSection]:
        """See :func:`nearest_layouts`. What sizes alone are away is a lower bound: it ends the search."""
        found: list[tuple[Distance, LayoutSection]] = []
        for bound, sizes in self._all_sizes():
            if len(found) >= count and found[count - 1][0] <= bound:
                break
            layout = self._nearest_of_sizes(sizes)
            if layout is not None:
                insort(found, (self._distance(layout), layout), key=itemgetter(0))
        return [layout for _, layout in found[:count]]

    def _works(self, layout: LayoutSection) -> bool:
        return next(fit_problems(self.recipe, layout, self.world_size), None) is None

    def _distance(self, layout: LayoutSection) -> Distance:
        wanted, changed = self._wanted, _changed(self._wanted, layout)
        ratios = [getattr(layout, key) / getattr(wanted, key) for key in _SIZES if key in changed]
        # Rounded, so that the same ratios in another order are the same distance.
        far = round(sum(abs(math.log(ratio)) for ratio in ratios), 9)
        idle = layout.tensor_parallel > self.recipe.model.num_heads
        return idle, len(changed), far, tuple(key in changed for key in _SIZES)

    def _all_sizes(self) -> list[tuple[Distance, LayoutSection]]:
        """Every way to multiply to the number of processes, nearest first, the other keys as wanted."""
        found = []
        for tensor in divisors(self.world_size):
            for pipeline in divisors(self.world_size // tensor):
                for context in divisors(self.world_size // tensor // pipeline):
                    data = self.world_size // (tensor * pipeline * context)
                    sizes = {
                        "data_parallel": "auto" if self._wanted.data_parallel == "auto" else data,
                        "tensor_parallel": tensor,
                        "pipeline_parallel": pipeline,
                        "context_parallel": context,
                    }
                    layout = self._wanted.model_copy(update=sizes)
                    found.append((self._distance(layout), layout))
        return sorted(found, key=itemgetter(0))

    def _nearest_of_sizes(self, sizes: LayoutSection) -> LayoutSection | None:
        """The layout of these sizes with as many wanted values as can be; None if there is none.

        Begins with a plain layout that works, and brings the wanted values back where they do no harm.
        """
        plain = LayoutSection(micro_batch_size=sizes.micro_batch_size, **{key: getattr(sizes, key) for key in _SIZES})
        layout = self._first_that_works(plain, self._options(("zero_stage",), sizes))
        if layout is None or self._works(sizes):
            return layout and sizes
        for keys in _BELONG_TOGETHER:
            layout = self._first_that_works(layout, self._options(keys, sizes)) or layout
        return layout

    def _first_that_works(self, layout: LayoutSection, changes: Iterable[dict[str, Any]]) -> LayoutSection | None:
        return next(filter(self._works, (layout.model_copy(update=values) for values in changes)), None)

    def _options(self, keys: tuple[str, ...], sizes: LayoutSection) -> Iterator[dict[str, Any]]:
        """Values of some keys, those that change the fewest first."""
        values = product(*(self._alternatives(key, sizes) for key in keys))
        wanted = [getattr(self._wanted, key) for key in keys]

        def changes(combination: tuple[Any, ...]) -> int:
            return sum(value != other for value, other in zip(combination, wanted, strict=True))

        for combination in sorted(values, key=changes):
            yield dict(zip(keys, combination, strict=True))

    def _alternatives(self, key: str, sizes: LayoutSection) -> list[Any]:
        """Values of a key that are worth a try, the wanted one first."""
        wanted, default = getattr(self._wanted, key), LayoutSection.model_fields[key].default
        others: list[Any] = []
        if key == "zero_stage":
            others = sorted(range(4), key=lambda stage: abs(stage - wanted))
        elif key == "micro_batch_size":
            # Fewer micro-batches may suit the table of a schedule.
            return [wanted << doubled for doubled in range(8 if self._wanted.pipeline_schedule_file else 1)]
        elif wanted == default:
            return [wanted]
        elif key == "data_parallel_replicate":
            copies = divisors(self.world_size // model_parallel_size(sizes))
            others = sorted(copies, key=lambda number: abs(math.log(number / wanted)))[:2]
        elif key == "pipeline_schedule":
            others = [default, PipelineSchedule.INTERLEAVED_1F1B]
        elif key == "recompute":
            others = [Recompute.FULL]
        elif key == "offload":
            others = ["optimizer"]
        return list(dict.fromkeys([wanted, *others, default]))


def _changed(wanted: LayoutSection, layout: LayoutSection) -> list[str]:
    before = vars(wanted)
    return [key for key, value in vars(layout).items() if value != before[key]]
