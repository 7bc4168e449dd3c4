"""`ptm fill`: what a model of the BERT family puts in the place of a mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import JsonFlag, examples, print_json

if TYPE_CHECKING:
    from data_pipeline.tokenizers import Tokenizer

_MASK = "[MASK]"

EXAMPLES = examples('ptm fill --checkpoint runs/demo-bert/run --text "Return the [MASK] of the list."')


def fill(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint, or run directory (its newest).")],
    text: Annotated[str, typer.Option(help=f"Text with {_MASK} where a token is missing.")],
    top_k: Annotated[int, typer.Option(min=1, help="Guesses for each mask.")] = 5,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder, if it is no longer where the recipe says.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Guess masked tokens with the model of a checkpoint, in this process on the CPU."""
    guesses = guess_tokens(checkpoint, text, top_k, tokenizer)
    if as_json:
        print_json({"text": text, "guesses": guesses})
        return
    for number, row in enumerate(guesses, start=1):
        print(f"mask {number}: " + ", ".join(f"{word!r} {probability:.1%}" for word, probability in row))


def guess_tokens(
    checkpoint: Path, text: str, top_k: int, tokenizer_folder: Path | None = None
) -> list[list[tuple[str, float]]]:
    """For each mask in a text, the likeliest tokens and their probabilities; what `ptm fill` prints.

    Raises: UserError if the text has no mask or is too long, the model is of the GPT family, or a folder is missing.
    """
    import torch

    from data_pipeline.tokenizers import load_tokenizer
    from ptm_dist.checkpoint import load_model
    from ptm_dist.downstream.fill import fill_masks

    if _MASK not in text:
        raise UserError(f"--text: no {_MASK} in it; write one where a token is missing")
    model, recipe = load_model(checkpoint)
    if model.spec.block.causal:
        raise UserError(f"{checkpoint} is of family {recipe.model.family}, which has no masks; use `ptm generate`")
    tokenizer = load_tokenizer(tokenizer_folder or recipe.data.tokenizer)
    ids = masked_ids(text, tokenizer)
    if len(ids) > recipe.model.max_positions:
        raise UserError(f"--text: {len(ids)} tokens; the model takes {recipe.model.max_positions}")
    mask_id = tokenizer.special_ids["mask"]
    found = fill_masks(model, torch.tensor(ids), mask_id, top_k)
    return [[(tokenizer.decode([guess.token]), guess.probability) for guess in row] for row in found]


def masked_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a text with masks, between the special tokens that the model saw in training."""
    special = tokenizer.special_ids
    ids = [special["classify"]]
    for place, part in enumerate(text.split(_MASK)):
        ids += [special["mask"]] if place else []
        ids += tokenizer.encode(part).tolist()
    return [*ids, special["separator"]]
