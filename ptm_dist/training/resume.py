"""Bringing a freshly built engine to where a run stands."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from ptm_dist.checkpoint.memory import MemoryPlace
from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.recovery import load_snapshot, newest_snapshot
from ptm_dist.checkpoint.store import FORMAT_VERSION, CheckpointInfo, CheckpointStore, Description, Manifest, latest
from ptm_dist.engines.engine import Engine
from ptm_dist.errors import CheckpointError
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.fingerprint import fingerprint
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.journal import Journal
from ptm_dist.training.preflight import check_checkpoint
from ptm_dist.training.rollback import is_abandoned
from ptm_dist.training.skips import StepRange


def resume(
    recipe: Recipe,
    engine: Engine,
    store: CheckpointStore,
    memory: MemoryPlace,
    rollbacks: Iterable[StepRange],
    data_fingerprint: str,
    control: ControlGroup,
    journal: Journal,
) -> CheckpointInfo | None:
    """Load what the run goes on from; collective.

    That is a newer snapshot in the memory of the nodes, or the newest sound checkpoint of the run, or else the one that
    checkpoint.load_from names.

    Args:
        recipe: of the run.
        engine: takes the state, at whatever layout.
        store: the run's own checkpoints.
        memory: where this rank's node has snapshots.
        rollbacks: of the run; what they have given up is never gone on from.
        data_fingerprint: of the training shards.
        control: all ranks.
        journal: told what was loaded, and of damaged checkpoints.

    Returns: what was loaded; None leaves the engine with its initial weights.
    Raises: CheckpointError if there are checkpoints and none is sound, or if they are of something else.
    """
    started = time.perf_counter()
    info = _from_memory(recipe, engine, store, memory, rollbacks, data_fingerprint, control, journal)
    source = "memory" if info is not None else "disk"
    info = info or _from_disk(recipe, engine, store, data_fingerprint, control, journal)
    if info is not None:
        engine.loaded(info.manifest.updates_done)
        journal.event("resume", step=info.step, source=source, seconds=time.perf_counter() - started)
    return info


def _from_memory(
    recipe: Recipe,
    engine: Engine,
    store: CheckpointStore,
    memory: MemoryPlace,
    rollbacks: Iterable[StepRange],
    data_fingerprint: str,
    control: ControlGroup,
    journal: Journal,
) -> CheckpointInfo | None:
    durable = control.from_first(lambda: latest(store.directory))
    known, learnt = durable.step if durable is not None else 0, fingerprint(recipe)

    def is_wanted(state: Description) -> bool:
        is_same = (state.recipe_fingerprint, state.data_fingerprint) == (learnt, data_fingerprint)
        is_newer = known < state.step < recipe.training.steps
        return is_same and is_newer and not is_abandoned(state, rollbacks)

    def on_damage(problem: str) -> None:
        journal.event("damaged_snapshot", problem=problem)
        journal.say(f"WARNING: {problem}; looking for another copy")

    snapshot = newest_snapshot(memory.folder, memory.node, control, is_wanted, on_damage)
    if snapshot is None:
        return None
    load_snapshot(snapshot, engine.state(), memory.folder, control)
    return CheckpointInfo(
        memory.folder, Manifest(format_version=FORMAT_VERSION, files={}, **dict(snapshot.description))
    )


def _from_disk(
    recipe: Recipe,
    engine: Engine,
    store: CheckpointStore,
    data_fingerprint: str,
    control: ControlGroup,
    journal: Journal,
) -> CheckpointInfo | None:
    def on_damage(path: Path, problem: str) -> None:
        journal.event("damaged_checkpoint", path=str(path), problem=problem)
        journal.say(f"WARNING: {problem}; trying the checkpoint before it")

    info = store.newest_sound(on_damage)
    if info is None and recipe.checkpoint.load_from is not None:
        info = _foreign(recipe.checkpoint.load_from, store, control)
    if info is None:
        return None
    chosen = info
    control.together(lambda: check_checkpoint(recipe, chosen, data_fingerprint))
    state = engine.state()
    if info.is_weights_only:
        state = {name: box for name, box in state.items() if name.startswith("model.")}
    store.load(info, state)
    return info


def _foreign(path: Path, store: CheckpointStore, control: ControlGroup) -> CheckpointInfo:
    info = control.from_first(lambda: find_checkpoint(path))
    problem = store.problem(info.path)
    if problem is not None:
        raise CheckpointError(f"checkpoint.load_from: {problem}")
    return info
