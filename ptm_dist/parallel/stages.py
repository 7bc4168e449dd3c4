"""Which layers each pipeline stage holds: stages of about equal cost, or as the recipe says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from ptm_dist.errors import LayoutError

if TYPE_CHECKING:
    from ptm_dist.models.model import Part
    from ptm_dist.models.spec import ModelSpec


def stage_parts(
    spec: ModelSpec,
    stages: int,
    *,
    split: tuple[int, ...] | None = None,
    sequence_length: int | None = None,
    predictions: int | None = None,
) -> list[Part]:
    """Cut a model into parts of consecutive layers, at least one in each.

    The costliest part is as cheap as can be; among such cuts parts are as even as can be (least sum of squares), and
    among these earlier parts, which hold more micro-batches at a time, have fewer layers.

    Args:
        spec: of the model.
        stages: how many parts.
        split: first layer of every part but the first, ascending; None: parts of about equal cost.
        sequence_length: tokens of a sample; None: the longest that the model has positions for.
        predictions: tokens predicted in a sample; None: all in a causal model, else 15 percent.

    Returns: the parts in order.
    Raises: LayoutError for what :func:`split_problems` reports.
    """
    from ptm_dist.models.model import Part

    problems = list(split_problems(spec.num_layers, stages, split))
    if problems:
        raise LayoutError("\n".join(problems))
    if split is None:
        length = sequence_length or spec.embedding.max_positions
        predicted = predictions or (length if spec.block.causal else max(1, round(0.15 * length)))
        split = balanced_split(stage_costs(spec, length, predicted), stages)
    return [Part(first, end) for first, end in pairwise((0, *split, spec.num_layers))]


def split_problems(layers: int, stages: int, split: tuple[int, ...] | None) -> Iterator[str]:
    """Why a model cannot be cut so, each with what to use instead.

    Args:
        layers: of the model.
        stages: of the pipeline.
        split: first layer of every stage but the first; None: not given.
    """
    if layers < stages:
        yield (
            f"model.num_layers={layers} is too few for the {stages} stages of the pipeline, which need a layer each; "
            f"use layout.pipeline_parallel and layout.pipeline_stages_per_rank with a product of at most {layers}"
        )
        return
    if split is None:
        return
    fitting = [round(layers * stage / stages) for stage in range(1, stages)]
    use = "leave it out" + (f", or use for example {_listed(fitting)}" if fitting else "")
    if len(split) != stages - 1:
        yield (
            f"layout.pipeline_split={_listed(split)} starts {len(split) + 1} stages, the pipeline has {stages}; {use}"
        )
    elif any(later <= earlier for earlier, later in pairwise((0, *split, layers))):
        yield (
            f"layout.pipeline_split={_listed(split)} leaves a stage without layers: first layers must ascend "
            f"and lie between 1 and {layers - 1}; {use}"
        )


def _listed(numbers: Sequence[int]) -> str:
    return f"[{', '.join(map(str, numbers))}]"


def stage_costs(spec: ModelSpec, sequence_length: int, predictions: int) -> list[int]:
    """Multiply-adds of one sample's forward pass by layer, exact: matrix products and attention, no lookups.

    The first layer bears what stands before it, the last one the heads.

    Args:
        spec: of the model.
        sequence_length: tokens of the sample.
        predictions: of them, how many the head over the vocabulary predicts.
    """
    hidden, width, length = spec.block.hidden_size, spec.embedding.size, sequence_length
    matrices = length * (4 * hidden * hidden + 2 * hidden * spec.block.ffn_hidden_size)
    costs = [matrices + hidden * _seen_twice(spec, layer, length) for layer in range(spec.num_layers)]
    if width != hidden:
        costs[0] += length * width * hidden
    costs[-1] += predictions * width * spec.embedding.vocab_size
    if not spec.block.causal:
        costs[-1] += predictions * hidden * width
    if spec.pair_head:
        costs[-1] += hidden * hidden + 2 * hidden
    return costs


def _seen_twice(spec: ModelSpec, layer: int, length: int) -> int:
    """Twice the pairs of positions of which one sees the other: all, or a triangle cut off where a band ends."""
    if not spec.block.causal:
        return 2 * length * length
    band = min(spec.band_of(layer) or length, length)
    return 2 * length * band - band * band


def balanced_split(costs: Sequence[int], stages: int) -> tuple[int, ...]:
    """First layer of every stage but the first; the order of preference is that of :func:`stage_parts`.

    Args:
        costs: of each layer, at least one for every stage.
        stages: how many.
    """
    before = [0, *accumulate(costs)]
    layers = len(costs)

    @cache
    def cheapest(first: int, left: int) -> int:
        """The least that the costliest of the stages from a layer on can cost."""
        if left == 1:
            return before[layers] - before[first]
        ends = range(first + 1, layers - left + 2)
        return min(max(before[end] - before[first], cheapest(end, left - 1)) for end in ends)

    limit = cheapest(0, stages)

    @cache
    def evenest(first: int, left: int) -> tuple[int, tuple[int, ...]] | None:
        """Least sum of squares within the limit, with the ends of the stages that give it."""
        if left == 1:
            cost = before[layers] - before[first]
            return (cost * cost, (layers,)) if cost <= limit else None
        found = []
        for end in range(first + 1, layers - left + 2):
            cost = before[end] - before[first]
            rest = evenest(end, left - 1) if cost <= limit else None
            if rest is not None:
                found.append((cost * cost + rest[0], (end, *rest[1])))
        return min(found, default=None)

    best = evenest(0, stages)
    assert best is not None, "the limit is the cost of a cut"
    return best[1][:-1]
