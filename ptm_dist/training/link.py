"""What a process of a run and whoever watches over it tell each other."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Phase(StrEnum):
    """What a process is at, in the order of a life; between two steps, from the end of one to the next."""

    BUILD = "build"
    """Meets the others, builds its part of the model."""
    LOAD = "load"
    """Reads a checkpoint."""
    BETWEEN = "between"
    """Everything after a step that has no phase of its own."""
    VALIDATE = "validate"
    """Measures the validation loss; said again with each batch."""
    SAVE = "save"
    """Writes a checkpoint, as far as the step loop waits for it."""
    DATA = "data"
    """Waits for the batch of its next step."""
    STEP = "step"
    """Computes it."""
    END = "end"
    """Has made its last step."""


class Link(Protocol):
    """One process's line to its watcher; nothing of it ever waits or fails."""

    def report(self, phase: Phase, step: int) -> None:
        """Say what begins now; `step` steps are done."""
        ...

    def is_asked_to_leave(self) -> bool:
        """Whether this life shall end with the next checkpoint, because another world is wanted."""
        ...


class NoLink:
    """Nobody watches."""

    def report(self, phase: Phase, step: int) -> None:
        """Goes nowhere."""

    def is_asked_to_leave(self) -> bool:
        """Never."""
        return False
