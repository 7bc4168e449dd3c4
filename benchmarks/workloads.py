"""The training problems that benchmarks share: a recipe, its engine and a random batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data_pipeline.batches import StepBatch
from data_pipeline.ramp import slice_of
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.recipe.schema import Recipe

MODELS: dict[str, dict[str, Any]] = {
    "nano": {"vocab_size": 4096, "max_positions": 256, "hidden_size": 256, "num_layers": 6, "num_heads": 8},
    "gpt2-124m": {"vocab_size": 50257, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "gpt2-355m": {"vocab_size": 50257, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
}


def recipe(model: str, batch: int, sequence: int, precision: str, layout: dict[str, Any]) -> Recipe:
    """A recipe around one of :data:`MODELS`."""
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "model": MODELS[model],
            "data": {"path": "none", "tokenizer": "none", "sequence_length": sequence},
            "optimizer": {"learning_rate": 1e-3},
            "training": {"steps": 1, "global_batch_size": batch, "precision": precision},
            "layout": layout,
        }
    )


def random_batch(recipe: Recipe, dp_rank: int, dp_size: int, device: torch.device) -> StepBatch:
    """This rank's slice of one global batch of random tokens, already on the device."""
    size, sequence = recipe.training.global_batch_size, recipe.data.sequence_length
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, recipe.model.vocab_size, (size, sequence + 1), generator=generator)
    begin, end = slice_of(size, dp_rank, dp_size)
    ids = ids[begin:end].to(device)
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    return StepBatch(
        step=0,
        first_sample=begin,
        global_batch_size=size,
        sample_ids=np.arange(begin, end),
        inputs=inputs,
        labels=labels,
        lengths=torch.full((len(inputs),), sequence, device=device),
        segments=torch.zeros_like(inputs),
        pair_labels=torch.full((len(inputs),), IGNORE_INDEX, device=device),
    )
