"""The lives of a run: from one start to its end, on the same processes and with the same layout."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from launcher.report.history import Event, StepRow


class End(StrEnum):
    """How a life ended."""

    FINISHED = "finished"
    """It made the last step of the run."""
    STOPPED = "stopped"
    """Somebody wanted it to stop; it saved and left."""
    MADE_WAY = "made way"
    """It saved and left so that the run goes on at once on other processes."""
    ROLLED_BACK = "rolled back"
    """It went back to an earlier step."""
    FAILED = "failed"
    """A process or a node failed, or made no progress any more."""
    VANISHED = "vanished"
    """It was killed without a word: known only from the start after it."""
    OPEN = "no end noted"
    """The newest one: it is running, or was killed without a word."""

    @property
    def is_failure(self) -> bool:
        """Whether work had to be done again, or a start was in vain."""
        return self in (End.FAILED, End.VANISHED)


@dataclass(frozen=True)
class Life:
    """One life of a run. Times are in seconds since the epoch.

    Attributes:
        number: from 1.
        began: with its round, or when its first process set to work.
        ended: at its end or failure; of one that vanished, its last sign of life.
        end: how.
        cause: of the end, in words; empty if there is nothing to say.
        nodes: their names; empty if the run was started without agents.
        world_size: processes; 0 if it died before it said so.
        layout: in words.
        start_step: steps that were done before; None if it died before it knew.
        reached: most steps that were done.
        kept: steps up to this one are in the run; later lives computed the others again.
        source: where the state that it began with came from (`memory`, `disk`), if it said so.
        stepping: when its first step began; `ended` if it came to none.
        first_step: when its first step was done; None if it came to none.
        events: between its begin and the next one's.
        rows: of its steps that are in the run.
        lost: rows of its other steps.
    """

    number: int
    began: float
    ended: float
    end: End
    cause: str
    nodes: tuple[str, ...]
    world_size: int
    layout: str
    start_step: int | None
    reached: int
    kept: int
    source: str
    stepping: float
    first_step: float | None
    events: tuple[Event, ...]
    rows: tuple[StepRow, ...]
    lost: tuple[StepRow, ...]


class Away(StrEnum):
    """Why nobody computes between two lives."""

    DOWNTIME = "downtime"
    """It failed or moved, and comes back."""
    QUEUE = "queue"
    """Its job waits."""
    PAUSED = "paused"
    """Somebody stopped it."""


@dataclass(frozen=True)
class Gap:
    """Time in which no life was. `why` says what for; times are in seconds since the epoch."""

    began: float
    ended: float
    why: Away


@dataclass(frozen=True)
class Timeline:
    """A run from its first start to the last thing it wrote.

    Attributes:
        began: of its first life.
        ended: last event or row.
        lives: in order, at least one.
        gaps: between and after them.
        events: all, also those before the first life.
    """

    began: float
    ended: float
    lives: tuple[Life, ...]
    gaps: tuple[Gap, ...]
    events: tuple[Event, ...]
