"""Peers beside the form of ours that does the same: ratios of speed and memory, and whether all learn the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.turns import Build, Measured, take_turns, worst_difference
from benchmarks.workloads import Problem

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}
"""Losses near 10 that are summed in another order, or rounded to 8 bits at other places: 10 x 2^-23 and 10 x 2^-9 with
room for the steps before."""


@dataclass(frozen=True)
class Entry:
    """A candidate.

    Attributes:
        build: as in :mod:`benchmarks.turns`.
        beside: the form of ours that it is compared with; None for a form of ours.
    """

    build: Build
    beside: str | None = None


def compare(problem: Problem, entries: Mapping[str, Entry], *, rounds: int, world: int, threads: int) -> dict[str, Any]:
    """Figures of all candidates on one problem, for JSON; what failed has its error in place of figures."""
    builds = {name: entry.build for name, entry in entries.items()}
    measured = take_turns(builds, rounds=rounds, world=world, threads=threads)
    worked = [found for found in measured.values() if not found.error]
    return {
        "problem": str(problem),
        "processes": world,
        "threads_each": threads,
        "largest_loss_difference": worst_difference(worked),
        "loss_tolerance": TOLERANCES[problem.precision],
        "candidates": {name: _row(problem, name, entries[name], measured) for name in entries},
    }


def _row(problem: Problem, name: str, entry: Entry, measured: Mapping[str, Measured]) -> dict[str, Any]:
    found = measured[name]
    if found.error:
        return {"error": found.error.strip().splitlines()[-1]}
    row: dict[str, Any] = {
        "tokens_per_second": problem.tokens / found.median,
        "fastest_tokens_per_second": problem.tokens / min(found.seconds),
        "peak_mib": found.peak / 2**20,
        "losses": found.losses,
    }
    if entry.beside is not None and not (ours := measured[entry.beside]).error:
        row |= {
            "beside": entry.beside,
            "ours_is_times_as_fast": found.median / ours.median,
            "ours_takes_times_the_memory": ours.peak / found.peak,
        }
    return row


def table(result: Mapping[str, Any]) -> str:
    """Lines of text of what :func:`compare` gave."""
    lines = [f"{result['problem']}; processes: {result['processes']}, threads of each: {result['threads_each']}"]
    for name, row in result["candidates"].items():
        if "error" in row:
            lines.append(f"  {name:30s} did not run: {row['error']}")
            continue
        line = f"  {name:30s} {row['tokens_per_second']:9,.0f} tokens/s {row['peak_mib']:7,.0f} MiB"
        if "beside" in row:
            line += f"   {row['beside']} is {row['ours_is_times_as_fast']:.2f}x as fast"
            line += f" in {row['ours_takes_times_the_memory']:.2f}x the memory"
        lines.append(line)
    verdict = "the same" if learns_the_same(result) else "NOT THE SAME"
    lines.append(f"  losses of the first steps: {verdict}, {result['largest_loss_difference']:.1e} apart at most")
    return "\n".join(lines)


def learns_the_same(result: Mapping[str, Any]) -> bool:
    """Whether all candidates' losses are as near as rounding allows."""
    return bool(result["largest_loss_difference"] <= result["loss_tolerance"])
