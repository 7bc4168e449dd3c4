"""`ptm generate`: text from a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import JsonFlag, examples, print_json


@dataclass(frozen=True)
class Sampling:
    """How to draw text.

    Attributes:
        samples: texts for the prompt.
        max_new_tokens: tokens to append at most.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the likeliest tokens that hold this share of the probability.
        seed: the same seed gives the same texts.
    """

    samples: int = 1
    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


EXAMPLES = examples(
    'ptm generate --checkpoint runs/demo-gpt --prompt "Return the"',
    "ptm generate --checkpoint runs/demo-gpt --samples 3 --temperature 1.0 --top-p 0.9 --json",
)


def generate(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint, or run directory (its newest).")],
    prompt: Annotated[str, typer.Option(help="Text to continue; empty starts a new document.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to append at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens of this total share.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Texts to draw.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same texts.")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder, if it is no longer where the recipe says.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Continue a prompt with the model of a checkpoint, in this process on the CPU."""
    sampling = Sampling(samples, max_new_tokens, temperature, top_k, top_p, seed)
    texts = sample_texts(checkpoint, prompt, sampling, tokenizer)
    print_json({"prompt": prompt, "texts": texts}) if as_json else print("\n\n---\n\n".join(texts))


def sample_texts(checkpoint: Path, prompt: str, sampling: Sampling, tokenizer_folder: Path | None = None) -> list[str]:
    """Texts that continue a prompt, prompt included; what `ptm generate` prints.

    Raises: UserError if there is no sound checkpoint, or if the tokenizer is missing or another one.
    """
    import torch

    from data_pipeline.tokenizers import load_tokenizer
    from ptm_dist.checkpoint import load_model
    from ptm_dist.downstream.generate import generate as generate_ids

    model, recipe = load_model(checkpoint)
    if not model.spec.block.causal:
        raise UserError(f"{checkpoint} is of family {recipe.model.family}, which fills in masks; use `ptm fill`")
    tokenizer = load_tokenizer(tokenizer_folder or recipe.data.tokenizer)
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise UserError(
            f"{tokenizer_folder or recipe.data.tokenizer} has {tokenizer.vocab_size} ids, more than the model's "
            f"{recipe.model.vocab_size}; give the tokenizer it was trained with by --tokenizer"
        )
    end_id = tokenizer.special_ids.get("end_of_document")
    # Documents follow each other in training: after the end of one, the model begins another.
    prompt_ids = ([] if end_id is None else [end_id]) + tokenizer.encode(prompt).tolist()
    if not prompt_ids:
        raise UserError("--prompt: this tokenizer has no end-of-document id to begin with; give some text")
    ids = generate_ids(
        model,
        torch.tensor([prompt_ids] * sampling.samples),
        max_new_tokens=sampling.max_new_tokens,
        max_positions=recipe.model.max_positions,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        end_id=end_id,
    )
    return [tokenizer.decode([token for token in row if token != end_id]) for row in ids.tolist()]
