"""The usual training loop: what people write by hand, and what transformers.Trainer does without accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from data_pipeline.batches import StepBatch
from ptm_dist.recipe.schema import OptimizerSection, Recipe


class Loop:
    """Micro-batches under autocast, clipping, fused AdamW with decay of matrices alone.

    Args:
        model: from a batch to its mean loss.
        recipe: its optimizer and precision.
        micro: samples of a micro-batch.
        backward: of a loss.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        micro: int,
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> None:
        self.model = model
        self.micro = micro
        self.clip_norm = recipe.optimizer.clip_norm
        self.is_mixed = recipe.training.precision == "bf16"
        self.backward = backward
        self.optimizer = fused_adamw(model, recipe.optimizer)

    def step(self, batch: StepBatch) -> float:
        """One optimizer step; the mean loss before it."""
        parts = list(_split(batch, self.micro))
        total = torch.zeros((), device=batch.inputs.device)
        for part in parts:
            with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=self.is_mixed):
                loss = self.model(part) / len(parts)
            self.backward(loss)
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()


def fused_adamw(model: nn.Module, section: OptimizerSection) -> torch.optim.AdamW:
    """AdamW whose decay spares biases and LayerNorm."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    spared = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": section.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=section.learning_rate, betas=section.betas, eps=section.eps, fused=True)


def _split(batch: StepBatch, size: int) -> Iterator[StepBatch]:
    for begin in range(0, len(batch.inputs), size):
        rows = slice(begin, begin + size)
        yield replace(
            batch,
            sample_ids=batch.sample_ids[rows],
            inputs=batch.inputs[rows],
            labels=batch.labels[rows],
            lengths=batch.lengths[rows],
            segments=batch.segments[rows],
            pair_labels=batch.pair_labels[rows],
        )
