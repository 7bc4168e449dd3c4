"""Everything beside the step: rows, validation, checkpoints, stopping."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from data_pipeline.batches import StepBatch
from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.retention import VALIDATION, Best, in_use, prune
from ptm_dist.checkpoint.store import CheckpointInfo, CheckpointStore, Description, list_checkpoints
from ptm_dist.engines.engine import Engine
from ptm_dist.engines.losses import named_metrics
from ptm_dist.errors import CheckpointError, RecipeError
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.schema import CheckpointSection, Recipe
from ptm_dist.training.intervals import IntervalAdvice
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


class Checkpointing(Callback):
    """Saves every few steps or minutes, at the best validation, at a stop, and at the end.

    Args:
        store: of the run.
        control: all ranks.
        describe: says of a step and its metrics what the manifest must hold.
        rows: written out before a checkpoint commits, so that no row straddles one.
        validation: whose best figure is worth a checkpoint; None if the run does not validate.
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
        self._started_from = ExitStack()
        self._best: float | None = None
        self._last_save = time.perf_counter()
        self._advice = IntervalAdvice(None)
        self.last: CheckpointInfo | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Look at what the run has already; what it starts from elsewhere stays until it has one of its own."""
        section = trainer.recipe.checkpoint
        _check_figure(trainer.recipe)
        own = self._control.from_first(lambda: list_checkpoints(self._store.directory))
        best = _best(section)
        champion = best.champion(own)
        self._best = None if champion is None else champion.manifest.metrics[best.metric]
        self._advice = IntervalAdvice(section.mean_hours_between_failures)
        self._last_save = time.perf_counter()
        if not own and section.load_from is not None and self._control.is_first:
            with suppress(CheckpointError, OSError):  # it is loaded: if somebody removed it since, the run goes on
                self._started_from.enter_context(in_use(find_checkpoint(section.load_from).path))

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Save if there is a reason to."""
        self._advice.add_step(record.seconds)
        section, step = trainer.recipe.checkpoint, record.step
        periodic = any(every > 0 and step % every == 0 for every in (section.every, section.keep_every))
        leaving = trainer.is_finished or trainer.stop_reason is not None
        is_best = self._is_best(section, step)
        if periodic or leaving or is_best or self._is_late(section):
            self._save(section, trainer.engine, record)

    def on_end(self, trainer: Trainer) -> None:
        """Let go of what the run started from."""
        self._started_from.close()

    def _is_best(self, section: CheckpointSection, step: int) -> bool:
        figures = self._validation.figures(step) if self._validation is not None else {}
        if not section.save_best or not figures:
            return False
        value, best = figures[section.best_by], _best(section)
        if not best.improves(value, self._best):
            return False
        self._best = value
        return True

    def _is_late(self, section: CheckpointSection) -> bool:
        """Whether the minutes are over, for all ranks by the clock of the fastest."""
        if not section.every_minutes:
            return False
        (waited,) = self._control.maxima(time.perf_counter() - self._last_save)
        return waited >= 60.0 * section.every_minutes

    def _save(self, section: CheckpointSection, engine: Engine, record: StepRecord) -> None:
        self._rows.flush()
        started = time.perf_counter()
        figures = self._validation.figures(record.step) if self._validation is not None else {}
        metrics = {"loss": record.result.loss, **{f"{VALIDATION}{name}": value for name, value in figures.items()}}
        self.last = self._store.save(engine.state(), self._describe(record, metrics))
        self._started_from.close()
        deleted = self._control.from_first(lambda: self._prune(section))
        self._last_save = time.perf_counter()
        seconds = self._last_save - started
        self._rows.interval.checkpoint_seconds += seconds
        self._journal.event(
            "checkpoint",
            step=record.step,
            path=str(self.last.path),
            seconds=seconds,
            bytes=sum(entry.size for entry in self.last.manifest.files.values()),
            deleted=[path.name for path in deleted],
        )
        advice = self._advice.after_save(seconds)
        if advice is not None:
            self._journal.event("checkpoint_interval", **asdict(advice))
            self._journal.say(advice.in_words())

    def _prune(self, section: CheckpointSection) -> list[Path]:
        return prune(self._store.directory, section.keep_last, keep_every=section.keep_every, best=_best(section))


def _check_figure(recipe: Recipe) -> None:
    """Refuse a figure for the best checkpoint that no validation of this run has."""
    by = recipe.checkpoint.best_by
    known = ["loss", *named_metrics([0.0] * 4, [1.0] * 2, recipe.objective.kind), "perplexity"]
    if by not in known:
        raise RecipeError(
            f"checkpoint.best_by={by} is no figure of validations with objective.kind={recipe.objective.kind}; "
            f"use {', '.join(known[:-1])} or {known[-1]}"
        )


def _best(section: CheckpointSection) -> Best:
    return Best(section.best_by, section.best_is)
