"""Everything beside the step but checkpoints: rows, validation, stopping."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator

import torch

from data_pipeline.batches import StepBatch
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.schema import CheckpointSection
from ptm_dist.training.journal import Journal
from ptm_dist.training.link import Phase
from ptm_dist.training.machine import Machine
from ptm_dist.training.metrics import Interval
from ptm_dist.training.signals import StopFlag
from ptm_dist.training.stragglers import Stragglers
from ptm_dist.training.trainer import Callback, StepRecord, Trainer

MAKES_WAY = "another world"
"""Stop reason of a life that ends so that the run goes on at once on other processes."""


class StopOnSignal(Callback):
    """Stops all ranks after the same step when one of them was given a stop signal, or asked to make way.

    To make way costs no checkpoint of its own: it waits for the next one, unless there is none before the end.

    Args:
        flag: of this process.
        control: all ranks, which agree once per step.
        journal: told of the signal.
    """

    def __init__(self, flag: StopFlag, control: ControlGroup, journal: Journal) -> None:
        self._flag = flag
        self._control = control
        self._journal = journal

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Ask around."""
        number, asked = self._control.maxima(float(self._flag.number), float(trainer.link.is_asked_to_leave()))
        if asked and _is_save_due(trainer.recipe.checkpoint, record.step):
            trainer.stop(MAKES_WAY)
        if number:
            name = signal.Signals(int(number)).name
            self._journal.event("signal", signal=name, step=record.step)
            self._journal.say(f"{name}: checkpoint after step {record.step}, then stop")
            trainer.stop(name)


def _is_save_due(section: CheckpointSection, step: int) -> bool:
    intervals = [every for every in (section.every, section.keep_every) if every]
    return not intervals or any(step % every == 0 for every in intervals)


class FirstStep(Callback):
    """Notes when a life of a run has done its first step."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._is_done = False

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Note it, once."""
        if not self._is_done:
            self._is_done = True
            self._journal.event("first_step", step=record.step, step_seconds=record.seconds)


class StopAtStep(Callback):
    """Stops after a step that the recipe names, as if interrupted there."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Stop if it is the one."""
        if record.step >= self._step and not trainer.is_finished:
            trainer.stop(f"launch.stop_at_step={self._step}")


class TrainRows(Callback):
    """Writes a row of kind `train` every few steps.

    Args:
        every: steps between rows.
        machine: for throughput and utilisation.
        control: all ranks.
        stragglers: looked for with each row.
        journal: where rows go.
    """

    def __init__(
        self, every: int, machine: Machine, control: ControlGroup, stragglers: Stragglers, journal: Journal
    ) -> None:
        self.interval = Interval(machine, control)
        self._stragglers = stragglers
        self._every = every
        self._journal = journal

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Take in the step; write if it is time."""
        self.interval.add(record)
        self._stragglers.add(record)
        if record.step % self._every == 0 or trainer.is_finished:
            self.flush()

    def on_end(self, trainer: Trainer) -> None:
        """Write what is left."""
        self.flush()

    def flush(self) -> None:
        """Write the steps since the last row, if any; collective."""
        row = self.interval.take_row()
        if row is not None:
            self._journal.write({**row, **self._stragglers.take(row["step"])})


class Validation(Callback):
    """Measures the validation loss every few steps and after the last one.

    Args:
        every: steps between validations.
        batches: gives this rank's part of the validation samples after a step, anew each time.
        best_loss: lowest so far, in earlier lives of the run.
        journal: where rows of kind `validation` go.
    """

    def __init__(
        self,
        every: int,
        batches: Callable[[int], Iterable[StepBatch]],
        best_loss: float | None,
        journal: Journal,
    ) -> None:
        self._every = every
        self._batches = batches
        self._journal = journal
        self._best_loss = float("inf") if best_loss is None else best_loss
        self._last_step = 0
        self._figures: dict[str, float] = {}

    def figures(self, step: int) -> dict[str, float]:
        """What was measured after a step, by the names in its row; empty if it was not the last one measured."""
        return self._figures if step == self._last_step else {}

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Validate if it is time."""
        if record.step % self._every != 0 and not trainer.is_finished:
            return
        started = time.perf_counter()
        result = trainer.engine.evaluate(_reported(self._batches(record.step), trainer))
        self._best_loss = min(self._best_loss, result.loss)
        self._last_step = record.step
        self._figures = {
            "loss": result.loss,
            **result.metrics,
            "perplexity": torch.tensor(result.metrics.get("mlm_loss", result.loss), dtype=torch.float64).exp().item(),
        }
        row = {
            "kind": "validation",
            "step": record.step,
            **self._figures,
            "best_loss": self._best_loss,
            "targets": result.targets,
            "seconds": time.perf_counter() - started,
        }
        self._journal.write(row)


def _reported(batches: Iterable[StepBatch], trainer: Trainer) -> Iterator[StepBatch]:
    """The same batches; each one is a sign of life."""
    for batch in batches:
        trainer.report(Phase.VALIDATE)
        yield batch
