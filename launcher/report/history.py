"""What a run wrote down while it lived: events and rows, with times as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ptm_dist.errors import RunDirectoryError
from ptm_dist.training.metrics import Row, lost_rows_path, read_rows
from ptm_dist.training.run_directory import RunDirectory

_STEP_KINDS = ("train", "validation")


@dataclass(frozen=True)
class Event:
    """A line of ``events.jsonl``.

    Attributes:
        time: seconds since the epoch; never before the line above it.
        kind: what happened.
        values: everything else that the line says.
    """

    time: float
    kind: str
    values: dict[str, Any]

    def number(self, name: str, default: float) -> float:
        """A value that should be a number; `default` if it is missing or something else."""
        value = self.values.get(name)
        return value if isinstance(value, int | float) else default

    @property
    def step(self) -> int | None:
        """Steps done when it happened, if it says so."""
        value = self.values.get("step")
        return value if isinstance(value, int) else None


@dataclass(frozen=True)
class StepRow:
    """A row of figures of steps that were done one after the other.

    Attributes:
        row: as it was written.
        step: the last of its steps.
        time: when it was written, in seconds since the epoch; None: it does not say.
    """

    row: Row
    step: int
    time: float | None

    @property
    def is_training(self) -> bool:
        """Whether it is of training steps; of a validation otherwise."""
        return bool(self.row["kind"] == "train")

    @property
    def losses(self) -> list[float]:
        """Training loss of each of its steps; of a validation its one loss."""
        return list(self.row.get("losses", ())) if self.is_training else [self.row["loss"]]

    @property
    def seconds(self) -> float:
        """What its steps, or its validation, took."""
        if not self.is_training:
            return float(self.row.get("seconds", 0.0))
        return float(self.row.get("step_seconds", 0.0)) * len(self.losses)

    @property
    def data_wait_seconds(self) -> float:
        """Of which its steps waited for data."""
        return float(self.row.get("data_wait_seconds", 0.0))

    @property
    def first_step(self) -> int:
        """The first of its steps."""
        return self.step - len(self.losses) + 1

    def step_times(self) -> Iterator[tuple[int, float]]:
        """When each of its steps was done, as if all took the same time; nothing if it has no time."""
        if self.time is None:
            return
        each = self.seconds / max(1, len(self.losses))
        for step in range(self.first_step, self.step + 1):
            yield step, self.time - (self.step - step) * each


@dataclass(frozen=True)
class History:
    """All that a run wrote down.

    Attributes:
        events: in order.
        kept: rows of the steps that are in the run.
        lost: rows of steps that a failure threw away.
    """

    events: tuple[Event, ...]
    kept: tuple[StepRow, ...]
    lost: tuple[StepRow, ...]


def read_history(run: Path) -> History:
    """Read a run directory, of a live run too; half-written lines are left out.

    Raises: RunDirectoryError if it is none, or if nothing ever started in it.
    """
    directory = RunDirectory(run)
    if not directory.recipe.is_file() and not directory.events.is_file():
        raise RunDirectoryError(f"{run} is no run directory: it has no {directory.recipe.name}; see `ptm status`")
    events = tuple(_in_order(read_rows(directory.events)))
    if not any(event.kind in ("start", "round") for event in events):
        raise RunDirectoryError(
            f"{run} has nothing to report: no start is in its {directory.events.name}; `ptm status {run}` says whether "
            "it waits for its nodes"
        )
    return History(
        events=events,
        kept=tuple(_step_rows(read_rows(directory.metrics))),
        lost=tuple(_step_rows(read_rows(lost_rows_path(directory.metrics)))),
    )


def iso(seconds: float) -> str:
    """A time as in the files of a run."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _in_order(rows: Iterable[Row]) -> Iterator[Event]:
    """Events in the order of their lines; a clock that is behind another one does not make a line earlier."""
    latest = float("-inf")
    for row in rows:
        time = _seconds(row.get("time"))
        if time is None or not isinstance(row.get("event"), str):
            continue
        latest = max(latest, time)
        yield Event(latest, row["event"], {key: row[key] for key in row if key not in ("time", "event")})


def _step_rows(rows: Iterable[Row]) -> Iterator[StepRow]:
    for row in rows:
        if row.get("kind") in _STEP_KINDS and isinstance(row.get("step"), int):
            yield StepRow(row, row["step"], _seconds(row.get("time")))


def _seconds(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
