"""All that is known of a run, and its form for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.report.curve import Curve, check_curve
from launcher.report.goodput import Account, account, parts_of
from launcher.report.history import Event, History, iso, read_history
from launcher.report.lives import timeline_of
from launcher.report.recovery import Recovery, recoveries
from launcher.report.timeline import Life, Timeline
from ptm_dist.errors import RecipeError
from ptm_dist.recipe.loading import load_recipe
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.run_directory import RunDirectory


@dataclass(frozen=True)
class Report:
    """A run as it stands.

    Attributes:
        run: its directory.
        total_steps: of its recipe; None if that cannot be read.
        history: what it wrote.
        timeline: its lives.
        account: where the time went.
        recoveries: of its failures.
        curve: whether its steps are whole.
    """

    run: Path
    total_steps: int | None
    history: History
    timeline: Timeline
    account: Account
    recoveries: Sequence[Recovery]
    curve: Curve

    def as_json(self) -> dict[str, Any]:
        """Plain values: times in ISO 8601, all else in seconds, steps and samples."""
        last = self.timeline.lives[-1]
        return {
            "run": str(self.run),
            "state": last.end,
            "step": self.curve.last_step,
            "total_steps": self.total_steps,
            "began": iso(self.timeline.began),
            "ended": iso(self.timeline.ended),
            "wall_seconds": self.account.wall_seconds,
            "seconds": {part.name.lower(): value for part, value in self.account.seconds.items()},
            "goodput": self.account.goodput,
            "goodput_running": self.account.goodput_running,
            "failures": self.account.failures,
            "seconds_between_failures": self.account.seconds_between_failures,
            "lives": [_life(life) for life in self.timeline.lives],
            "recoveries": [{**vars(recovery), "time": iso(recovery.time)} for recovery in self.recoveries],
            "curve": {**vars(self.curve), "is_whole": self.curve.is_whole},
            "events": counts(self.timeline.events),
        }


def make_report(run: Path) -> Report:
    """Read a run directory, of a live run too; writes nothing.

    Raises: RunDirectoryError if it is none, or if nothing ever started in it.
    """
    history = read_history(run)
    recipe = _recipe(run)
    found = timeline_of(history)
    return Report(
        run=run,
        total_steps=recipe.training.steps if recipe is not None else None,
        history=history,
        timeline=found,
        account=account(found),
        recoveries=recoveries(found),
        curve=check_curve(history.kept, found, recipe),
    )


def counts(events: Sequence[Event]) -> dict[str, int]:
    """How often each kind of event happened, in order of their first time."""
    found: dict[str, int] = {}
    for event in events:
        found[event.kind] = found.get(event.kind, 0) + 1
    return found


def _recipe(run: Path) -> Recipe | None:
    """The recipe of a run; None if this version cannot read it, which is no reason to tell nothing."""
    try:
        return load_recipe(RunDirectory(run).recipe)
    except RecipeError:
        return None


def _life(life: Life) -> dict[str, Any]:
    return {
        "number": life.number,
        "began": iso(life.began),
        "ended": iso(life.ended),
        "end": life.end,
        "cause": life.cause,
        "nodes": life.nodes,
        "world_size": life.world_size,
        "layout": life.layout,
        "start_step": life.start_step,
        "reached": life.reached,
        "kept": life.kept,
        "source": life.source,
        "seconds_to_first_step": None if life.first_step is None else life.first_step - life.began,
        "seconds": {part.name.lower(): value for part, value in parts_of(life).items()},
    }
