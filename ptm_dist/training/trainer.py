"""The training loop. Everything beside the step is a callback; a judge says which updates are made."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from data_pipeline.batches import StepBatch
from data_pipeline.errors import UserError
from ptm_dist.engines.engine import Accept, Engine, StepResult
from ptm_dist.optim.schedules import learning_rate
from ptm_dist.recipe.phases import tokens_before
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.link import Link, NoLink, Phase

T = TypeVar("T")


class DivergenceError(UserError):
    """The loss is no longer a number, or no longer one that the recipe wants to go on with."""


@dataclass
class Progress:
    """Where a run is: all that goes on from a checkpoint beside the engine's state.

    Attributes:
        step: optimizer steps done.
        samples: training samples consumed.
        updates: of the weights; steps less those whose update was left out.
    """

    step: int = 0
    samples: int = 0
    updates: int = 0


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


class Judge(Protocol):
    """Says which updates are made; the same on every rank."""

    def passes_over(self, step: int) -> bool:
        """Whether a step only consumes its batch, because that was decided before."""
        ...

    def acceptance(self, step: int) -> Accept | None:
        """What the engine asks before the update of a step; None where it need not ask."""
        ...

    def settle(self, step: int, result: StepResult) -> None:
        """Take note of a computed step.

        Raises: DivergenceError if the run shall not go on from here.
        """
        ...


class Finite:
    """The plainest judge: every update is made, and the first step that is no number ends the run."""

    def passes_over(self, step: int) -> bool:
        """Never."""
        return False

    def acceptance(self, step: int) -> Accept | None:
        """Nothing to ask."""
        return None

    def settle(self, step: int, result: StepResult) -> None:
        """Raises: DivergenceError if loss or gradient norm are no numbers."""
        if not result.is_finite:
            raise no_number(step, result)


class Trainer:
    """Steps an engine through batches.

    Args:
        engine: computes the steps.
        recipe: names the learning rate and the length of the run.
        progress: where the run stands; moved on with every step.
        callbacks: called in this order.
        link: told what this process is at.
        judge: of updates; :class:`Finite` when left out.
    """

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe,
        progress: Progress,
        callbacks: Sequence[Callback],
        link: Link | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.engine = engine
        self.recipe = recipe
        self.progress = progress
        self.callbacks = callbacks
        self.link = link or NoLink()
        self.judge = judge or Finite()
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

        Raises: DivergenceError where the judge wants no more of it.
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
        result = self._result(self.progress.step + 1, batch, rate)
        self.progress.step += 1
        self.progress.samples += batch.global_batch_size
        self.progress.updates += result.is_applied
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

    def _result(self, step: int, batch: StepBatch, rate: float) -> StepResult:
        if self.judge.passes_over(step):
            return StepResult.passed_over()
        result = self.engine.step(batch, rate, self.judge.acceptance(step))
        self.judge.settle(step, result)
        return result


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


def no_number(step: int, result: StepResult) -> DivergenceError:
    """What to say of a step whose loss or gradient norm is not finite."""
    return DivergenceError(
        f"step {step}: the loss is {result.loss} and the gradient norm {result.grad_norm}; nothing of this step "
        "was saved: lower optimizer.learning_rate, lengthen schedule.warmup_steps, look at the samples of this "
        f"step with `ptm data show --step {step}`, or leave such steps out with health.on_nonfinite=skip"
    )
