"""A run on two nodes of two processes each that is to be disturbed: its processes, its history, its checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from ptm_dist.checkpoint.store import checkpoint_paths
from ptm_dist.recipe.loading import dump_recipe
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.metrics import read_rows
from tests.launcher.processes import parent, programs, words_of, worker_pids

ROOT = Path(__file__).resolve().parents[2]
NODES = {"n1": 2, "n2": 2}


class ChaosError(Exception):
    """The run did not do what it should after a fault."""


class DisturbedRun:
    """A run under a coordinator, which nothing but itself brings back after a fault.

    Args:
        recipe: of the run.
        folder: for its recipe file and what it says; not on the disk that a fault may fill.
        least: nodes that it goes on with.
    """

    def __init__(self, recipe: Recipe, folder: Path, least: int) -> None:
        self.recipe = recipe
        self.logs = recipe.directory / "logs"
        self.checkpoints = recipe.directory / "checkpoints"
        self._words = folder / f"{recipe.name}.log"
        recipe_file = folder / f"{recipe.name}.yaml"
        recipe_file.write_text(dump_recipe(recipe))
        nodes = [f"{node}={count}" for node, count in NODES.items()]
        command = [sys.executable, "-m", "tests.launcher.elastic_cluster", str(recipe_file), str(least), *nodes]
        with self._words.open("w") as words:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=words, stderr=words
            )

    @property
    def words(self) -> str:
        """What the launch command has said so far."""
        return self._words.read_text(errors="replace")

    def history(self) -> list[dict[str, Any]]:
        """All events so far."""
        return read_rows(self.recipe.directory / "events.jsonl")

    def rounds(self) -> list[dict[str, Any]]:
        """The rounds so far."""
        return [row for row in self.history() if row["event"] == "round"]

    def workers(self) -> dict[int, int]:
        """Process ids of the newest round, by rank; waits until there are some."""
        return self.wait_for(lambda: worker_pids(self.logs), "workers")

    def agents(self) -> list[int]:
        """Process ids of the agents of nodes that take part; waits until there are some."""

        def find() -> list[int]:
            # Workers are forked from agents and have their command lines.
            keepers = self._keepers()
            return [pid for pid in programs("launcher.elastic.agent", self.logs) if parent(pid) in keepers]

        return self.wait_for(find, "agents")

    def keepers(self) -> list[int]:
        """Process ids of the programs that keep these agents alive; waits until there are some."""
        return self.wait_for(self._keepers, "keepers")

    def _keepers(self) -> list[int]:
        nodes = self.rounds()[-1]["nodes"]
        return [pid for pid in programs("launcher.elastic.keeper", self.logs) if set(nodes) & set(words_of(pid))]

    def count(self, kind: str) -> int:
        """How many events of a kind there were so far."""
        return sum(row["event"] == kind for row in self.history())

    def complete(self) -> list[Path]:
        """Its checkpoints under their own names, oldest first."""
        return checkpoint_paths(self.checkpoints)

    def unfinished(self) -> list[Path]:
        """Checkpoints that are being written."""
        return list(self.checkpoints.glob(".step-*.tmp-*"))

    def first_step_after(self, rounds: int) -> float | None:
        """When the first step was done after so many rounds, in seconds since the epoch."""
        begun = 0
        for row in self.history():
            begun += row["event"] == "round"
            if begun > rounds and row["event"] == "first_step":
                return datetime.fromisoformat(row["time"]).timestamp()
        return None

    def has_saved_after(self, rounds: int) -> bool:
        """Whether a checkpoint was completed after the first step after so many rounds."""
        begun, stepped = 0, False
        for row in self.history():
            begun += row["event"] == "round"
            stepped = stepped or (begun > rounds and row["event"] == "first_step")
            if stepped and row["event"] == "checkpoint":
                return True
        return False

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 120.0, tick: float = 0.01) -> Any:
        """What `condition` gives when that is true.

        Raises: ChaosError if it takes too long, or the run is over before.
        """
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if self._process.poll() is not None:
                raise ChaosError(f"the run was over before there were {what}:\n{self.words[-4000:]}")
            if time.monotonic() > deadline:
                raise ChaosError(f"waited in vain for {what}:\n{self.words[-4000:]}")
            time.sleep(tick)
        return found

    def finish(self, seconds: float = 300.0) -> None:
        """Wait for its end.

        Raises: ChaosError if it does not end well, or leaves processes behind.
        """
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ChaosError(f"the run does not end:\n{self.words[-4000:]}") from None
        if code:
            raise ChaosError(f"the run ended with exit code {code}:\n{self.words[-4000:]}")
        left = [*programs("launcher.elastic.agent", self.logs), *worker_pids(self.logs).values()]
        if left:
            raise ChaosError(f"processes {left} outlived the run")

    def end(self) -> None:
        """Kill what is left of it."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
