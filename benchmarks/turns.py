"""Candidates in processes of their own that take turns: the same noise for all, and each with its own memory.

Only one candidate computes at a time. What one imports, compiles or allocates does not touch the others.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

_context = multiprocessing.get_context("spawn")
Build = Callable[[], Callable[[], float]]
"""Gives a function that takes one step and returns its loss; sent to another process, so made of names in modules."""
TRACE = 3
"""Steps whose losses are compared; they also warm up."""


@dataclass
class Measured:
    """Of one candidate.

    Attributes:
        seconds: of each measured step, the slowest process's.
        losses: of its first steps, mean over processes.
        peak: bytes that a process holds at most in a measured step, beyond those before the model was built; the
            largest of the processes.
        error: why there is nothing of the above.
    """

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0
    error: str = ""

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)


class Team:
    """The processes of one candidate.

    Args:
        build: called in each.
        world: their number; above 1 they share a gloo group.
        threads: of each.
    """

    def __init__(self, build: Build, world: int, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world):
            mine, theirs = _context.Pipe()
            place = (rank, world, threads, f"{self._folder.name}/store")
            process = _context.Process(target=_work, args=(theirs, build, place), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def ask(self, command: str) -> list[float]:
        """Each process's answer: to `ready` 0, to `step` the loss, to `time` the seconds of a step, to `peak` bytes.

        Raises: RuntimeError with what went wrong there.
        """
        for pipe in self._pipes:
            pipe.send(command)
        answers = [self._receive(pipe) for pipe in self._pipes]
        if errors := [answer for answer in answers if isinstance(answer, str)]:
            raise RuntimeError(errors[0])
        return [float(answer) for answer in answers]

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def _receive(self, pipe: Connection) -> float | str:
        try:
            answer: float | str = pipe.recv()
        except (EOFError, ConnectionResetError):
            return "the process died, perhaps for want of memory"
        return answer


def take_turns(candidates: Mapping[str, Build], *, rounds: int, world: int, threads: int) -> dict[str, Measured]:
    """Let all candidates step in turn, `rounds` times after :data:`TRACE` steps that warm up.

    Args:
        candidates: all are alive at the same time, but only one computes.
        rounds: steps that count, of each.
        world: processes of each.
        threads: of each process.
    """
    measured = {name: Measured() for name in candidates}
    teams = {name: Team(build, world, threads) for name, build in candidates.items()}

    def each(action: Callable[[Team, Measured], object]) -> None:
        for name in list(teams):
            try:
                action(teams[name], measured[name])
            except RuntimeError as error:
                measured[name] = Measured(error=str(error))
                teams.pop(name).stop()

    each(lambda team, _: team.ask("ready"))
    for _ in range(TRACE):
        each(lambda team, found: found.losses.append(statistics.mean(team.ask("step"))))
    for _ in range(rounds):
        each(lambda team, found: found.seconds.append(max(team.ask("time"))))
    each(lambda team, found: setattr(found, "peak", int(max(team.ask("peak")))))
    for team in teams.values():
        team.stop()
    return measured


def _work(pipe: Connection, build: Build, place: tuple[int, int, int, str]) -> None:
    """Answer commands until killed."""
    rank, world, threads, store = place
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), OMP_NUM_THREADS=str(threads))
    torch.set_num_threads(threads)
    try:
        if world > 1:
            dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
        before = _resident("VmRSS")
        step = build()
        while True:
            pipe.send(_answer(pipe.recv(), step, before))
    except (EOFError, BrokenPipeError):
        return
    except BaseException as error:
        pipe.send("".join(traceback.format_exception(error)))


def _answer(command: str, step: Callable[[], float], before: int) -> float:
    match command:
        case "step":
            loss = step()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
            return loss
        case "time":
            if dist.is_initialized():
                dist.barrier()
            begin = time.perf_counter()
            step()
            return time.perf_counter() - begin
        case "peak":
            return float(_resident("VmHWM") - before)
    return 0.0


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def worst_difference(measured: Sequence[Measured]) -> float:
    """Between the losses of the first candidate and those of all others that gave some."""
    reference = measured[0].losses
    pairs = [pair for other in measured[1:] for pair in zip(reference, other.losses, strict=False)]
    return max((abs(ours - theirs) for ours, theirs in pairs), default=0.0)
