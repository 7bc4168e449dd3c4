"""One experiment: a run that is left alone, the same run disturbed again and again, and how they compare."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch

from launcher.report.curve import Curve
from launcher.report.report import make_report
from ptm_dist.recipe.schema import Recipe
from tests.chaos.disturbed import ChaosError, DisturbedRun
from tests.chaos.faults import EVIDENCE, FAULTS
from tests.ptm_dist.runs import losses, make_recipe, run_processes, weights, write_data

PROCESSES = 4
LOSS_TOLERANCE = 1e-9
"""Relative, between runs in fp64 whose layouts differ for a while: sums are added up in another order, and a thousand
steps make more of what that rounds off."""

SHARES = {
    "worker killed": 4,
    "killed while saving": 4,
    "killed while starting": 4,
    "agent killed": 4,
    "node killed": 3,
    "worker stopped": 3,
    "node stopped": 2,
    "byte flipped": 2,
    "file deleted": 2,
    "disk full": 2,
}
"""Faults of each kind among thirty."""

_STEPS_OF_A_FAULT = 20
# Nobody notices for seconds, in which the workers go on.
_STEPS_OF_A_STOPPED_NODE = 400
_DISK = "64m"
_CALM_SECONDS = 0.15


@dataclass(frozen=True)
class Trial:
    """What is tried.

    Attributes:
        family: gpt or bert.
        shrinks: whether the run goes on with one node while it has lost the other.
    """

    family: str
    shrinks: bool = False

    @property
    def name(self) -> str:
        """Such as `bert, on what is left`."""
        return f"{self.family}, on what is left" if self.shrinks else self.family

    def recipe(self, folder: Path, run_dir: Path, steps: int) -> Recipe:
        """A tiny run of so many steps, with its data under `folder`."""
        bert = {"model": {"family": "bert"}, "objective": {"kind": "mlm_nsp", "copies": 2}}
        sections: dict[str, dict[str, Any]] = bert if self.family == "bert" else {}
        return make_recipe(
            folder,
            run_dir.name,
            **sections,
            data={"max_epochs": 10_000},
            optimizer={"learning_rate": 1e-3},
            training={"steps": steps},
            layout={"zero_stage": 1},
            evaluation={"every": 0},
            logging={"every": 10},
            checkpoint={"every": 10, "keep_last": 3},
            launch={"silence_seconds": 4.0, "stopped_seconds": 3.0, "gather_seconds": 60.0},
        ).model_copy(update={"run_dir": run_dir})


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        trial: what was tried.
        steps: of the run.
        faults: kind, and seconds from its end to the next new step.
        rounds: number of processes of each start.
        curve: of the disturbed run, as `ptm report` checks it.
        same_losses: whether every step's loss is equal to the bit to that of the undisturbed run.
        same_weights: the same of all weights at the end.
        loss_difference: largest relative difference of the losses of a step.
        seconds: that the disturbed run took.
        calm_seconds: that the undisturbed run took.
    """

    trial: Trial
    steps: int
    faults: Sequence[tuple[str, float]]
    rounds: Sequence[int]
    curve: Curve
    same_losses: bool
    same_weights: bool
    loss_difference: float
    seconds: float
    calm_seconds: float

    @property
    def layouts_changed(self) -> bool:
        """Whether some start had fewer processes than others."""
        return len(set(self.rounds)) > 1

    def counts(self) -> Counter[str]:
        """How often each kind of fault happened."""
        return Counter(kind for kind, _ in self.faults)

    def recovery_seconds(self) -> tuple[float, float]:
        """Median and maximum of the seconds from the end of a fault to the next new step."""
        seconds = [each for _, each in self.faults]
        return median(seconds), max(seconds)

    def problems(self) -> list[str]:
        """In what the disturbed run is not the undisturbed one; nothing if all is well."""
        found = []
        if not self.curve.is_whole or self.curve.last_step != self.steps:
            found.append(f"its steps are not whole: {self.curve}")
        if self.layouts_changed:
            if self.loss_difference > LOSS_TOLERANCE:
                found.append(f"losses differ by {self.loss_difference:.1e}")
        elif not (self.same_losses and self.same_weights):
            found.append(f"losses differ by {self.loss_difference:.1e}, weights are equal: {self.same_weights}")
        return found


def choose(count: int, random: Random) -> list[str]:
    """Kinds of so many faults in random order, of each kind its share."""
    chosen: list[str] = []
    while len(chosen) < count:
        block = [kind for kind, share in SHARES.items() for _ in range(share)]
        random.shuffle(block)
        chosen += block
    return chosen[:count]


def run_trial(trial: Trial, kinds: Sequence[str], random: Random, folder: Path) -> Outcome:
    """Run it all.

    Args:
        trial: what is tried.
        kinds: of the faults, in order; full disks are left out where nobody may mount one.
        random: chooses moments, ranks, nodes, files and bytes.
        folder: an empty one.

    Raises: ChaosError if the disturbed run does not go on by itself after a fault.
    """
    write_data(folder / "data")
    with _disk(folder / "disk") as is_small:
        kinds = [kind for kind in kinds if is_small or kind != "disk full"]
        steps = 60 + _STEPS_OF_A_FAULT * len(kinds) + _STEPS_OF_A_STOPPED_NODE * kinds.count("node stopped")
        calm = trial.recipe(folder, folder / "calm", steps)
        began = time.monotonic()
        if run_processes(calm, PROCESSES, timeout=600.0) != [0] * PROCESSES:
            raise ChaosError("the undisturbed run failed")
        calm_seconds = time.monotonic() - began
        recipe = trial.recipe(folder, folder / "disk" / "disturbed", steps)
        began = time.monotonic()
        faults = _disturb(recipe, trial, kinds, random, folder)
        return _compare(trial, recipe, calm, faults, (time.monotonic() - began, calm_seconds))


def _disturb(
    recipe: Recipe, trial: Trial, kinds: Sequence[str], random: Random, folder: Path
) -> list[tuple[str, float]]:
    run = DisturbedRun(recipe, folder, least=1 if trial.shrinks else 2)
    faults = []
    try:
        run.wait_for(lambda: len(run.complete()) > 1, "two checkpoints")
        for number, kind in enumerate(kinds, start=1):
            time.sleep(random.uniform(0.0, _CALM_SECONDS))
            try:
                faults.append((kind, _one_fault(run, kind, random)))
            except ChaosError as error:
                raise ChaosError(f"fault {number} of {len(kinds)} ({kind}): {error}") from None
        run.finish()
    finally:
        run.end()
    return faults


def _one_fault(run: DisturbedRun, kind: str, random: Random) -> float:
    """Do it, and wait until the run has gone on and saved; the seconds from its end to the next step."""
    evidence = EVIDENCE.get(kind, "round")
    before = run.count(evidence)
    FAULTS[kind](run, random)
    ended, rounds = time.time(), len(run.rounds())
    stepped: float = run.wait_for(lambda: run.first_step_after(rounds), "a step", tick=0.05)
    run.wait_for(lambda: run.has_saved_after(rounds), "a checkpoint")
    if run.count(evidence) == before:
        raise ChaosError(f"no event {evidence} followed")
    return stepped - ended


def _compare(
    trial: Trial, recipe: Recipe, calm: Recipe, faults: Sequence[tuple[str, float]], seconds: tuple[float, float]
) -> Outcome:
    report = make_report(recipe.directory)
    ours, theirs = losses(recipe), losses(calm)
    own_weights, calm_weights = weights(recipe), weights(calm)
    return Outcome(
        trial=trial,
        steps=recipe.training.steps,
        faults=faults,
        rounds=[int(event.values["world_size"]) for event in report.history.events if event.kind == "round"],
        curve=report.curve,
        same_losses=ours == theirs,
        same_weights=all(torch.equal(own_weights[name], value) for name, value in calm_weights.items()),
        loss_difference=max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)),
        seconds=seconds[0],
        calm_seconds=seconds[1],
    )


@contextmanager
def _disk(place: Path) -> Iterator[bool]:
    """A folder on a disk of its own that may be filled; False if that needs rights that this process lacks."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(place)]
    is_small = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_small
    finally:
        if is_small:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
