"""Going back to an earlier checkpoint and on without some steps, so that a kill at any moment changes nothing.

What was decided is written down first. Whoever starts the run next, this process or one after it, then sets aside
the checkpoints of the line that is given up, and goes on from the newest one that is left.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path

from data_pipeline.atomic import sync_path
from ptm_dist.checkpoint.files import write_atomically
from ptm_dist.checkpoint.store import Description, checkpoint_paths, read_checkpoint
from ptm_dist.errors import CheckpointError, RunDirectoryError
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.training.health import RollbackRequired
from ptm_dist.training.journal import Journal
from ptm_dist.training.run_directory import RunDirectory
from ptm_dist.training.skips import StepRange

ROLLBACKS_FILE = "rollbacks.json"
ABANDONED_PREFIX = "abandoned-"


def decide(request: RollbackRequired, directory: RunDirectory, control: ControlGroup, journal: Journal) -> None:
    """Write down that a run goes back; collective. On disk on return; :func:`enforce` then acts upon it.

    What the rollback before had set aside is deleted.
    """
    control.from_first(lambda: _record(directory, (request.first, request.last)))
    journal.event("rollback", step=request.last, first_skipped=request.first, reason=request.reason)
    journal.say(
        f"WARNING: step {request.last}: {request.reason}; going back to the newest checkpoint before step "
        f"{request.first}, and on without the updates of steps {request.first} to {request.last}"
    )


def enforce(directory: RunDirectory, control: ControlGroup) -> tuple[StepRange, ...]:
    """Set aside the checkpoints of lines that were given up; collective, before a checkpoint is chosen.

    Returns: the ranges of steps whose updates all rollbacks of the run leave out, in their order.
    """
    return control.from_first(lambda: _enforce(directory))


def is_abandoned(description: Description, rollbacks: Iterable[StepRange]) -> bool:
    """Whether a checkpoint has seen a step that was later left out, and is not of a line that left it out."""
    known: Collection[StepRange] = description.skipped
    return any(description.step >= first and (first, last) not in known for first, last in rollbacks)


def _enforce(directory: RunDirectory) -> tuple[StepRange, ...]:
    rollbacks = _read(directory.path / ROLLBACKS_FILE)
    given_up = [path for path in checkpoint_paths(directory.checkpoints) if _is_abandoned(path, rollbacks)]
    for path in given_up:
        path.rename(path.with_name(f"{ABANDONED_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"))
    if given_up:
        sync_path(directory.checkpoints)
    return rollbacks


def _is_abandoned(path: Path, rollbacks: tuple[StepRange, ...]) -> bool:
    if not rollbacks:
        return False
    try:
        return is_abandoned(read_checkpoint(path).manifest, rollbacks)
    except CheckpointError:
        return False  # damaged: it is never chosen, and said to be so where that matters


def _read(path: Path) -> tuple[StepRange, ...]:
    if not path.exists():
        return ()
    try:
        return tuple((int(first), int(last)) for first, last in json.loads(path.read_text())["skipped"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(
            f"{path}, which says what rollbacks of this run left out, cannot be read: {error}; copy it back, or remove "
            "it to have those steps computed again"
        ) from None


def _record(directory: RunDirectory, skipped: StepRange) -> None:
    path = directory.path / ROLLBACKS_FILE
    ranges = [*_read(path), skipped]
    try:
        for abandoned in directory.checkpoints.glob(f"{ABANDONED_PREFIX}*"):
            shutil.rmtree(abandoned)
        write_atomically(path, json.dumps({"skipped": ranges}) + "\n")
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror}") from error
