"""``python -m benchmarks.activations``: memory and time of every way to store less for the backward pass.

One forward and backward pass of a GPT in one process. On CUDA the most bytes that torch's allocator held beyond the
weights; on a CPU the most bytes of live tensors, where copies to numpy play the host: what torch then holds is what a
device would hold. Figures go to benchmarks/results/activations-<device>.json, and all there are to docs/activations.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import interleave, save
from benchmarks.workloads import random_batch, recipe
from ptm_dist.accounting.watch import MemoryWatch
from ptm_dist.engines.native import NativeEngine
from ptm_dist.parallel.activation_offload import offload_activations
from ptm_dist.parallel.host_lane import Lane, lane_of
from ptm_dist.parallel.recompute import apply_recompute
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recompute

RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).parents[1] / "docs" / "activations.md"
WAYS: dict[str, tuple[Recompute, int, bool]] = {
    "all stored": (Recompute.NONE, 1, False),
    "recompute selective": (Recompute.SELECTIVE, 1, False),
    "recompute full, every 2nd": (Recompute.FULL, 2, False),
    "recompute full": (Recompute.FULL, 1, False),
    "activations on the host": (Recompute.NONE, 1, True),
    "recompute full, inputs on the host": (Recompute.FULL, 1, True),
}
"""Kind of recomputation, of every which layer, and whether what is stored leaves the device."""
SIZES = {"cpu": {"nano": (4, 256, 3), "gpt2-124m": (1, 128, 2)}, "cuda": {"gpt2-355m": (8, 1024, 10)}}
"""Samples, positions and rounds by model and kind of device."""


class NumpyLane:
    """The memory of numpy as the host; copies at once."""

    smallest = 0

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Any], None]:
        """Copies in numpy's memory."""
        return [np.array(tensor.numpy()) for tensor in tensors], None

    def to_device(self, stored: Sequence[Any]) -> tuple[list[Tensor], None]:
        """Copies in torch's memory, which the watch counts."""
        return [torch.from_numpy(host).clone() for host in stored], None

    def wait(self, mark: None) -> None:
        """Nothing is under way."""


class Passes:
    """A forward and backward pass of one engine, whose blocks are given another way to store before each."""

    def __init__(self, model: str, samples: int, positions: int, device: torch.device) -> None:
        precision = "bf16" if device.type == "cuda" else "fp32"
        setting = recipe(model, samples, positions, precision, {"micro_batch_size": samples})
        self._engine = NativeEngine(setting, resolve_layout(setting.layout, 1), device)
        self._batch = random_batch(setting, 0, 1, device)
        self._lane_of = _numpy if device.type == "cpu" else lane_of

    def run(self, way: str) -> None:
        """One pass, on a plain model that is given this way first."""
        kind, every, leaves = WAYS[way]
        (stage,) = self._engine.model.stages.values()
        for block in stage.module.blocks():
            vars(block).pop("forward", None)
        apply_recompute(stage.module, kind, every)
        if leaves:
            offload_activations(stage.module, self._lane_of)
        self._engine.accumulate(self._batch)
        self._engine.model.zero_gradients()

    def held(self, way: str) -> tuple[int, int]:
        """Bytes beyond the weights when the backward pass begins, and the most at a time."""
        if self._engine.device.type == "cuda":
            self.run(way)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            waiting = self._run_until_backward(way, torch.cuda.memory_allocated)
            torch.cuda.synchronize()
            return waiting - before, torch.cuda.max_memory_allocated() - before
        with MemoryWatch() as watch:
            waiting = self._run_until_backward(way, lambda: watch.live)
        return waiting, watch.peak

    def _run_until_backward(self, way: str, read: Callable[[], int]) -> int:
        """One pass; gives what was read when its backward pass began."""
        (stage,) = self._engine.model.stages.values()
        plain, found = stage.backward, []

        def backward(*arguments: Any, **named: Any) -> Any:
            found.append(read())
            return plain(*arguments, **named)

        stage.backward = backward  # type: ignore[method-assign]
        self.run(way)
        del stage.backward
        return found[0]


def _numpy(device: torch.device) -> Lane:
    return NumpyLane()


def measure(model: str, samples: int, positions: int, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds and bytes by way, timed in turn."""
    passes = Passes(model, samples, positions, device)
    synchronise: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    held = {way: passes.held(way) for way in WAYS}
    timings = interleave({way: partial(passes.run, way) for way in WAYS}, rounds, 1, synchronise)
    return {
        way: {"seconds": timings[way].median, "waiting_bytes": held[way][0], "peak_bytes": held[way][1]} for way in WAYS
    }


def page() -> str:
    """The Markdown of docs/activations.md, of all results that there are."""
    lines = [
        "# What it costs to store less",
        "",
        "One forward and backward pass of a GPT in one process, every way timed in turn (median). Waiting: bytes of",
        "tensors beyond the weights when the backward pass begins, which are activations and logits. Peak: the most at",
        "a time, gradients of weights included; where those of the vocabulary outweigh all activations, no way changes",
        "it. [Ways to share a model](parallelism.md#recomputation-and-host-memory) says what each way does. Made by",
        "`python -m benchmarks.activations`.",
    ]
    for path in sorted(RESULTS.glob("activations-*.json")):
        found = json.loads(path.read_text())
        host = " The host is played by copies to numpy's memory, made at once." if found["device"] == "cpu" else ""
        lines += ["", f"## {found['device']}", ""]
        lines += [f"{found['date']}, torch {found['torch']}, {found['threads']} threads.{host} {found['note']}".strip()]
        for workload, ways in found["workloads"].items():
            whole = ways["all stored"]
            lines += ["", f"| {workload} | waiting MiB | | peak MiB | | ms | |", "|---|" + "---:|" * 6]
            for way, row in ways.items():
                columns = {"waiting_bytes": 2**-20, "peak_bytes": 2**-20, "seconds": 1000}
                cells = [f"{row[key] * unit:,.1f} | {row[key] / whole[key]:.2f}x" for key, unit in columns.items()]
                lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure on CUDA where it is, else on the CPU; a minute."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(2)
    workloads = {
        f"{model}, {samples} x {positions}": measure(model, samples, positions, rounds, device)
        for model, (samples, positions, rounds) in SIZES[device.type].items()
    }
    note = "" if device.type == "cuda" else "Other processes shared the two cores: times are rough, bytes are exact."
    save(f"activations-{device.type}", {"note": note, "workloads": workloads})
    PAGE.write_text(page())
    print(page())


if __name__ == "__main__":
    main()
