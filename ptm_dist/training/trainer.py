"""The training loop. Everything beside the step is a callback."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data_pipeline.batches import StepBatch
from data_pipeline.errors import UserError
from ptm_dist.engines.engine import Engine, StepResult
from ptm_dist.optim.schedules import learning_rate
from ptm_dist.recipe.phases import tokens_before
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.link import Link, NoLink, Phase

T = TypeVar("T")


class DivergenceError(UserError):
    """The loss or the gradient is no longer a number."""


@dataclass
class Progress:
    """Where a run is: all that goes on from a checkpoint beside the engine's state.

    Attributes:
        step: optimizer steps done.
        samples: training samples consumed.
    """

    step: int = 0
    samples: int = 0


@dataclass(frozen=True)
class StepRecord:
    """One step that is done, the same on every rank but for the times.

    Attributes:
        step: its number, the first is 1.
        samples: training samples consumed so far.
        tokens: training tokens consumed so far.
        batch_tokens: of which in this step.
        sequence_length: tokens of a sample of this step.
        result: what the engine says of it.
        learning_rate: it was made with.
        seconds: this rank's wall time, waiting for data included.
        data_wait_seconds: of which it waited for data.
    """

    step: int
    samples: int
    tokens: int
    batch_tokens: int
    sequence_length: int
    result: StepResult
    learning_rate: float
    seconds: float
    data_wait_seconds: float


class Callback:
    """Something done beside the steps; called on every rank, in the trainer's order."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """After every step."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step of this process, if nothing failed."""


class Trainer:
    """Steps an engine through batches.

    Args:
        engine: computes the steps.
        recipe: names the learning rate and the length of the run.
        progress: where the run stands; moved on with every step.
        callbacks: called in this order.
        link: told what this process is at.
    """

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe,
        progress: Progress,
        callbacks: Sequence[Callback],
        link: Link | None = None,
    ) -> None:
        self.engine = engine
        self.recipe = recipe
        self.progress = progress
        self.callbacks = callbacks
        self.link = link or NoLink()
        self.stop_reason: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run has all its steps."""
        return self.progress.step >= self.recipe.training.steps

    def stop(self, reason: str) -> None:
        """Leave after this step; the callbacks behind the caller's still see it."""
        self.stop_reason = self.stop_reason or reason

    def report(self, phase: Phase) -> None:
        """Say what begins now."""
        self.link.report(phase, self.progress.step)

    def run(self, batches: Iterable[StepBatch]) -> None:
        """Go through `batches`, which begin at the step where the run stands.

        Raises: DivergenceError at the first step whose loss or gradient norm is not finite.
        """
        for callback in self.callbacks:
            callback.on_start(self)
        self.report(Phase.DATA)
        for batch, waited in _timed(batches):
            self.report(Phase.STEP)
            record = self._step(batch, waited)
            self.report(Phase.BETWEEN)
            for callback in self.callbacks:
                callback.on_step(self, record)
            if self.stop_reason is not None:
                break
            self.report(Phase.DATA)
        self.report(Phase.END)
        for callback in self.callbacks:
            callback.on_end(self)

    def _step(self, batch: StepBatch, waited: float) -> StepRecord:
        started = time.perf_counter()
        training = self.recipe.training
        rate = learning_rate(
            self.recipe.schedule, self.recipe.optimizer.learning_rate, self.progress.step, training.steps
        )
        result = self.engine.step(batch, rate)
        self.progress.step += 1
        self.progress.samples += batch.global_batch_size
        _refuse_divergence(self.progress.step, result)
        length = batch.inputs.shape[1]
        return StepRecord(
            step=self.progress.step,
            samples=self.progress.samples,
            tokens=tokens_before(self.recipe, self.progress.step),
            batch_tokens=batch.global_batch_size * length,
            sequence_length=length,
            result=result,
            learning_rate=rate,
            seconds=waited + time.perf_counter() - started,
            data_wait_seconds=waited,
        )


def _timed(items: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Each item with the seconds it was waited for."""
    iterator = iter(items)
    while True:
        started = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        yield item, time.perf_counter() - started


def _refuse_divergence(step: int, result: StepResult) -> None:
    if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
        return
    raise DivergenceError(
        f"step {step}: the loss is {result.loss} and the gradient norm {result.grad_norm}; nothing of this step "
        "was saved: lower optimizer.learning_rate, lengthen schedule.warmup_steps, or look at the samples of this "
        f"step with `ptm data show --step {step}`"
    )
