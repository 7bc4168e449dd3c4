"""Where the time of a run went: every second belongs to one part, so the parts add up to the wall time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from launcher.report.history import Event
from launcher.report.timeline import Away, End, Life, Timeline


class Part(StrEnum):
    """What a second was spent on."""

    USEFUL = "useful steps"
    """Steps that are in the run, without waiting for data."""
    DATA = "waiting for data"
    """In those steps, on the rank that waited most."""
    START_UP = "start-up"
    """From the begin of a life to its first step: meet, build, load."""
    CHECKPOINT = "checkpoints"
    """Saves, as far as the steps waited for them."""
    VALIDATION = "validation"
    """Measuring the validation loss."""
    LOST = "lost work"
    """From the last step of a life that is in the run to its failure."""
    DOWNTIME = "downtime"
    """From a failure, or a move to other processes, to the next life."""
    QUEUE = "queue"
    """The job waits in the queue, from its submission or its return to the begin of the life."""
    PAUSED = "paused"
    """From a wanted stop to the next life or submission."""
    OTHER = "other"
    """The rest: rows, events, copies, the step that is being computed."""


_PARTS_AWAY = {Away.DOWNTIME: Part.DOWNTIME, Away.QUEUE: Part.QUEUE, Away.PAUSED: Part.PAUSED}


@dataclass(frozen=True)
class Account:
    """The time of a run.

    Attributes:
        wall_seconds: from its first start to the last thing it wrote.
        seconds: of each part; their sum is `wall_seconds`.
        goodput: useful part of the wall time.
        goodput_running: the same without the time in which nothing was to run: queue and pauses.
        failures: lives that failed or vanished.
        seconds_between_failures: time to run per failure; None without one.
    """

    wall_seconds: float
    seconds: dict[Part, float]
    goodput: float
    goodput_running: float
    failures: int
    seconds_between_failures: float | None


def account(timeline: Timeline) -> Account:
    """Give every second of a run to a part."""
    seconds = dict.fromkeys(Part, 0.0)
    for life in timeline.lives:
        for part, value in parts_of(life).items():
            seconds[part] += value
    for gap in timeline.gaps:
        seconds[_PARTS_AWAY[gap.why]] += gap.ended - gap.began
    wall = timeline.ended - timeline.began
    running = wall - seconds[Part.QUEUE] - seconds[Part.PAUSED]
    failures = sum(life.end.is_failure for life in timeline.lives)
    return Account(
        wall_seconds=wall,
        seconds=seconds,
        goodput=_share(seconds[Part.USEFUL], wall),
        goodput_running=_share(seconds[Part.USEFUL], running),
        failures=failures,
        seconds_between_failures=running / failures if failures else None,
    )


def parts_of(life: Life) -> dict[Part, float]:
    """Where the time of one life went; the sum is its length.

    Start-up and lost work are spans of the clock. What its rows and saves say they took is subtracted from the rest
    in the order of this list, and never more than is there: clocks of several ranks do not fit to the millisecond.
    """
    training = [row for row in life.rows if row.is_training]
    waited = sum(row.data_wait_seconds for row in training)
    claims = (
        (Part.START_UP, life.stepping - life.began),
        (Part.LOST, life.ended - _kept_until(life) if _loses(life) else 0.0),
        (Part.USEFUL, sum(row.seconds for row in training) - waited),
        (Part.DATA, waited),
        (Part.VALIDATION, sum(row.seconds for row in life.rows if not row.is_training)),
        (Part.CHECKPOINT, sum(stall(event) for event in _saves(life.events) if (event.step or 0) <= life.kept)),
    )
    left, parts = life.ended - life.began, {}
    for part, claim in claims:
        parts[part] = min(max(claim, 0.0), left)
        left -= parts[part]
    parts[Part.OTHER] = left
    return parts


def stall(save: Event) -> float:
    """Seconds that the steps waited for a save; all of it if it was not made in the background."""
    return save.number("stall_seconds", save.number("seconds", 0.0))


def _loses(life: Life) -> bool:
    return life.end.is_failure or life.end is End.ROLLED_BACK or life.reached > life.kept


def _kept_until(life: Life) -> float:
    """When the last of its steps that are in the run was done, and its checkpoint, if it has one, was saved."""
    times = [row.time for row in life.rows if row.time is not None]
    if not times:
        return life.stepping
    return max(times) + sum(stall(event) for event in _saves(life.events) if event.step == life.kept)


def _saves(events: Sequence[Event]) -> Iterator[Event]:
    return (event for event in events if event.kind == "checkpoint")


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
