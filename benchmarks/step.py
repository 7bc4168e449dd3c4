"""One training step in one process: ours beside plain PyTorch, Hugging Face and Megatron-Core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import candidates
from benchmarks.comparison import Entry, compare
from benchmarks.workloads import Problem

OURS, COMPILED = "ptm-dist", "ptm-dist compiled"


@dataclass(frozen=True)
class Suite:
    """A problem and how often it is measured.

    Attributes:
        is_small: compiling it takes seconds, so that compiled candidates take part without being asked for.
    """

    problem: Problem
    rounds: int
    is_small: bool = False


SUITES = (
    Suite(Problem("nano", 16, 256, "fp32"), 5, is_small=True),
    Suite(Problem("nano", 16, 256, "bf16"), 5, is_small=True),
    Suite(Problem("gpt2-124m", 2, 128, "fp32"), 3),
    Suite(Problem("gpt2-124m", 2, 128, "bf16"), 3),
    Suite(Problem("bert-base", 4, 128, "fp32"), 3),
    Suite(Problem("bert-base", 4, 128, "bf16"), 3),
)


def run(suite: Suite, *, compiled: bool, threads: int) -> dict[str, Any]:
    """Measure one suite, compiled candidates included if asked."""
    entries = dict(_entries(suite.problem, compiled=compiled))
    return compare(suite.problem, entries, rounds=suite.rounds, world=1, threads=threads)


def _entries(problem: Problem, *, compiled: bool) -> Iterator[tuple[str, Entry]]:
    yield OURS, Entry(partial(candidates.ours, problem))
    if compiled:
        yield COMPILED, Entry(partial(candidates.ours, problem, compile=True))
    peers: dict[str, Any] = {"plain PyTorch": candidates.plain, "Hugging Face": candidates.hugging_face}
    if problem.model.startswith("bert"):
        peers["plain PyTorch, masked only"] = partial(candidates.plain, picks=True)
    for name, build in peers.items():
        yield name, Entry(partial(build, problem), OURS)
        if compiled:
            yield f"{name}, compiled", Entry(partial(build, problem, compiled=True), COMPILED)
    yield "Megatron-Core", Entry(partial(candidates.megatron, problem), OURS)
