"""How long the steps wait for a checkpoint of 350 million parameters: written while they wait, and beside them.

``python -m benchmarks.checkpoint`` trains GPT-3 350M on the CPU, a few steps of one short sample, and saves in turn in
both ways. It needs 12 GB of memory and 9 GB of disk, and writes figures to benchmarks/results/checkpoint.json.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

import torch

from benchmarks.manifest import describe
from benchmarks.timing import save
from benchmarks.workloads import random_batch
from ptm_dist.checkpoint.background import BackgroundSaves
from ptm_dist.checkpoint.store import CheckpointStore, remove
from ptm_dist.engines.native import NativeEngine
from ptm_dist.parallel.control import ALONE
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.loading import load_recipe
from ptm_dist.recipe.schema import Recipe

SETTINGS = [
    "data.sequence_length=64",
    "training.global_batch_size=1",
    "layout.micro_batch_size=1",
    "training.precision=fp32",
]


class Measurement:
    """An engine, both ways to save it, and clocks."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.engine = NativeEngine(recipe, resolve_layout(recipe.layout, 1), torch.device("cpu"))
        self.batch = random_batch(recipe, 0, 1, torch.device("cpu"))
        self.store = CheckpointStore(folder, ALONE)
        self.saves = BackgroundSaves(self.store, ALONE, torch.device("cpu"))
        self.step_number = 0

    def step(self) -> float:
        """Seconds of a step of training."""
        started = time.perf_counter()
        self.engine.step(self.batch, 1e-4)
        self.step_number += 1
        return time.perf_counter() - started

    def waiting(self) -> float:
        """Seconds of a save that is waited for."""
        self.step()
        started = time.perf_counter()
        info = self.store.save(self.engine.state(), describe(self.recipe, self.step_number, self.step_number))
        seconds = time.perf_counter() - started
        remove(info.path)
        return seconds

    def beside(self) -> tuple[float, float, list[float]]:
        """Seconds that the steps wait for a save beside them, seconds until it is committed, and the steps' own."""
        self.step()
        started = time.perf_counter()
        self.saves.start(self.engine.state(), describe(self.recipe, self.step_number, self.step_number))
        stall, steps, info = time.perf_counter() - started, [], None
        while info is None:
            steps.append(self.step())
            asked = time.perf_counter()
            info = self.saves.poll()
            stall += time.perf_counter() - asked
        seconds = time.perf_counter() - started
        remove(info.path)
        return stall, seconds, steps


def measure(recipe: Recipe, folder: Path, rounds: int) -> dict[str, object]:
    """Both ways in turn; medians."""
    measurement = Measurement(recipe, folder)
    measurement.saves.prepare(measurement.engine.state())
    alone = [measurement.step() for _ in range(3)][1:]
    waits, stalls, totals, steps = [], [], [], []
    for number in range(rounds):
        waits.append(measurement.waiting())
        stall, total, own = measurement.beside()
        stalls.append(stall)
        totals.append(total)
        steps += own
        print(
            f"round {number}: waited for {waits[-1]:.2f} s; beside the steps {stall:.2f} s of {total:.2f} s", flush=True
        )
        alone += [measurement.step() for _ in range(2)]
    measurement.saves.close()
    size = sum(box.local.nbytes for box in measurement.engine.state().values())
    return {
        "GB": round(size / 1e9, 2),
        "seconds of a save that is waited for": round(statistics.median(waits), 2),
        "seconds that steps wait for a save beside them": round(statistics.median(stalls), 3),
        "ratio": round(statistics.median(stalls) / statistics.median(waits), 4),
        "seconds from its start to its commit": round(statistics.median(totals), 2),
        "all rounds": [[round(one, 3) for one in each] for each in zip(waits, stalls, totals, strict=True)],
        "seconds of a step without a save": round(statistics.median(alone), 3),
        "seconds of a step beside a save": round(statistics.median(steps), 3),
    }


def main() -> None:
    """Measure, print, and remove what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-checkpoint"), help="folder to make and to remove")
    parser.add_argument("--recipe", type=Path, default=Path("configs/gpt/gpt3-350m.yaml"))
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        figures = measure(load_recipe(options.recipe, SETTINGS), options.work, options.rounds)
    finally:
        shutil.rmtree(options.work)
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    print(f"figures: {save('checkpoint', {'recipe': options.recipe.stem, **figures})}")


if __name__ == "__main__":
    main()
