"""What the trainer knows of an engine: one step, one evaluation, one state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from data_pipeline.batches import StepBatch
from ptm_dist.parallel.boxes import Held

Accept = Callable[[float, float], bool]
"""Says of a step's loss and gradient norm whether its update is made; answers the same on every rank."""


@dataclass(frozen=True)
class StepResult:
    """One step, the same on every rank.

    Attributes:
        loss: mean loss per target over the whole global batch, in nats; of tokens plus, with pairs, of pairs.
        grad_norm: global L2 norm of the gradient before clipping.
        targets: number of predicted tokens in the global batch.
        metrics: the parts of the loss and accuracies by name, such as `mlm_loss`, `sop_accuracy`.
        is_applied: whether the weights were updated.
    """

    loss: float
    grad_norm: float
    targets: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_applied: bool = True

    @classmethod
    def passed_over(cls) -> StepResult:
        """Of a step that was not computed: its batch was consumed, and that is all."""
        return cls(math.nan, math.nan, 0, {}, is_applied=False)

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


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

    def step(self, batch: StepBatch, learning_rate: float, accept: Accept | None = None) -> StepResult:
        """Forward, backward, clip and update on this rank's slice of one global batch.

        Args:
            batch: this rank's slice.
            learning_rate: of the update.
            accept: asked before the update; where it says no, weights and optimizer state keep their bits. None makes
                every update, and need not wait for the loss before.
        """
        ...

    def evaluate(self, batches: Iterable[StepBatch]) -> EvaluationResult:
        """Loss over batches without touching gradients or weights."""
        ...

    def state(self) -> Mapping[str, Held]:
        """This rank's boxes of weights and optimizer state under canonical names; writing to them loads."""
        ...

    def loaded(self, updates: int) -> None:
        """Go on after so many updates, with what was read into the boxes of :meth:`state`."""
        ...

    def close(self) -> None:
        """Release process groups and device memory."""
        ...
