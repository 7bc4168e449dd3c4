"""Values that are fine alone and wrong together: checked before any process group or tensor exists."""

from __future__ import annotations

from collections.abc import Iterator

from ptm_dist.errors import LayoutError, RecipeError
from ptm_dist.recipe.data_checks import data_problems
from ptm_dist.recipe.family_checks import family_problems, phase_problems
from ptm_dist.recipe.health_checks import health_problems
from ptm_dist.recipe.layout import either, near_divisors
from ptm_dist.recipe.layout_checks import fit_problems, shown
from ptm_dist.recipe.nearest import suggestion
from ptm_dist.recipe.places import with_places
from ptm_dist.recipe.schema import Precision, Recipe


def check_recipe(recipe: Recipe, world_size: int, tokenizer_vocab_size: int | None) -> None:
    """Refuse a recipe whose values contradict each other.

    Args:
        recipe: as loaded.
        world_size: processes of the run.
        tokenizer_vocab_size: ids of the tokenizer, or None if there is none to compare with.

    Raises:
        LayoutError: if only the layout is wrong.
        RecipeError: if anything else is; either way one message with all problems, a line each, that says
            which values clash, where they were written, and what to use instead. A last line names the nearest
            layout that works, if the layout does not.
    """
    learning = [
        *_model_problems(recipe, tokenizer_vocab_size),
        *family_problems(recipe),
        *_schedule_problems(recipe),
        *phase_problems(recipe),
        *data_problems(recipe),
        *health_problems(recipe),
        *_engine_problems(recipe),
    ]
    layout = list(fit_problems(recipe, recipe.layout, world_size))
    if not learning and not layout:
        return
    lines = [with_places(problem, recipe.places) for problem in dict.fromkeys([*learning, *layout])]
    if layout:
        lines.append(suggestion(recipe, world_size))
    raise (RecipeError if learning else LayoutError)("\n".join(lines))


def _model_problems(recipe: Recipe, tokenizer_vocab_size: int | None) -> Iterator[str]:
    model, data = recipe.model, recipe.data
    if model.hidden_size % model.num_heads:
        yield (
            f"model.num_heads={model.num_heads} does not divide model.hidden_size={model.hidden_size}; "
            f"use {either(near_divisors(model.hidden_size, model.num_heads))} heads"
        )
    if data.sequence_length > model.max_positions:
        yield (
            f"data.sequence_length={data.sequence_length} is longer than "
            f"model.max_positions={model.max_positions}; shorten the first or raise the second"
        )
    if tokenizer_vocab_size is not None and tokenizer_vocab_size > model.vocab_size:
        yield (
            f"model.vocab_size={model.vocab_size} is smaller than the vocabulary of the tokenizer "
            f"{data.tokenizer} ({tokenizer_vocab_size}); use model.vocab_size={tokenizer_vocab_size} or more"
        )


def _schedule_problems(recipe: Recipe) -> Iterator[str]:
    schedule, training = recipe.schedule, recipe.training
    end = schedule.decay_steps or training.steps
    if schedule.warmup_steps > end:
        key = "schedule.decay_steps" if schedule.decay_steps else "training.steps"
        yield (
            f"schedule.warmup_steps={schedule.warmup_steps} is more than {key}={end}: "
            f"the warmup would never end; use at most {end}"
        )
    for index, beta in enumerate(recipe.optimizer.betas):
        if beta == 1.0:
            yield f"optimizer.betas[{index}]=1 would keep the moment at 0 for ever; use a value below 1"


def _engine_problems(recipe: Recipe) -> Iterator[str]:
    """A number format that the engine does not have, and keys of engines that do not run."""
    if recipe.engine == "native" and recipe.training.precision is Precision.FP16:
        yield (
            "training.precision=fp16 needs a loss scale, which engine=native does not have; use "
            "training.precision=bf16, or engine=deepspeed"
        )
    if recipe.engine == "megatron" and (recipe.model.dropout or recipe.model.attention_dropout):
        yield (
            "model.dropout with engine=megatron would be drawn by Megatron-Core, otherwise at each layout; use "
            "engine=native or engine=deepspeed, or model.dropout=0"
        )
    if recipe.engine == "deepspeed":
        return
    for key, field in type(recipe.deepspeed).model_fields.items():
        if (value := getattr(recipe.deepspeed, key)) != field.default:
            yield (
                f"deepspeed.{key}={shown(value)} has no effect with engine={recipe.engine}; leave it out, or use "
                "engine=deepspeed"
            )
