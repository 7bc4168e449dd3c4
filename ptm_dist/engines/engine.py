"""What the trainer knows of an engine: one step, one evaluation, one state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from data_pipeline.batches import StepBatch
from ptm_dist.parallel.boxes import Held


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same on every rank.

    Attributes:
        loss: mean loss per target over the whole global batch, in nats; of tokens plus, with pairs, of pairs.
        grad_norm: global L2 norm of the gradient before clipping.
        targets: number of predicted tokens in the global batch.
        metrics: the parts of the loss and accuracies by name, such as `mlm_loss`, `sop_accuracy`.
    """

    loss: float
    grad_norm: float
    targets: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationResult:
    """Validation, the same on every rank; attributes as in :class:`StepResult`."""

    loss: float
    targets: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Computes steps of a run on this process's share of a layout."""

    dp_rank: int
    """Which slice of a global batch this process reads."""
    dp_size: int
    """How many slices a global batch has."""

    def step(self, batch: StepBatch, learning_rate: float) -> StepResult:
        """Forward, backward, clip and update on this rank's slice of one global batch."""
        ...

    def evaluate(self, batches: Iterable[StepBatch]) -> EvaluationResult:
        """Loss over batches without touching gradients or weights."""
        ...

    def state(self) -> Mapping[str, Held]:
        """This rank's boxes of weights and optimizer state under canonical names; writing to them loads."""
        ...

    def loaded(self, steps_done: int) -> None:
        """Go on after `steps_done` optimizer steps, with what was read into the boxes of :meth:`state`."""
        ...

    def close(self) -> None:
        """Release process groups and device memory."""
        ...
