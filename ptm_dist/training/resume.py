"""Bringing a freshly built engine to where a run stands."""

from __future__ import annotations

from pathlib import Path

from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.store import CheckpointInfo, CheckpointStore
from ptm_dist.engines.engine import Engine
from ptm_dist.errors import CheckpointError
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.journal import Journal
from ptm_dist.training.preflight import check_checkpoint


def resume(
    recipe: Recipe,
    engine: Engine,
    store: CheckpointStore,
    data_fingerprint: str,
    control: ControlGroup,
    journal: Journal,
) -> CheckpointInfo | None:
    """Load the newest sound checkpoint of the run, or else the one that checkpoint.load_from names; collective.

    Args:
        recipe: of the run.
        engine: takes the state, at whatever layout.
        store: the run's own checkpoints.
        data_fingerprint: of the training shards.
        control: all ranks.
        journal: told of damaged checkpoints.

    Returns: what was loaded; None leaves the engine with its initial weights.
    Raises: CheckpointError if there are checkpoints and none is sound, or if they are of something else.
    """

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
    engine.loaded(info.manifest.updates_done)
    return info


def _foreign(path: Path, store: CheckpointStore, control: ControlGroup) -> CheckpointInfo:
    info = control.from_first(lambda: find_checkpoint(path))
    problem = store.problem(info.path)
    if problem is not None:
        raise CheckpointError(f"checkpoint.load_from: {problem}")
    return info
