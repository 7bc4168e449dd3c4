"""What the keys of the data section ask of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_pipeline.order import integer_weights
from ptm_dist.recipe.schema import Recipe


def data_problems(recipe: Recipe) -> Iterator[str]:
    """Data sets named twice or not at all, weights that make no mixture, and options of another objective."""
    data = recipe.data
    if data.path is not None and data.sources:
        yield "data.path and data.sources are both given; keep one of them"
    if data.path is None and not data.sources:
        yield "data.path is missing; name the folder that `ptm data build` wrote, or several in data.sources"
    names = [source.name for source in data.sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"data.sources has {name} twice; give each source a name of its own"
    yield from _weight_problems(recipe)
    yield from _causal_only(recipe)


def _weight_problems(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    if data.sources:
        yield from _unusable("data.sources", [source.weight for source in data.sources])
    before = 1
    for number, change in enumerate(data.weight_changes):
        key = f"data.weight_changes[{number}]"
        if len(change.weights) != len(data.sources):
            yield f"{key} has {len(change.weights)} weights for {len(data.sources)} of data.sources; give one for each"
        else:
            yield from _unusable(key, change.weights)
        if not before < change.from_step <= recipe.training.steps:
            yield (
                f"{key}.from_step={change.from_step} must lie behind step {before} and within "
                f"training.steps={recipe.training.steps}"
            )
        before = change.from_step


def _unusable(key: str, weights: Sequence[float]) -> Iterator[str]:
    try:
        integer_weights(weights)
    except ValueError as error:
        yield f"{key}: {error}"


def _causal_only(recipe: Recipe) -> Iterator[str]:
    objective = recipe.objective
    if objective.kind == "causal":
        return
    for key, value, default in (
        ("packing", objective.packing, "concatenate"),
        ("document_attention", objective.document_attention, False),
    ):
        if value != default:
            yield f"objective.{key}={value} belongs to objective.kind=causal; leave it out with {objective.kind}"
