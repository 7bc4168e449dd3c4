"""Who holds the others up: read from what each rank said last, how it is, and where its Python code stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptm_dist.training.link import Phase

_PLACES = {phase: place for place, phase in enumerate(Phase)}
# A rank whose newest frames lie here waits for the others.
_WAITING = ("torch/distributed/", "ptm_dist/parallel/control.py")


@dataclass(frozen=True)
class Beat:
    """What a rank said last.

    Attributes:
        phase: it is at.
        step: steps it has done.
        seconds: since it said so.
        state: of its process, as the kernel names it: R, S, D, T (stopped), ...; empty if unknown.
    """

    phase: Phase
    step: int
    seconds: float
    state: str = ""

    @property
    def is_stopped(self) -> bool:
        """Whether somebody stopped the process (SIGSTOP, a debugger)."""
        return self.state in ("T", "t")

    def as_list(self) -> list[Any]:
        """Plain values, few bytes."""
        return [self.phase, self.step, round(self.seconds, 3), self.state]

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> Beat:
        """What :meth:`as_list` made."""
        phase, step, seconds, state = values
        return cls(Phase(phase), step, seconds, state)

    def describe(self) -> str:
        """Such as `in phase data after step 17, for 60 s`."""
        stopped = ", stopped by a signal" if self.is_stopped else ""
        return f"in phase {self.phase} after step {self.step}, for {self.seconds:.0f} s{stopped}"


def is_hanging(beats: Mapping[int, Beat], step_seconds: float, start_seconds: float, stopped_seconds: float) -> bool:
    """Whether a round makes no progress any more: each rank has been silent too long, or one is stopped.

    Args:
        beats: of all ranks that live; a rank that never said anything has none.
        step_seconds: longest silence of a rank between its first step and its last.
        start_seconds: longest silence while it builds, loads, or saves.
        stopped_seconds: longest time that a process may be stopped.
    """
    if any(beat.is_stopped and beat.seconds > stopped_seconds for beat in beats.values()):
        return True
    slow = (Phase.BUILD, Phase.LOAD, Phase.SAVE, Phase.END)
    limits = {rank: start_seconds if beat.phase in slow else step_seconds for rank, beat in beats.items()}
    return bool(beats) and all(beat.seconds > limits[rank] for rank, beat in beats.items())


def latest_rank(beats: Mapping[int, Beat], stacks: Mapping[int, str]) -> int:
    """The rank that the others wait for.

    The first of: a stopped process; the one that has got least far; one that is not waiting for others; the one that
    has been silent longest.

    Args:
        beats: of all ranks, at least one.
        stacks: by rank, what :mod:`faulthandler` wrote, newest frame first; some or all may be missing.
    """

    def lateness(rank: int) -> tuple[bool, int, int, bool, float]:
        beat = beats[rank]
        waits = is_waiting(stacks.get(rank, ""))
        return (not beat.is_stopped, beat.step, _PLACES[beat.phase], waits, -beat.seconds)

    return min(beats, key=lateness)


def is_waiting(stack: str) -> bool:
    """Whether the main thread of a process waits for other ranks, as far as its newest frames tell."""
    marks = ("Current thread", "Thread")
    threads = [part for part in stack.split("\n\n") if part.lstrip().startswith(marks)]
    main = next((part for part in threads if "launcher/worker.py" in part), threads[0] if threads else "")
    frames = [line for line in main.splitlines() if line.lstrip().startswith("File ")]
    return any(place in frame for frame in frames[:4] for place in _WAITING)
