"""What a model family, its objective and the phases of a run ask of each other."""

from __future__ import annotations

from collections.abc import Iterator

from ptm_dist.recipe.schema import Family, Recipe

_CAUSAL = ("causal",)
_PAIRS = ("mlm_nsp", "mlm_sop")
OBJECTIVES = {
    Family.GPT1: _CAUSAL,
    Family.GPT2: _CAUSAL,
    Family.GPT3: _CAUSAL,
    Family.BERT: _PAIRS,
    Family.ROBERTA: ("mlm",),
    Family.ALBERT: tuple(reversed(_PAIRS)),
}
"""What each family's heads can learn, the published one first."""


def family_problems(recipe: Recipe) -> Iterator[str]:
    """Keys that the model's family does not have, and an objective that it has no head for."""
    model, kind = recipe.model, recipe.objective.kind
    suitable = OBJECTIVES[model.family]
    is_causal = suitable == _CAUSAL
    if kind not in suitable:
        families = " or ".join(family for family, kinds in OBJECTIVES.items() if kind in kinds)
        yield (
            f"objective.kind={kind} does not suit model.family={model.family}; use objective.kind="
            f"{' or '.join(suitable)}, or model.family={families}"
        )
    if is_causal and model.embedding_size not in {None, model.hidden_size}:
        yield (
            f"model.embedding_size={model.embedding_size} belongs to bert, roberta and albert; leave it out with "
            f"model.family={model.family}"
        )
    if not is_causal and model.attention_band:
        yield (
            f"model.attention_band={model.attention_band} belongs to gpt1, gpt2 and gpt3; leave it out with "
            f"model.family={model.family}"
        )
    groups = model.layer_groups or 1
    if groups > model.num_layers:
        yield f"model.layer_groups={groups} is more than model.num_layers={model.num_layers}; use at most that many"
    yield from _masking_problems(recipe)


def _masking_problems(recipe: Recipe) -> Iterator[str]:
    objective = recipe.objective
    if objective.kind == "causal":
        return
    if objective.mask_fraction == 0.0:
        yield "objective.mask_fraction=0 leaves nothing to predict; the papers use 0.15"
    if objective.mask_share + objective.random_share > 1.0:
        yield (
            f"objective.mask_share={objective.mask_share} and objective.random_share={objective.random_share} are "
            "more than 1 together; lower one of them"
        )


def phase_problems(recipe: Recipe) -> Iterator[str]:
    """Phases out of order or too long for the model, and a batch size that would shrink."""
    training, end = recipe.training, 0
    for number, phase in enumerate(training.phases):
        key = f"training.phases[{number}]"
        if not end < phase.until_step < training.steps:
            yield (
                f"{key}.until_step={phase.until_step} must lie between {end}, where the phase before ends, and "
                f"training.steps={training.steps}, where the run ends"
            )
        end = phase.until_step
        if phase.sequence_length > recipe.model.max_positions:
            yield (
                f"{key}.sequence_length={phase.sequence_length} is longer than "
                f"model.max_positions={recipe.model.max_positions}; shorten the first or raise the second"
            )
    ramp = training.batch_ramp
    first = training.phases[0].global_batch_size if training.phases else None
    size = first or training.global_batch_size
    if ramp is not None and ramp.start > size:
        yield f"training.batch_ramp.start={ramp.start} is more than the batch size it grows to, {size}; use less"
