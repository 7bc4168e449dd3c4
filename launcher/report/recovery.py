"""How a run came back from each of its failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.report.timeline import Life, Timeline


@dataclass(frozen=True)
class Recovery:
    """One failure, and what followed.

    Attributes:
        life: number of the one that failed.
        time: of the failure, in seconds since the epoch; of one without a word, its last sign of life.
        cause: in words.
        reached: steps that were done.
        resumed_from: steps that the next life began with; None: there is none yet.
        source: where that one's state came from, if it said so.
        seconds: until the next step was done, in whichever life; None: not yet.
        seconds_to_same_step: until as many steps were done again as at the failure; None: not yet.
        steps_again: that had to be computed a second time.
    """

    life: int
    time: float
    cause: str
    reached: int
    resumed_from: int | None
    source: str
    seconds: float | None
    seconds_to_same_step: float | None
    steps_again: int


def recoveries(timeline: Timeline) -> list[Recovery]:
    """All failures of a run in order."""
    return [
        _recovery(life, timeline.lives[number:])
        for number, life in enumerate(timeline.lives, start=1)
        if life.end.is_failure
    ]


def _recovery(life: Life, following: Sequence[Life]) -> Recovery:
    resumed = next((then for then in following if then.start_step is not None), None)
    stepped = next((then.first_step for then in following if then.first_step is not None), None)
    same = next(_times_of(life.reached, following), None)
    if stepped is not None and resumed is not None and resumed.start_step is not None:
        same = stepped if resumed.start_step >= life.reached else same
    return Recovery(
        life=life.number,
        time=life.ended,
        cause=life.cause or "killed without a word",
        reached=life.reached,
        resumed_from=resumed.start_step if resumed is not None else None,
        source=resumed.source if resumed is not None else "",
        seconds=None if stepped is None else stepped - life.ended,
        seconds_to_same_step=None if same is None or stepped is None else max(same, stepped) - life.ended,
        steps_again=0 if life.start_step is None else life.reached - life.kept,
    )


def _times_of(step: int, lives: Sequence[Life]) -> Iterator[float]:
    """When a step was done in each of some lives that did it."""
    for life in lives:
        rows = sorted((row for row in (*life.rows, *life.lost) if row.is_training), key=lambda row: row.step)
        row = next((row for row in rows if row.first_step <= step <= row.step), None)
        yield from () if row is None else (time for done, time in row.step_times() if done == step)
