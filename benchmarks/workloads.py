"""The training problems that benchmarks share: a recipe, a random batch, and what every candidate starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.batches import StepBatch
from data_pipeline.ramp import slice_of
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.models import model_spec, parameter_shapes
from ptm_dist.models.initialization import fill_initial
from ptm_dist.recipe.schema import Recipe

_BERT = {"family": "bert", "vocab_size": 30522, "max_positions": 512}
MODELS: dict[str, dict[str, Any]] = {
    "nano": {"vocab_size": 4096, "max_positions": 256, "hidden_size": 256, "num_layers": 6, "num_heads": 8},
    "gpt2-124m": {"vocab_size": 50257, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "gpt2-355m": {"vocab_size": 50257, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "gpt3-1.3b": {
        "family": "gpt3",
        "attention_band": 0,
        "vocab_size": 50304,
        "max_positions": 2048,
        "hidden_size": 2048,
        "num_layers": 24,
        "num_heads": 16,
    },
    "bert-small": {**_BERT, "vocab_size": 4096, "hidden_size": 256, "num_layers": 6, "num_heads": 8},
    "bert-base": {**_BERT, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "bert-large": {**_BERT, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
}
LEARNING_RATE = 1e-4
_MASKED = 0.15


@dataclass(frozen=True)
class Problem:
    """One training step that every candidate takes.

    Attributes:
        model: one of :data:`MODELS`.
        batch: samples of a step.
        sequence: tokens of a sample.
        precision: fp32 or bf16.
        micro: samples of a micro-batch; None: as many as a process has.
    """

    model: str
    batch: int
    sequence: int
    precision: str
    micro: int | None = None

    @property
    def tokens(self) -> int:
        """Of a step, padding included."""
        return self.batch * self.sequence

    def recipe(self, ranks: int = 1, engine: str = "native", **layout: Any) -> Recipe:
        """With the micro-batch size of `ranks` data-parallel processes, unless the problem has its own."""
        micro = self.micro or self.batch // ranks
        return recipe(
            self.model, self.batch, self.sequence, self.precision, {"micro_batch_size": micro, **layout}, engine
        )

    def __str__(self) -> str:
        return f"{self.model}, {self.batch} x {self.sequence}, {self.precision}"


def recipe(
    model: str, batch: int, sequence: int, precision: str, layout: dict[str, Any], engine: str = "native"
) -> Recipe:
    """A recipe around one of :data:`MODELS`."""
    is_encoder = MODELS[model].get("family") == "bert"
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "engine": engine,
            "model": MODELS[model],
            "objective": {"kind": "mlm_nsp"} if is_encoder else {},
            "data": {"path": "none", "tokenizer": "none", "sequence_length": sequence},
            "optimizer": {"learning_rate": LEARNING_RATE},
            "training": {"steps": 1, "global_batch_size": batch, "precision": precision},
            "layout": layout,
        }
    )


def random_batch(recipe: Recipe, dp_rank: int, dp_size: int, device: torch.device) -> StepBatch:
    """This rank's slice of one global batch of random tokens, already on the device.

    For an encoder every second sample ends after three quarters of its length, and 15% of the tokens of each are to be
    predicted.
    """
    size, sequence = recipe.training.global_batch_size, recipe.data.sequence_length
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, recipe.model.vocab_size, (size, sequence + 1), generator=generator)
    inputs, labels = ids[:, :-1], ids[:, 1:]
    lengths = torch.full((size,), sequence)
    segments, pair_labels = torch.zeros_like(inputs), torch.full((size,), IGNORE_INDEX)
    if recipe.objective.kind != "causal":
        lengths[1::2] = 3 * sequence // 4
        labels = _masked_labels(labels, lengths, generator)
        segments = (torch.arange(sequence) >= lengths[:, None] // 2).long()
        pair_labels = torch.arange(size) % 2
    begin, end = slice_of(size, dp_rank, dp_size)
    parts = (part[begin:end].contiguous().to(device) for part in (inputs, labels, lengths, segments, pair_labels))
    inputs, labels, lengths, segments, pair_labels = parts
    return StepBatch(
        step=0,
        first_sample=begin,
        global_batch_size=size,
        sample_ids=np.arange(begin, end),
        inputs=inputs,
        labels=labels,
        lengths=lengths,
        segments=segments,
        pair_labels=pair_labels,
    )


def _masked_labels(labels: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
    """Labels at 15% of each sample's tokens, ``IGNORE_INDEX`` elsewhere."""
    masked = torch.full_like(labels, IGNORE_INDEX)
    for row, length in enumerate(lengths.tolist()):
        chosen = torch.randperm(length, generator=generator)[: round(_MASKED * length)]
        masked[row, chosen] = labels[row, chosen]
    return masked


def initial_weights(recipe: Recipe) -> dict[str, Tensor]:
    """What a run of the recipe starts from, by canonical name, in float32."""
    weights, spec = {}, model_spec(recipe.model)
    for name, shape in parameter_shapes(recipe.model).items():
        weights[name] = torch.empty(shape)
        fill_initial(name, weights[name], shape, (0,) * len(shape), spec, recipe.training.seed)
    return weights
