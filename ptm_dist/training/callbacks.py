"""Everything beside the step: rows, validation, checkpoints, stopping."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable

import torch

from data_pipeline.batches import StepBatch
from ptm_dist.checkpoint.retention import prune
from ptm_dist.checkpoint.store import CheckpointInfo, CheckpointStore, Description
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.training.journal import Journal
from ptm_dist.training.machine import Machine
from ptm_dist.training.metrics import Interval
from ptm_dist.training.signals import StopFlag
from ptm_dist.training.trainer import Callback, StepRecord, Trainer


class StopOnSignal(Callback):
    """Stops all ranks after the same step when one of them was given a stop signal.

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
        (number,) = self._control.maxima(float(self._flag.number))
        if number:
            name = signal.Signals(int(number)).name
            self._journal.event("signal", signal=name, step=record.step)
            self._journal.say(f"{name}: checkpoint after step {record.step}, then stop")
            trainer.stop(name)


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
        journal: where rows go.
    """

    def __init__(self, every: int, machine: Machine, control: ControlGroup, journal: Journal) -> None:
        self.interval = Interval(machine, control)
        self._every = every
        self._journal = journal

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Take in the step; write if it is time."""
        self.interval.add(record)
        if record.step % self._every == 0 or trainer.is_finished:
            self.flush()

    def on_end(self, trainer: Trainer) -> None:
        """Write what is left."""
        self.flush()

    def flush(self) -> None:
        """Write the steps since the last row, if any; collective."""
        row = self.interval.take_row()
        if row is not None:
            self._journal.write(row)


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
        self.last_loss: float | None = None
        self.last_step = 0
        self.best_step = 0

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Validate if it is time."""
        if record.step % self._every != 0 and not trainer.is_finished:
            return
        started = time.perf_counter()
        result = trainer.engine.evaluate(self._batches(record.step))
        self.last_loss, self.last_step = result.loss, record.step
        if result.loss < self._best_loss:
            self._best_loss, self.best_step = result.loss, record.step
        row = {
            "kind": "validation",
            "step": record.step,
            "loss": result.loss,
            **result.metrics,
            "perplexity": torch.tensor(result.metrics.get("mlm_loss", result.loss), dtype=torch.float64).exp().item(),
            "targets": result.targets,
            "seconds": time.perf_counter() - started,
        }
        self._journal.write(row)


class Checkpointing(Callback):
    """Saves every few steps, at the best validation loss, at a stop, and at the end.

    Args:
        store: of the run.
        control: all ranks.
        describe: says of a step and its metrics what the manifest must hold.
        rows: written out before a checkpoint commits, so that no row straddles one.
        validation: whose best loss is worth a checkpoint; None if the run does not validate.
        journal: told of each checkpoint.
    """

    def __init__(
        self,
        store: CheckpointStore,
        control: ControlGroup,
        describe: Callable[[StepRecord, dict[str, float]], Description],
        rows: TrainRows,
        validation: Validation | None,
        journal: Journal,
    ) -> None:
        self._store = store
        self._control = control
        self._describe = describe
        self._rows = rows
        self._validation = validation
        self._journal = journal
        self.last: CheckpointInfo | None = None

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Save if there is a reason to."""
        every = trainer.recipe.checkpoint.every
        periodic = every > 0 and record.step % every == 0
        leaving = trainer.is_finished or trainer.stop_reason is not None
        if periodic or leaving or self._is_best(trainer, record.step):
            self._save(trainer, record)

    def _is_best(self, trainer: Trainer, step: int) -> bool:
        return (
            trainer.recipe.checkpoint.save_best and self._validation is not None and self._validation.best_step == step
        )

    def _save(self, trainer: Trainer, record: StepRecord) -> None:
        self._rows.flush()
        started = time.perf_counter()
        metrics = {"loss": record.result.loss}
        validation = self._validation
        if validation is not None and validation.last_loss is not None and validation.last_step == record.step:
            metrics["validation_loss"] = validation.last_loss
        self.last = self._store.save(trainer.engine.state(), self._describe(record, metrics))
        keep = trainer.recipe.checkpoint.keep_last
        deleted = self._control.from_first(lambda: prune(self._store.directory, keep))
        seconds = time.perf_counter() - started
        self._rows.interval.checkpoint_seconds += seconds
        self._journal.event(
            "checkpoint",
            step=record.step,
            path=str(self.last.path),
            seconds=seconds,
            bytes=sum(entry.size for entry in self.last.manifest.files.values()),
            deleted=[path.name for path in deleted],
        )
