"""A whole run, seen from one of its processes: meet, build, resume, train, save, leave."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from data_pipeline.batches import StepBatch
from ptm_dist.checkpoint.background import BackgroundSaves
from ptm_dist.checkpoint.memory import MemoryPlace, MemorySnapshots, own_address, remove_snapshots, snapshot_folder
from ptm_dist.checkpoint.store import CheckpointInfo, CheckpointStore, Description, best, sweep
from ptm_dist.engines import build_engine
from ptm_dist.engines.engine import Engine
from ptm_dist.errors import RunDirectoryError
from ptm_dist.models import parameter_shapes
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.fingerprint import fingerprint, model_fingerprint
from ptm_dist.recipe.layout import ResolvedLayout, resolve_layout
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.callbacks import (
    MAKES_WAY,
    FirstStep,
    StopAtStep,
    StopOnSignal,
    TrainRows,
    Validation,
)
from ptm_dist.training.data import RecipeData
from ptm_dist.training.health import Health, RollbackRequired
from ptm_dist.training.journal import Journal
from ptm_dist.training.link import Link, NoLink, Phase
from ptm_dist.training.machine import Machine, machine_of
from ptm_dist.training.metrics import read_rows
from ptm_dist.training.processes import choose_device, make_deterministic, process_group
from ptm_dist.training.profiling import Profiling
from ptm_dist.training.quarantine import Quarantine
from ptm_dist.training.resume import resume
from ptm_dist.training.rollback import decide, enforce
from ptm_dist.training.run_directory import RunDirectory
from ptm_dist.training.saving import Checkpointing
from ptm_dist.training.signals import StopFlag, stop_signals
from ptm_dist.training.skips import Skips, StepRange
from ptm_dist.training.spikes import LossWindow
from ptm_dist.training.stragglers import Stragglers
from ptm_dist.training.trainer import DivergenceError, Progress, StepRecord, Trainer
from ptm_dist.training.world import World

_DYING_SECONDS = 60.0


@dataclass(frozen=True)
class RunSummary:
    """How one life of a run ended, the same on every rank.

    Attributes:
        directory: of the run.
        layout: in words.
        start_step: steps that were done before this life.
        step: steps done.
        total_steps: of the run.
        stop_reason: a signal's name or the recipe key that stopped it; None if it has all its steps.
        loss: training loss of the last step; None if it was none.
        validation_loss: at the last step, None if it was not validated there.
        checkpoint: the newest one; None if the run was stopped before its first step.
        seconds: wall time of this life.
    """

    directory: Path
    layout: str
    start_step: int
    step: int
    total_steps: int
    stop_reason: str | None
    loss: float | None
    validation_loss: float | None
    checkpoint: Path | None
    seconds: float

    @property
    def is_finished(self) -> bool:
        """Whether the run has all its steps."""
        return self.step >= self.total_steps

    @property
    def makes_way(self) -> bool:
        """Whether this life ended so that the run goes on at once on other processes."""
        return self.stop_reason == MAKES_WAY


@dataclass(frozen=True)
class _Life:
    """What the parts of a run share while one set of processes lives."""

    recipe: Recipe
    layout: ResolvedLayout
    device: torch.device
    node: str
    memory: MemoryPlace
    control: ControlGroup
    directory: RunDirectory
    journal: Journal
    data: RecipeData
    engine: Engine
    store: CheckpointStore
    link: Link
    began: float


def run(recipe: Recipe, world: World, link: Link | None = None) -> RunSummary:
    """Train a recipe from where its run directory stands, to its end or to a stop; collective.

    Call :func:`ptm_dist.training.preflight.preflight` in one process before. SIGINT and SIGTERM make all ranks
    save after the step they are in and return. Calling it again goes on from the newest sound checkpoint, at
    whatever layout and number of ranks.

    Args:
        recipe: what to train and where.
        world: this process and the others.
        link: to whoever watches over this process.

    Raises:
        UserError: what the user can mend, the same on every rank.
    """
    started = time.monotonic()
    link = link or NoLink()
    link.report(Phase.BUILD, 0)
    device = choose_device(recipe.launch.device, world.local_rank)
    if recipe.launch.deterministic:
        make_deterministic(warns=recipe.engine != "native")  # what the libraries of others call is not ours to know
    with stop_signals() as flag, process_group(world, device) as control:
        directory = RunDirectory(recipe.directory)
        control.from_first(lambda: directory.prepare(recipe))
        with _owned(directory, control, is_watched=not isinstance(link, NoLink)):
            build = partial(_build, recipe, device, _memory_place(recipe, world), control, directory, link)
            while (ended := _live(build(started), flag)) is None:  # after a rollback
                started = time.monotonic()
    return ended


@contextmanager
def _owned(directory: RunDirectory, control: ControlGroup, is_watched: bool) -> Iterator[None]:
    """The lock of the first rank, and what an owner does: sweep, and note how it failed.

    Where somebody watches, that one notes failures, and an earlier owner may still be dying.
    """
    with ExitStack() as stack:
        lock = directory.locked(_DYING_SECONDS if is_watched else 0.0) if control.is_first else nullcontext()
        control.together(lambda: stack.enter_context(lock))
        control.from_first(lambda: sweep(directory.checkpoints))
        try:
            yield
        except BaseException as error:
            if control.is_first and not is_watched:
                with suppress(RunDirectoryError):  # the failure itself matters more than its note
                    directory.event("failure", error=f"{type(error).__name__}: {error}")
            raise


def _build(
    recipe: Recipe,
    device: torch.device,
    memory: MemoryPlace,
    control: ControlGroup,
    directory: RunDirectory,
    link: Link,
    began: float,
) -> _Life:
    layout = resolve_layout(recipe.layout, control.size)
    return _Life(
        recipe=recipe,
        layout=layout,
        device=device,
        node=memory.node,
        memory=memory,
        control=control,
        directory=directory,
        journal=Journal(directory, recipe, control),
        data=control.together(lambda: RecipeData(recipe)),
        engine=build_engine(recipe, layout, device),
        store=CheckpointStore(directory.checkpoints, control),
        link=link,
        began=began,
    )


def _live(life: _Life, flag: StopFlag) -> RunSummary | None:
    """From the newest checkpoint of the line that counts to the end of this life; None if it ends in a rollback."""
    life.link.report(Phase.LOAD, 0)
    rollbacks = enforce(life.directory, life.control)
    parts = (life.recipe, life.engine, life.store, life.memory, rollbacks)
    info = resume(*parts, life.data.fingerprint, life.control, life.journal)
    try:
        trainer, last = _train(life, info, flag, rollbacks)
    except RollbackRequired as request:
        life.link.report(Phase.BUILD, 0)
        decide(request, life.directory, life.control, life.journal)
        return None
    life.control.together(lambda: None)  # nobody sends a snapshot any more
    remove_snapshots(life.memory.folder)
    start_step = info.step if info is not None else 0
    return _summary(life, trainer, start_step, last or info, time.monotonic() - life.began)


def _train(
    life: _Life, info: CheckpointInfo | None, flag: StopFlag, rollbacks: Iterable[StepRange]
) -> tuple[Trainer, CheckpointInfo | None]:
    """The loop with all callbacks; also gives the last checkpoint it made."""
    recipe, control, journal, engine = life.recipe, life.control, life.journal, life.engine
    progress = Progress()
    if info is not None:
        progress = Progress(info.manifest.step, info.manifest.samples, info.manifest.updates_done)
    health = _health(life, info, rollbacks)
    machine = machine_of(recipe, life.device, control)
    quarantine = _quarantine(life, info)
    stragglers = Stragglers(recipe.health, life.device, life.node, control, journal)
    rows = TrainRows(recipe.logging.every, machine, control, stragglers, journal)
    validation = _validation(life)
    describe = partial(_describe, life, quarantine, health, progress)
    saves, snapshots = _background(life), _snapshots(life)
    checkpointing = Checkpointing(life.store, saves, snapshots, control, describe, rows, validation, journal)
    stop_at_step = StopAtStep(recipe.launch.stop_at_step) if recipe.launch.stop_at_step else None
    stop_on_signal, first_step = StopOnSignal(flag, control, journal), FirstStep(journal)
    profiling = _profiling(life)
    callbacks = (profiling, stop_on_signal, stop_at_step, first_step, rows, validation, checkpointing)
    present = [callback for callback in callbacks if callback is not None]
    trainer = Trainer(engine, recipe, progress, present, life.link, health)
    try:
        journal.open_rows(progress.step)
        _announce(life, machine, progress)
        trainer.run(_batches(life, progress.step, quarantine))
        for source, statistics in life.data.cache_statistics().items():
            journal.event("cache", source=source, **asdict(statistics))
        reason = {} if trainer.is_finished else {"reason": trainer.stop_reason}
        journal.event("finish" if trainer.is_finished else "stop", step=progress.step, **reason)
    except (RollbackRequired, DivergenceError):
        checkpointing.settle(recipe.checkpoint)  # all ranks are here, and it may be the one to go on from
        raise
    finally:
        if profiling is not None:
            profiling.close()
        checkpointing.close()
        journal.close()
        engine.close()
    return trainer, checkpointing.last


def _memory_place(recipe: Recipe, world: World) -> MemoryPlace:
    folder = snapshot_folder(recipe.checkpoint.memory_dir, recipe.directory, world.node)
    return MemoryPlace(folder, world.node, own_address(world.master_addr))


def _snapshots(life: _Life) -> MemorySnapshots | None:
    """What takes snapshots in memory; None if the recipe wants none, or there is no memory disk on a node."""
    section = life.recipe.checkpoint
    if not section.memory_every:
        return None
    (is_missing,) = life.control.maxima(float(not section.memory_dir.is_dir()))
    if is_missing:
        life.journal.say(f"no snapshots in memory: a node has no {section.memory_dir} (checkpoint.memory_dir)")
        return None
    return MemorySnapshots(life.store, life.control, life.device, life.memory)


def _background(life: _Life) -> BackgroundSaves | None:
    """What saves beside the steps; None where the loop waits for each save."""
    if not life.recipe.checkpoint.asynchronous:
        return None
    offload = life.recipe.deepspeed
    if life.recipe.engine == "deepspeed" and "nvme" in (offload.offload_optimizer, offload.offload_parameters):
        life.journal.say("the state lies on a disk, and not in memory a second time: steps wait for each checkpoint")
        return None
    return BackgroundSaves(life.store, life.control, life.device)


def _profiling(life: _Life) -> Profiling | None:
    section = life.recipe.logging
    if not section.profile:
        return None
    return Profiling(section, life.directory.profile, life.control, life.device, life.journal)


def _announce(life: _Life, machine: Machine, progress: Progress) -> None:
    """The header of this life: a row for who reads the figures, events, and a line for who watches."""
    layout, step, size = life.layout.describe(), progress.step, life.control.size
    parameters = sum(math.prod(shape) for shape in parameter_shapes(life.recipe.model).values())
    starts = [row for row in read_rows(life.directory.events) if row["event"] == "start"]
    seconds = time.monotonic() - life.began
    processes = life.control.gather(f"{life.node} {os.getpid()}")  # mpirun names the one that fell by these alone
    life.journal.event("start", step=step, layout=layout, world_size=size, seconds=seconds, processes=processes)
    if starts and starts[-1]["layout"] != layout:
        life.journal.event("layout_change", step=step, before=starts[-1]["layout"], after=layout)
    life.journal.write(
        {
            "kind": "run",
            "step": step,
            "layout": layout,
            "world_size": size,
            "parameters": parameters,
            "epochs": life.data.epochs,
            **machine.describe(),
        }
    )
    life.journal.say(
        f"{'resuming' if step else 'starting'} {life.recipe.name} at step {step} of {life.recipe.training.steps}: "
        f"{parameters:,} parameters, {layout}, {machine.device.type}, in {life.directory.path}"
    )
    if len(life.data.epochs) > 1:
        epochs = ", ".join(f"{name} {count:.2f}" for name, count in life.data.epochs.items())
        life.journal.say(f"epochs of each source in the whole run: {epochs}")


def _validation(life: _Life) -> Validation | None:
    if not life.recipe.evaluation.every:
        return None
    champion = life.control.from_first(lambda: best(life.directory.checkpoints))
    return Validation(
        life.recipe.evaluation.every,
        lambda step: life.data.validating(step, life.engine.dp_rank, life.engine.dp_size),
        champion.validation_loss if champion is not None else None,
        life.journal,
    )


def _quarantine(life: _Life, info: CheckpointInfo | None) -> Quarantine:
    shards = info.manifest.quarantine if info is not None else ()
    return Quarantine(life.data, life.control, life.journal, life.recipe.data.broken_limit_ppm, shards)


def _batches(life: _Life, step: int, quarantine: Quarantine) -> Iterator[StepBatch]:
    """This rank's batches from a step on."""
    return life.data.training(
        step,
        life.engine.dp_rank,
        life.engine.dp_size,
        pin_memory=life.device.type == "cuda",
        handle_broken=quarantine.handle if life.recipe.data.on_broken == "replace" else None,
    )


def _health(life: _Life, info: CheckpointInfo | None, rollbacks: Iterable[StepRange]) -> Health:
    """What the checkpoint remembers, and the rollbacks that came after it."""
    section, known = life.recipe.health, info.manifest if info is not None else None
    skips = Skips(known.skipped if known is not None else ())
    for first, last in rollbacks:
        skips.add(first, last)
    losses = known.recent_losses if known is not None else ()
    window = LossWindow(section.spike_window, section.spike_deviations, losses)
    return Health(section, skips, window, life.control, life.journal)


def _describe(
    life: _Life,
    quarantine: Quarantine,
    health: Health,
    progress: Progress,
    record: StepRecord,
    metrics: dict[str, float],
) -> Description:
    return Description(
        step=record.step,
        samples=record.samples,
        recipe=life.recipe.model_dump(mode="json"),
        recipe_fingerprint=fingerprint(life.recipe),
        model_fingerprint=model_fingerprint(life.recipe),
        layout=life.layout.describe(),
        data_fingerprint=life.data.fingerprint,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        torch_version=torch.__version__,
        world_size=life.control.size,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        quarantine=tuple(quarantine.shards),
        skipped=health.skips.ranges,
        updates=progress.updates,
        recent_losses=health.window.losses,
    )


def _summary(life: _Life, trainer: Trainer, start_step: int, info: CheckpointInfo | None, seconds: float) -> RunSummary:
    metrics = info.manifest.metrics if info is not None else {}
    return RunSummary(
        directory=life.directory.path,
        layout=life.layout.describe(),
        start_step=start_step,
        step=trainer.progress.step,
        total_steps=life.recipe.training.steps,
        stop_reason=trainer.stop_reason,
        loss=metrics.get("loss"),
        validation_loss=metrics.get("validation_loss"),
        checkpoint=info.path if info is not None else None,
        seconds=seconds,
    )
