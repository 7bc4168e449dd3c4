"""Checkpoints beside the steps: when one is due, and what the step loop waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ptm_dist.checkpoint.background import BackgroundSaves
from ptm_dist.checkpoint.memory import MemorySnapshots
from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.retention import VALIDATION, Best, in_use, prune
from ptm_dist.checkpoint.store import CheckpointInfo, CheckpointStore, Description, list_checkpoints
from ptm_dist.engines.losses import named_metrics
from ptm_dist.errors import CheckpointError, RecipeError
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.schema import CheckpointSection, Recipe
from ptm_dist.training.callbacks import TrainRows, Validation
from ptm_dist.training.intervals import IntervalAdvice
from ptm_dist.training.journal import Journal
from ptm_dist.training.link import Phase
from ptm_dist.training.trainer import Callback, StepRecord, Trainer


@dataclass
class _Save:
    """A save from its first moment to its commit.

    Attributes:
        step: that it is of.
        started: on the clock of this process.
        stall_seconds: for which the step loop has waited for it.
    """

    step: int
    started: float
    stall_seconds: float = 0.0


class Checkpointing(Callback):
    """Saves every few steps or minutes, at the best validation, at a stop, and at the end.

    The loop goes on while a checkpoint is written, but for the last one of a life, which nothing comes after.

    Args:
        store: of the run.
        saves: that go on beside the steps; None: the loop waits for each.
        snapshots: in memory, between checkpoints; None: there are none.
        control: all ranks.
        describe: says of a step and its metrics what the manifest must hold.
        rows: written out before a checkpoint is made, so that no row straddles one.
        validation: whose best figure is worth a checkpoint; None if the run does not validate.
        journal: told of each checkpoint.
    """

    def __init__(
        self,
        store: CheckpointStore,
        saves: BackgroundSaves | None,
        snapshots: MemorySnapshots | None,
        control: ControlGroup,
        describe: Callable[[StepRecord, dict[str, float]], Description],
        rows: TrainRows,
        validation: Validation | None,
        journal: Journal,
    ) -> None:
        self._store = store
        self._saves = saves
        self._snapshots = snapshots
        self._has_told: set[str] = set()
        self._control = control
        self._describe = describe
        self._rows = rows
        self._validation = validation
        self._journal = journal
        self._started_from = ExitStack()
        self._best: float | None = None
        self._last_save = time.perf_counter()
        self._advice = IntervalAdvice(None)
        self._in_flight: _Save | None = None
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
        if self._saves is not None and _saves_on_the_way(section):
            self._saves.prepare(trainer.engine.state())
        if self._snapshots is not None:
            self._snapshots.prepare(trainer.engine.state())

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Save if there is a reason to; commit what was written meanwhile."""
        self._advice.add_step(record.seconds)
        section, step = trainer.recipe.checkpoint, record.step
        periodic = any(every > 0 and step % every == 0 for every in (section.every, section.keep_every))
        leaving = trainer.is_finished or trainer.stop_reason is not None
        is_best = self._is_best(section, step)
        if periodic or leaving or is_best or self._is_late(section):
            self._save(section, trainer, record, leaving)
            return
        self._commit_what_is_written(section)
        if self._snapshots is not None and step % section.memory_every == 0:
            self._take_snapshot(self._snapshots, trainer, record)

    def on_end(self, trainer: Trainer) -> None:
        """Let go of what the run started from."""
        self._started_from.close()

    def settle(self, section: CheckpointSection) -> None:
        """Wait for a checkpoint that is being written, if there is one; collective."""
        if self._in_flight is None or self._saves is None:
            return
        with self._stalling(self._in_flight):
            info = self._saves.wait()
        self._committed(section, self._in_flight, info)

    def close(self) -> None:
        """End what goes on beside the steps; what is being written is never completed then."""
        for each in (self._saves, self._snapshots):
            if each is not None:
                each.close()

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

    def _save(self, section: CheckpointSection, trainer: Trainer, record: StepRecord, leaving: bool) -> None:
        trainer.report(Phase.SAVE)
        self._rows.flush()
        self.settle(section)
        save = _Save(record.step, time.perf_counter())
        figures = self._validation.figures(record.step) if self._validation is not None else {}
        metrics = {"loss": record.result.loss, **{f"{VALIDATION}{name}": value for name, value in figures.items()}}
        description, state = self._describe(record, metrics), trainer.engine.state()
        if self._saves is not None and not leaving:
            with self._stalling(save):
                self._saves.start(state, description)
            self._in_flight = save
        else:
            with self._stalling(save):
                info = self._store.save(state, description)
            self._committed(section, save, info)
        self._last_save = time.perf_counter()
        trainer.report(Phase.BETWEEN)

    def _take_snapshot(self, snapshots: MemorySnapshots, trainer: Trainer, record: StepRecord) -> None:
        trainer.report(Phase.SAVE)
        self._rows.flush()
        started = time.perf_counter()
        is_taken = snapshots.take(trainer.engine.state(), self._describe(record, {"loss": record.result.loss}))
        self._rows.interval.checkpoint_seconds += time.perf_counter() - started
        if not is_taken:
            self._tell_once("snapshot_skipped", "one before it is still on its way to another node", record.step)
        if snapshots.problems:
            self._tell_once("snapshot_alone", "; ".join(snapshots.problems), record.step)
        trainer.report(Phase.BETWEEN)

    def _tell_once(self, kind: str, reason: str, step: int) -> None:
        if kind not in self._has_told:
            self._has_told.add(kind)
            self._journal.event(kind, step=step, reason=reason)

    def _commit_what_is_written(self, section: CheckpointSection) -> None:
        if self._in_flight is None or self._saves is None:
            return
        with self._stalling(self._in_flight):
            info = self._saves.poll()
        if info is not None:
            self._committed(section, self._in_flight, info)

    @contextmanager
    def _stalling(self, save: _Save) -> Iterator[None]:
        """Time for which the loop waits, in the body, for a save."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        save.stall_seconds += seconds
        self._rows.interval.checkpoint_seconds += seconds

    def _committed(self, section: CheckpointSection, save: _Save, info: CheckpointInfo) -> None:
        self._in_flight, self.last = None, info
        self._started_from.close()
        with self._stalling(save):
            deleted = self._control.from_first(lambda: self._prune(section))
        self._journal.event(
            "checkpoint",
            step=save.step,
            path=str(info.path),
            seconds=time.perf_counter() - save.started,
            stall_seconds=save.stall_seconds,
            bytes=sum(entry.size for entry in info.manifest.files.values()),
            deleted=[path.name for path in deleted],
        )
        advice = self._advice.after_save(save.stall_seconds)
        if advice is not None:
            self._journal.event("checkpoint_interval", **asdict(advice))
            self._journal.say(advice.in_words())

    def _prune(self, section: CheckpointSection) -> list[Path]:
        return prune(self._store.directory, section.keep_last, keep_every=section.keep_every, best=_best(section))


def _saves_on_the_way(section: CheckpointSection) -> bool:
    """Whether checkpoints are due before the last step."""
    return any((section.every, section.keep_every, section.every_minutes))


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
