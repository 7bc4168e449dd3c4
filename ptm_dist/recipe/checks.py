"""Values that are fine alone and wrong together: checked before any process group or tensor exists."""

from __future__ import annotations

from collections.abc import Iterator

from ptm_dist.errors import LayoutError, RecipeError
from ptm_dist.recipe.data_checks import data_problems
from ptm_dist.recipe.family_checks import family_problems, phase_problems
from ptm_dist.recipe.layout import divisors, either, layout_problems, model_parallel_size
from ptm_dist.recipe.schema import Recipe


def check_recipe(recipe: Recipe, world_size: int, tokenizer_vocab_size: int | None) -> None:
    """Refuse a recipe whose values contradict each other.

    Args:
        recipe: as loaded.
        world_size: processes of the run.
        tokenizer_vocab_size: ids of the tokenizer, or None if there is none to compare with.

    Raises:
        LayoutError: if only the layout is wrong.
        RecipeError: if anything else is; either way one message with all problems, a line each, that says
            which values clash and what to use instead.
    """
    learning = [
        *_model_problems(recipe, tokenizer_vocab_size),
        *family_problems(recipe),
        *_schedule_problems(recipe),
        *phase_problems(recipe),
        *data_problems(recipe),
    ]
    layout = [*layout_problems(recipe.layout, world_size), *_split_problems(recipe, world_size)]
    if learning:
        raise RecipeError("\n".join([*learning, *layout]))
    if layout:
        raise LayoutError("\n".join(layout))


def _model_problems(recipe: Recipe, tokenizer_vocab_size: int | None) -> Iterator[str]:
    model, data = recipe.model, recipe.data
    if model.hidden_size % model.num_heads:
        yield (
            f"model.num_heads={model.num_heads} does not divide model.hidden_size={model.hidden_size}; "
            f"use {either(divisors(model.hidden_size))} heads"
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


def _split_problems(recipe: Recipe, world_size: int) -> Iterator[str]:
    layout, model = recipe.layout, recipe.model
    tensor = layout.tensor_parallel
    if model.num_heads % tensor:
        yield (
            f"layout.tensor_parallel={tensor} does not divide model.num_heads={model.num_heads}; "
            f"use {either(divisors(model.num_heads))}"
        )
    if layout.sequence_parallel and tensor == 1:
        yield (
            "layout.sequence_parallel splits sequences over tensor-parallel ranks, but "
            "layout.tensor_parallel=1; set it to 2 or more, or leave sequence_parallel out"
        )
    lengths = {f"training.phases[{n}].sequence_length": p.sequence_length for n, p in enumerate(recipe.training.phases)}
    for key, length in {**lengths, "data.sequence_length": recipe.data.sequence_length}.items():
        if layout.sequence_parallel and length % tensor:
            yield (
                f"layout.sequence_parallel needs {key}={length} to be a multiple of "
                f"layout.tensor_parallel={tensor}; use {length - length % tensor or tensor}"
            )
    data_parallel = world_size // model_parallel_size(layout)
    if recipe.training.global_batch_size < data_parallel:
        yield (
            f"training.global_batch_size={recipe.training.global_batch_size} gives some of the "
            f"{data_parallel} data-parallel ranks no sample; start fewer processes, "
            "raise layout.tensor_parallel or the batch size"
        )
