"""The programs that a launch command starts, one for each node: keepers of agents, here or elsewhere."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

_END_SECONDS = 10.0
_MOST_STARTS = 5
_CALM_SECONDS = 60.0


class Agents(Protocol):
    """What a coordinator knows of those that started its agents."""

    def tend(self) -> Sequence[str]:
        """Look after them, often; gives the nodes whose program has died just now and will be started again."""
        ...

    def may_come(self) -> bool:
        """Whether an agent that is not there yet may still come."""
        ...

    def end(self) -> None:
        """The coordinator has said goodbye to all agents."""
        ...


class Elsewhere:
    """Somebody else started the agents, and may start more."""

    def tend(self) -> Sequence[str]:
        """Nothing to do."""
        return ()

    def may_come(self) -> bool:
        """Always."""
        return True

    def end(self) -> None:
        """Nothing to do."""


@dataclass
class _Program:
    """A program, when it was started, and when it is to be started again (None: it lives, or is given up)."""

    process: subprocess.Popen[bytes]
    starts: list[float] = field(default_factory=lambda: [time.monotonic()])
    again_at: float | None = None
    is_given_up: bool = False

    def plan_next_start(self) -> None:
        """It has died: each time in a row it waits longer, as a machine may be starting up; then it is given up."""
        now = time.monotonic()
        recent = sum(now - when < _CALM_SECONDS for when in self.starts)
        self.is_given_up = recent >= _MOST_STARTS
        self.again_at = None if self.is_given_up else now + 2.0 ** (recent - 2)


class Started:
    """Programs that this process started, and starts again when they die, if they do not die again and again.

    Args:
        commands: by node.
        environment: of all of them.
    """

    def __init__(self, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> None:
        self._commands = commands
        self._environment = dict(environment)
        self._programs = {node: _Program(self._start(node)) for node in commands}

    def tend(self) -> Sequence[str]:
        """Start again what has died."""
        died = []
        for node, program in self._programs.items():
            if program.process.poll() is None or program.is_given_up:
                continue
            if program.again_at is None:
                program.plan_next_start()
                died += [] if program.is_given_up else [node]
            elif time.monotonic() > program.again_at:
                program.process, program.again_at = self._start(node), None
                program.starts.append(time.monotonic())
        return died

    def may_come(self) -> bool:
        """Whether a program lives, or will be started again: one that has died just now is not given up yet."""
        return any(not program.is_given_up for program in self._programs.values())

    def end(self) -> None:
        """Wait for all to end, as they do when the coordinator has said goodbye; kill those that do not."""
        deadline = time.monotonic() + _END_SECONDS
        for program in self._programs.values():
            with suppress(subprocess.TimeoutExpired):
                program.process.wait(max(0.0, deadline - time.monotonic()))
            if program.process.poll() is None:
                program.process.kill()
                program.process.wait()

    def _start(self, node: str) -> subprocess.Popen[bytes]:
        # In a session of their own: Ctrl-C and a closed terminal are for the coordinator, and would end an ssh.
        return subprocess.Popen(
            self._commands[node], env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
