"""Interleaved timing: every candidate meets the same noise of the machine."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one candidate: median, and the fastest call."""

    median: float
    best: float


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    synchronise: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Call the candidates in turn, `rounds` times each after `warmup` unmeasured turns.

    `synchronise` runs before and after each call: a CUDA synchronisation, or a barrier between ranks.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, call in candidates.items():
            synchronise()
            start = time.perf_counter()
            call()
            synchronise()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(times), min(times)) for name, times in seconds.items()}


def ratio_table(title: str, timings: Mapping[str, Timing], ours: str, unit: str, amount: float) -> str:
    """Lines of text: amount per second of each candidate, and how many times ours is as fast (above 1: we win)."""
    lines = [title]
    for name, timing in timings.items():
        ratio = timing.median / timings[ours].median
        lines.append(f"  {name:34s} {amount / timing.median:12,.0f} {unit}/s   ours is {ratio:5.2f}x")
    return "\n".join(lines)


def save(name: str, payload: Mapping[str, object]) -> Path:
    """Write a result with the date, the machine and the versions under benchmarks/results/."""
    path = Path(__file__).with_name("results") / f"{name}.json"
    header = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    path.write_text(json.dumps({**header, **payload}, indent=2) + "\n")
    return path
